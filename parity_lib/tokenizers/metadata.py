"""Reads and checks a model file's tokenizer metadata; every refusal is a ``ModelFileError``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.header import ModelFile
from parity_lib.tokenizers.families import BYTE_LEVEL, DEFAULT, FAMILIES, SCORED, SENTENCEPIECE

NORMAL = int(gguf.TokenType.NORMAL)
UNUSED = int(gguf.TokenType.UNUSED)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
BYTE = int(gguf.TokenType.BYTE)
NAMED = (int(gguf.TokenType.CONTROL), int(gguf.TokenType.UNKNOWN))  # stand for their own name, never found in a text
_UTF8 = (*range(0xC0), *range(0xC2, 0xF5))  # the bytes that UTF-8 uses


@dataclass(frozen=True, slots=True)
class TokenizerMetadata:
    """The tokenizer metadata of one file."""

    path: Path
    pre: str  # a key of FAMILIES, or SENTENCEPIECE
    tokens: tuple[str, ...]  # by id, in the byte alphabet; of SENTENCEPIECE with U+2581 for a space
    types: tuple[int, ...]  # by id, gguf.TokenType
    merges: tuple[tuple[str, str], ...]  # best first; none of SENTENCEPIECE
    bos: int | None  # added in front of every text; None: nothing is
    eos: int | None  # added behind every text; None: nothing is
    scores: tuple[float, ...] = ()  # by id, of SENTENCEPIECE only: the highest is merged first
    space_prefix: bool = False  # of SENTENCEPIECE only: a space is put in front of a text

    def type_counts(self) -> dict[str, int]:
        """Return how many tokens there are of each type, by gguf's name."""
        counts = Counter(self.types)
        return {gguf.TokenType(kind).name: counts[kind] for kind in sorted(counts)}


