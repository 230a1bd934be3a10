"""Reports progress: to the nightly run that started the cell, else as a terminal bar, else as periodic log lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from parity_lib.base.files import replacing

Progress = Callable[[int, int], None]
"""Called with (done, total) in rows; may raise ``KeyboardInterrupt`` to stop the engine cleanly."""


FILE_NAME = "progress.json"  # exists beforehand if a nightly run reads it: {"step": .., "done": .., "total": ..}
WRITE_SECONDS = 0.5
LINE_SECONDS = 10.0


class CellProgress:
    """Makes the progress callbacks of a cell's steps.

    Args:
        folder: the cell's output folder. If a progress file lies there, it is kept up to date and nothing is printed:
            in an executed notebook a bar would stand as a hundred lines.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._read = self._file.exists()
        self._live = not self._read and sys.stderr.isatty()

    def step(self, name: str) -> Progress:
        """Return a progress callback (done, total) in rows for one step of a cell."""
        started = time.monotonic()
        last = started

        def show(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            wait = WRITE_SECONDS if self._read or self._live else LINE_SECONDS
            if now - last >= wait or (self._live and done >= total):
                last = now
                self._show(name, done, total, now - started)

        if self._read:
            self._write(name, 0, 0)
        return show

    def _show(self, name: str, done: int, total: int, seconds: float) -> None:
        if self._read:
            self._write(name, done, total)
            return
        text = f"{name}: {done:,} of {total:,} rows, {seconds:.0f} s"
        sys.stderr.write(f"\r{text}\x1b[K{chr(10) if done >= total else ''}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def _write(self, name: str, done: int, total: int) -> None:
        with replacing(self._file, sync=False) as part:
            part.write_text(json.dumps({"step": name, "done": done, "total": total}))
