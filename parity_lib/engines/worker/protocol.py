"""What every engine has in common: it is open until it is closed, serves a ``with``, and refuses what it cannot feed.

An engine turns token ids into logits and taps. It does not sample, compare, print or judge itself. Each runs inside its
own worker process. A *spool* is a raw file of little-endian float32 logit rows, ``(n_rows, n_vocab)``, C-contiguous,
sequences one after the other, one row for each fed token, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from parity_lib.base.errors import EngineError
from parity_lib.model_file.header import not_opened, require_file


class Engine:
    """An engine that is open until ``close``; a closed one refuses every other call."""

    _is_open = True

    def close(self) -> None:
        """Free what the engine holds. Every other call is refused from now on; a second ``close`` does nothing."""
        if self._is_open:
            self._is_open = False
            self._free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _free(self) -> None:
        """Free what the engine holds; called once."""

    def _require_open(self) -> None:
        if not self._is_open:
            raise EngineError("the engine is closed", place=self._place, next_step="open the engine again")

    @property
    def _place(self) -> str:
        """Return what an error message calls the engine."""
        return type(self).__name__


class OnOneFile(Engine):
    """An engine on one model file.

    Args:
        path: a GGUF file.

    Raises:
        ModelFileError: there is no such file, it cannot be opened, or it is no regular one.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = require_model(Path(path))

    @property
    def _place(self) -> str:
        return self._path.name

    def _checked(
        self, sequences: Sequence[Sequence[int]], limit: int, n_vocab: int, n_tokens: Sequence[int] | None = None
    ) -> list[list[int]]:
        """Return the sequences as lists of plain ints.

        Args:
            sequences: token ids, each sequence from an empty cache.
            limit: positions of the context.
            n_vocab: ids of the vocabulary.
            n_tokens: for each sequence, the number of tokens that it is continued by; 1 is read off its last row.

        Raises:
            EngineError: the engine is closed, there is no sequence, one is empty or longer than the context, an id is
                no token, or a number of tokens is missing or below 1.
        """
        self._require_open()
        numbers = [1] * len(sequences) if n_tokens is None else list(n_tokens)
        if not sequences or len(numbers) != len(sequences) or min(numbers) < 1:
            raise EngineError(
                "no sequence was given, or no number of tokens for one",
                place=self._place,
                expected="at least one sequence, and at least one token for each",
                found=f"{len(sequences)} sequences, numbers of tokens {numbers}",
                next_step="correct the plan or the prompts",
            )
        rows = [[int(token) for token in tokens] for tokens in sequences]
        for index, (tokens, n) in enumerate(zip(rows, numbers, strict=True)):
            place = f"{self._place}, sequence {index}"
            check_ids(tokens, n_vocab, place)
            if not 0 < len(tokens) <= limit - (n - 1):
                raise EngineError(
                    "a sequence does not fit the model's context",
                    place=place,
                    expected=f"1 to {limit} tokens",
                    found=f"{len(tokens)}" + (f" of the prompt and {n - 1} generated" if n > 1 else ""),
                    next_step="shorten the prompt or generate fewer tokens",
                )
        return rows


def require_model(path: Path) -> Path:
    """Return the path of a model file.

    Raises:
        ModelFileError: there is no such file, it cannot be opened, or it is no regular one.
    """
    require_file(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise not_opened(path, error) from error
    return path


def check_ids(ids: Sequence[int], n_vocab: int, place: str) -> None:
    """Raise ``EngineError`` if an id is outside of the vocabulary.

    Args:
        ids: token ids.
        n_vocab: ids of the vocabulary.
        place: of the ids, for the message.
    """
    for at, token in enumerate(ids):
        if not 0 <= token < n_vocab:
            raise EngineError(
                "a token id is outside of the vocabulary",
                place=f"{place}, token {at}",
                expected=f"0 to {n_vocab - 1}",
                found=token,
                next_step="tokenise with this model's own vocabulary",
            )
