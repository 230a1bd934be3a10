"""Write logit rows to a spool: a raw file of little-endian float32, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from parity_lib.engines.protocol import Progress
from parity_lib.errors import EngineError
from parity_lib.traces import F32


class SpoolWriter:
    """Takes blocks of rows in fed order; the file appears under its name when all expected rows are there.

    Args:
        path: the spool; an older one is replaced.
        n_rows: rows that must have been written at the end.
        n_vocab: logits in a row.
        progress: called with (rows written, ``n_rows``) after each block.
    """

    def __init__(self, path: Path, n_rows: int, n_vocab: int, progress: Progress) -> None:
        self._path, self._n_rows, self._n_vocab, self._progress = path, n_rows, n_vocab, progress
        self._part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._done = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("wb", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def write(self, rows: F32) -> None:
        """Append ``rows``, ``(n, n_vocab)`` float32, C-contiguous, straight from the engine's buffer.

        Raises:
            EngineError: the disk is full or the file cannot be written.
        """
        assert self._file is not None, "a spool is used inside of its with block"
        assert rows.shape[1:] == (self._n_vocab,)
        data = rows.data.cast("B")
        try:
            while data:
                data = data[self._file.write(data) :]  # one write takes at most 2 GiB
        except OSError as error:
            raise self._unwritable(error) from error
        self._done += len(rows)
        self._progress(self._done, self._n_rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()
        try:
            if kind is None and self._done != self._n_rows:
                raise EngineError(
                    "the engine wrote another number of rows",
                    place=self._path,
                    expected=self._n_rows,
                    found=self._done,
                    next_step="this is a defect of the engine's wrapper",
                )
            if kind is None:
                self._part.replace(self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> EngineError:
        return EngineError(
            "the spool of logit rows cannot be written",
            place=self._path,
            expected=f"{self._n_rows * self._n_vocab * 4} bytes of room",
            found=error,
            next_step="free space, or choose another output folder",
        )
