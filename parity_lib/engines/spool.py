"""Write logit rows to a spool: a raw file of little-endian float32, whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from io import RawIOBase
from pathlib import Path

from parity_lib.base.errors import EngineError
from parity_lib.base.files import replacing
from parity_lib.base.progress import Progress
from parity_lib.records.traces import F32


def new_spool(path: Path, n_bytes: int | None = None) -> AbstractContextManager[Path]:
    """Return a context that gives a path to write rows to; it becomes ``path`` if the block ends well.

    Args:
        path: the spool; an older one is replaced.
        n_bytes: its size, for the message, where it is known.

    Raises:
        EngineError: at the end of the block, the disk is full or the file cannot be written.
    """
    return replacing(
        path,
        kind=EngineError,
        what="the spool of logit rows cannot be written",
        expected="room and permission for the rows" if n_bytes is None else f"{n_bytes} bytes of room",
        next_step="free space, or choose another output folder",
        sync=False,  # it is gone before a power cut could matter
    )


class SpoolWriter:
    """Takes blocks of rows in fed order.

    Args:
        file: where they go.
        n_rows: rows that must have been written at the end.
        n_vocab: logits in a row.
        progress: called with (rows written, ``n_rows``) after each block.
    """

    def __init__(self, file: RawIOBase, n_rows: int, n_vocab: int, progress: Progress) -> None:
        self._file, self._n_rows, self._n_vocab, self._progress = file, n_rows, n_vocab, progress
        self._done = 0

    def write(self, rows: F32) -> None:
        """Append ``rows``, ``(n, n_vocab)`` float32, C-contiguous, straight from the engine's buffer."""
        assert rows.shape[1:] == (self._n_vocab,)
        data = rows.data.cast("B")
        while data:
            data = data[self._file.write(data) :]  # one write takes at most 2 GiB
        self._done += len(rows)
        self._progress(self._done, self._n_rows)

    def finish(self, path: Path) -> None:
        """Raise ``EngineError`` unless all expected rows of the spool ``path`` were written."""
        if self._done != self._n_rows:
            raise EngineError(
                "the engine wrote another number of rows",
                place=path,
                expected=self._n_rows,
                found=self._done,
                next_step="this is a defect of the engine's wrapper",
            )


@contextmanager
def spool_writer(path: Path, n_rows: int, n_vocab: int, progress: Progress) -> Iterator[SpoolWriter]:
    """Yield a :class:`SpoolWriter`; the spool appears under ``path`` when all expected rows are there.

    Raises:
        EngineError: another number of rows was written, or as :func:`new_spool`.
    """
    with new_spool(path, n_rows * n_vocab * 4) as part, part.open("wb", buffering=0) as file:
        writer = SpoolWriter(file, n_rows, n_vocab, progress)
        yield writer
        writer.finish(path)
