"""A tokenizer made of ranks that come from elsewhere than a GGUF file: a second witness of what the ids must be.

A rank file has the bytes of each ordinary token, best merge first: vocabulary and merges in one. It has no names of
control tokens and nothing that pads a vocabulary to a round size, so a model file has more tokens than it. The ids
above the ranks that stand for texts (user-defined tokens) are taken from the model file.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from pathlib import Path

import tiktoken

from parity_lib.base.errors import ModelFileError
from parity_lib.models.fetch import find_ranks
from parity_lib.records.pins import RankPin
from parity_lib.tokenizers.build import require_unicode
from parity_lib.tokenizers.families import FAMILIES
from parity_lib.tokenizers.metadata import NORMAL, USER_DEFINED, TokenizerMetadata


class RankTokenizer:
    """Byte-pair merges by rank, by tiktoken; texts are composed and cut by the family's own rules.

    Args:
        path: the rank file: lines of a token's bytes in base64, a space, its rank.
        metadata: of the model file; gives the family and the texts of its user-defined tokens.

    Raises:
        ModelFileError: the file is not such a list, or its ranks are not 0, 1, 2, ..
    """

    def __init__(self, path: Path, metadata: TokenizerMetadata) -> None:
        self.token_bytes = _read(path)
        family = FAMILIES[metadata.pre]
        [pattern] = family.patterns
        self._nfc = family.nfc
        self._front, self._back = ([] if added is None else [added] for added in (metadata.bos, metadata.eos))
        texts = enumerate(zip(metadata.tokens, metadata.types, strict=True))
        own = {text: number for number, (text, kind) in texts if kind == USER_DEFINED}
        self._own = frozenset(own)
        self._encoding = tiktoken.Encoding(
            path.stem,
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.token_bytes)},
            special_tokens=own,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, with BOS and EOS as the model file says.

        Raises:
            EngineError: the text is not valid Unicode.
        """
        require_unicode(text)  # tiktoken would replace lone surrogates
        composed = unicodedata.normalize("NFC", text) if self._nfc else text
        ids = self._encoding.encode(composed, allowed_special=self._own, disallowed_special=())
        return [*self._front, *ids, *self._back]


def pin_for(metadata: TokenizerMetadata, pins: tuple[RankPin, ...]) -> RankPin | None:
    """Return the pinned ranks of a file's vocabulary, by its pre-tokenizer and its number of ordinary tokens, or None.

    A vocabulary of the same family and another size is another vocabulary: these ranks say nothing of it.
    """
    size = metadata.types.count(NORMAL)
    return next((pin for pin in pins if (pin.pre, pin.n_tokens) == (metadata.pre, size)), None)


def open_ranks(metadata: TokenizerMetadata, pin: RankPin) -> RankTokenizer | None:
    """Return the tokenizer of pinned ranks, or None if they were not fetched.

    Raises:
        PinError: the file is there and is another one.
    """
    path = find_ranks(pin)
    return None if path is None else RankTokenizer(path, metadata)


def _read(path: Path) -> list[bytes]:
    """Return the bytes of each token, by rank."""
    try:
        pairs = [line.split(b" ") for line in path.read_bytes().splitlines()]
        tokens = [base64.b64decode(token, validate=True) for token, _ in pairs]
        ranks = [int(rank) for _, rank in pairs]
    except (ValueError, binascii.Error) as error:
        raise ModelFileError("is no rank file", place=path, expected="lines of base64, rank", found=error) from error
    if ranks != list(range(len(ranks))):
        raise ModelFileError("the ranks have gaps", place=path, expected="0, 1, 2, ..", found=f"{len(ranks)} lines")
    return tokens
