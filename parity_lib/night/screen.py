"""What a running night shows: one moving line in a terminal, a few plain lines in a file. Also keeps the log."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

PROGRESS_FILE = "progress.json"  # written by a running cell: {"step": .., "done": .., "total": ..}
REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 30.0  # between two lines about the same cell, where nobody watches
BAR_WIDTH = 24


class Screen:
    """Writes each line to the log and to the stream; draws a bar under them if the stream is a terminal.

    Args:
        log: file that gets every line, as it is: a divergence stays greppable at the start of its line.
        n_cells: how many cells the night has.
        stream: where people look; the process's standard output by default.
    """

    def __init__(self, log: Path, n_cells: int, stream: TextIO | None = None) -> None:
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._n_cells = n_cells
        self._next = 0.0
        self._started = time.monotonic()
        self._shown = ""

    def note(self, line: str) -> None:
        """Write one line into the log only."""
        self._log.write(line + "\n")

    def say(self, line: str) -> None:
        """Write one line for good, into the log and to the stream."""
        self.note(line)
        self._clear()
        self._put(line + "\n")

    def tick(self, number: int, name: str, folder: Path) -> None:
        """Show where cell ``number`` (from 1) stands; called many times a second, draws when it is time."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (REDRAW_SECONDS if self._live else PLAIN_SECONDS)
        text = f"{number}/{self._n_cells} {read_progress(folder)}, {now - self._started:.0f} s: {name}"
        if not self._live:
            if now - self._started > PLAIN_SECONDS:
                self._put(f"  {text}\n")
            return
        filled = round(BAR_WIDTH * (number - 1) / max(self._n_cells, 1))
        line = f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {text}"
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            self._put(f"\r{line}\x1b[K")
            self._shown = line

    def begin(self) -> None:
        """Start the clock of a cell."""
        self._started = time.monotonic()
        self._next = 0.0

    def close(self) -> None:
        """Remove the bar and close the log."""
        self._clear()
        self._log.close()

    def _clear(self) -> None:
        if self._shown:
            self._put("\r\x1b[K")
            self._shown = ""

    def _put(self, text: str) -> None:
        # `parity nightly | head` must not end a night: the log has every line.
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
            self._stream.flush()


def read_progress(folder: Path) -> str:
    """Return what the cell that writes into ``folder`` says it is doing."""
    try:
        state = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        done, total = int(state["done"]), int(state["total"])
        return f"{state['step']} {done:,} of {total:,}" if total else str(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return "starting"
