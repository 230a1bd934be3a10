"""Build a tokenizer from a GGUF file's metadata alone, to hold llama.cpp's tokenizer against."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.tokenizers.families import FAMILIES, NEW_DIGITS, NEW_LETTERS, SENTENCEPIECE
from parity_lib.tokenizers.metadata import NAMED, UNUSED, USER_DEFINED, TokenizerMetadata
from parity_lib.tokenizers.sentencepiece import CONTROL_BY_NAME, SentencePiece

# What llama.cpp does otherwise than the family's own tokenizer: each can be switched to llama.cpp's way, one by one,
# to show that a difference between the two has this reason and no other.
RULES: Mapping[str, str] = {
    "no-nfc": "the text is not brought to Unicode's composed form",
    "lost-bytes": "a byte without a token vanishes after merging, and keeps its neighbours apart",
    "unicode-15": "letters and digits of Unicode 15.1, no later ones",
    CONTROL_BY_NAME: "a user-defined token that is named like an end of text is a control token",
}


class Algorithm(Protocol):
    """How a text becomes ids: what differs between byte-level BPE and SentencePiece."""

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS."""

    def bytes_of(self, text: str, kind: int) -> bytes:
        """Return the bytes of an ordinary token or a byte token."""

    def facts(self) -> dict[str, Any]:
        """Return the rules, for the record."""


class BuiltTokenizer:
    """The tokenizer of one file: text to ids, ids to bytes. Control tokens are never found in a text.

    Args:
        metadata: what the file says.
        rules: names of ``RULES`` to follow llama.cpp in; none of them for the family's own tokenizer.

    Raises:
        ModelFileError: a merge gives a token that is not in the vocabulary.
    """

    def __init__(self, metadata: TokenizerMetadata, rules: Collection[str] = ()) -> None:
        self.metadata = metadata
        self.n_tokens = len(metadata.tokens)
        algorithm = SentencePiece if metadata.pre == SENTENCEPIECE else ByteLevel
        self._algorithm: Algorithm = algorithm(metadata, frozenset(rules))

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with BOS and EOS if the file asks for them.

        Raises:
            EngineError: the text is not valid Unicode.
        """
        require_unicode(text)
        front = [] if self.metadata.bos is None else [self.metadata.bos]
        back = [] if self.metadata.eos is None else [self.metadata.eos]
        return front + self._algorithm.ids(text) + back

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each token: of a control token its name, of an unused token none."""
        named = (*NAMED, USER_DEFINED)
        texts = zip(self.metadata.tokens, self.metadata.types, strict=True)
        return [
            b"" if kind == UNUSED else text.encode() if kind in named else self._algorithm.bytes_of(text, kind)
            for text, kind in texts
        ]

    def following(self, *rules: str) -> BuiltTokenizer:
        """Return the same tokenizer with these of llama.cpp's own rules."""
        return BuiltTokenizer(self.metadata, rules)

    def facts(self) -> dict[str, Any]:
        """Return what this tokenizer is, for the record."""
        metadata = self.metadata
        return {
            "pre": metadata.pre,
            "n_vocab": self.n_tokens,
            "n_merges": len(metadata.merges),
            "types": metadata.type_counts(),
            "added_tokens": metadata.types.count(USER_DEFINED),
            "bos": metadata.bos,
            "eos": metadata.eos,
            "tokenizers": tokenizers.__version__,
            **self._algorithm.facts(),
        }


def require_unicode(text: str) -> None:
    """Raise ``EngineError`` where a text has a lone surrogate, and so no bytes in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EngineError(
            "the text is not valid Unicode", place="tokenizers", expected="no lone surrogates", found=error
        ) from error


class ByteLevel:
    """Byte-level BPE, by Hugging Face's tokenizers."""

    def __init__(self, metadata: TokenizerMetadata, rules: Collection[str]) -> None:
        self._metadata, self._rules = metadata, rules
        self._family = FAMILIES[metadata.pre]
        self._n_tokens, known = len(metadata.tokens), set(metadata.tokens)
        self._missing_bytes = tuple(byte for byte, letter in byte_alphabet().items() if letter not in known)
        self._letters = {ord(letter): byte for byte, letter in byte_alphabet().items()}
        self._tokenizer = self._build()

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS and EOS."""
        return [token for token in self._tokenizer.encode(text, add_special_tokens=False).ids if token < self._n_tokens]

    def bytes_of(self, text: str, kind: int) -> bytes:
        """Return the bytes of a token's text, in the byte alphabet."""
        del kind
        return _bytes(text, self._letters)

    def facts(self) -> dict[str, Any]:
        """Return the rules, for the record."""
        return {
            "missing_bytes": list(self._missing_bytes),
            "ignore_merges": self._family.ignore_merges,
            "nfc": self._family.nfc,
            "lone_digits": self._family.lone_digits,
            "patterns": list(self._family.patterns),
            "source": self._family.source,
            "warning": self._family.warning,
        }

    def _build(self) -> Tokenizer:
        metadata = self._metadata
        vocabulary = {text: token for token, text in enumerate(metadata.tokens)}
        if "lost-bytes" in self._rules:
            for number, byte in enumerate(self._missing_bytes):
                vocabulary[byte_alphabet()[byte]] = self._n_tokens + number
        try:
            model = models.BPE(vocabulary, list(metadata.merges), ignore_merges=self._family.ignore_merges)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelFileError(
                "the merges do not fit the tokens",
                place=f"{metadata.path}: tokenizer.ggml.merges",
                expected="parts and result of every merge among the tokens",
                found=error,
                next_step="verify the file's hash, and fetch or make it again",
            ) from error
        built = Tokenizer(model)
        if self._family.nfc and "no-nfc" not in self._rules:
            built.normalizer = normalizers.NFC()
        built.pre_tokenizer = self._pieces()
        pairs = zip(metadata.tokens, metadata.types, strict=True)
        own = [AddedToken(text, normalized=False) for text, kind in pairs if kind == USER_DEFINED]
        built.add_tokens(own)  # found in a text before it is cut; control and unknown tokens are not among them
        return built

    def _pieces(self) -> pre_tokenizers.PreTokenizer:
        patterns = self._family.patterns
        digits: pre_tokenizers.PreTokenizer = pre_tokenizers.Digits(individual_digits=True)
        if "unicode-15" in self._rules:
            old_letters, old_digits = _without("L", NEW_LETTERS), _without("N", NEW_DIGITS)
            patterns = tuple(p.replace(r"\p{L}", old_letters).replace(r"\p{N}", old_digits) for p in patterns)
            digits = pre_tokenizers.Split(Regex(old_digits), "isolated")
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*([digits] if self._family.lone_digits else []), *splits, level])


def _without(letter: str, ranges: Sequence[tuple[int, int]]) -> str:
    """Return Oniguruma's class of a Unicode category without some ranges."""
    inner = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    return rf"[\p{{{letter}}}&&[^{inner}]]"


@cache
def byte_alphabet() -> dict[int, str]:
    """Return the character of each byte in GPT-2's alphabet: Latin-1 where it is printable, else from U+0100 on.

    Source: ``bytes_to_unicode`` of GPT-2's encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return dict(sorted(alphabet.items()))


def _bytes(text: str, letters: Mapping[int, int]) -> bytes:
    """Return the bytes of a token's text; a character outside of the alphabet gives its UTF-8 bytes."""
    try:
        return bytes([letters[ord(letter)] for letter in text])
    except KeyError:
        return b"".join(bytes([letters[ord(c)]]) if ord(c) in letters else c.encode() for c in text)