def read_metadata(path: Path | str, *, family: str | None = None) -> TokenizerMetadata:
    """Return the tokenizer's metadata of a GGUF file.

    Args:
        path: of the file.
        family: read the file as one of this family, whatever pre-tokenizer it names; None asks the file.

    Raises:
        ModelFileError: the file cannot be read, its tokenizer is of another model or pre-tokenizer than the supported
            ones, or what it says contradicts itself.
    """
    file = ModelFile(Path(path))
    pre = _supported(file, family)
    tokens = _texts(file, "tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens) or not tokens:
        twice = [text for text, count in Counter(tokens).items() if count > 1][:3]
        raise _refusal(file, "tokens", "the tokens are not a vocabulary", "at least one, each once", f"twice: {twice}")
    types = _types(file, len(tokens))
    if pre == SENTENCEPIECE:
        return _scored(file, tokens, types)
    return TokenizerMetadata(
        path=file.path,
        pre=pre,
        tokens=tokens,
        types=types,
        merges=tuple(_pair(file, text) for text in _texts(file, "tokenizer.ggml.merges")),
        bos=_added(file, "bos", len(tokens), default=FAMILIES[pre].add_bos),
        eos=_added(file, "eos", len(tokens), default=False),
    )


def _supported(file: ModelFile, family: str | None) -> str:
    model, pre = file.value("tokenizer.ggml.model"), family or file.value("tokenizer.ggml.pre")
    if model not in (BYTE_LEVEL, SCORED):
        expected = f"{BYTE_LEVEL} or {SCORED}"
        raise _refusal(file, "model", "the tokenizer's model is not supported", expected, model or "nothing")
    if model == SCORED:
        return SENTENCEPIECE
    if pre not in (None, "", *FAMILIES):
        raise _refusal(file, "pre", "the pre-tokenizer is not supported", " or ".join(FAMILIES), pre)
    return pre or DEFAULT


def _scored(file: ModelFile, tokens: tuple[str, ...], types: tuple[int, ...]) -> TokenizerMetadata:
    """Return the metadata of a SentencePiece tokenizer; what the file leaves out is as llama.cpp has it."""
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if file.value(f"tokenizer.ggml.{key}"):
            raise _refusal(file, key, "the text is normalised in a way that is not supported", "no such key", "one")
    _require_bytes(file, tokens, types)
    prefix = file.value("tokenizer.ggml.add_space_prefix")
    return TokenizerMetadata(
        path=file.path,
        pre=SENTENCEPIECE,
        tokens=tokens,
        types=types,
        merges=(),
        bos=_added(file, "bos", len(tokens), default=True, usual=1),
        eos=_added(file, "eos", len(tokens), default=False, usual=2),
        scores=_scores(file, len(tokens)),
        space_prefix=True if prefix is None else bool(prefix),
    )


def _require_bytes(file: ModelFile, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Refuse a vocabulary in which a character could be left without ids: there llama.cpp ends the process."""
    known = frozenset(tokens)
    pieces = {text for text, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)}
    lost = [hex(b) for b in _UTF8 if f"<0x{b:02X}>" not in known and not (b < 0x80 and chr(b) in pieces)]
    if lost:
        raise _refusal(file, "tokens", "bytes have no token", "<0x00> to <0xF4>", f"none for {', '.join(lost[:5])}")
    names = {text for text, kind in zip(tokens, types, strict=True) if kind == BYTE}
    if wrong := sorted(names - {f"<0x{byte:02X}>" for byte in range(256)}):
        raise _refusal(file, "tokens", "a byte's token has another name", "<0x00> to <0xFF>", wrong[0])


def _scores(file: ModelFile, n_tokens: int) -> tuple[float, ...]:
    given = file.value("tokenizer.ggml.scores")
    scores = tuple(map(float, [0.0] * n_tokens if given is None else given))
    if len(scores) != n_tokens or any(map(math.isnan, scores)):
        found = f"{len(scores)}, {sum(map(math.isnan, scores))} of them not a number"
        raise _refusal(file, "scores", "the scores do not fit the tokens", f"{n_tokens} numbers", found)
    return scores


def _texts(file: ModelFile, key: str) -> tuple[str, ...]:
    try:
        return tuple(value.decode("utf-8") for value in file.strings(key))
    except UnicodeDecodeError as error:
        name = key.removeprefix("tokenizer.ggml.")
        raise _refusal(file, name, "a text is not UTF-8", "the byte alphabet, in UTF-8", error) from error


def _types(file: ModelFile, n_tokens: int) -> tuple[int, ...]:
    given = file.value("tokenizer.ggml.token_type")
    types = (NORMAL,) * n_tokens if given is None else tuple(int(kind) for kind in given)
    known = {int(kind) for kind in gguf.TokenType}
    if len(types) != n_tokens or not known.issuperset(types):
        found = f"{len(types)}, types {sorted(set(types))}"
        raise _refusal(file, "token_type", "the token types do not fit the tokens", f"{n_tokens} known types", found)
    return types


def _pair(file: ModelFile, text: str) -> tuple[str, str]:
    left, found, right = text[1:].partition(" ")  # a left part may begin with a space in other alphabets, not end so
    if not found or not right or not text[:1].strip():
        raise _refusal(file, "merges", "a merge is not a pair", "two parts with a space between", repr(text))
    return text[0] + left, right


def _added(file: ModelFile, name: str, n_tokens: int, *, default: bool, usual: int | None = None) -> int | None:
    """Return the id that is added to every text, or None. The file's metadata overrides the family's default."""
    asked = file.value(f"tokenizer.ggml.add_{name}_token")
    if not (default if asked is None else asked):
        return None
    given = file.value(f"tokenizer.ggml.{name}_token_id")
    token = usual if given is None else given
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < n_tokens:
        expected = f"an id below {n_tokens}, because the token is to be added"
        raise _refusal(file, f"{name}_token_id", "a special token is missing", expected, token)
    return token


def _refusal(file: ModelFile, key: str, what: str, expected: object, found: Any) -> ModelFileError:  # noqa: ANN401
    return ModelFileError(
        what,
        place=f"{file.path}: tokenizer.ggml.{key}",
        expected=expected,
        found=found,
        next_step="tokens cannot be compared for this file; see parity_lib/tokenizers/families.py",
    )
