"""Shows the progress of a nightly run: a bar in a terminal, else plain lines now and then. Also writes the log."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Never, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

PROGRESS_FILE = "progress.json"  # written by a running cell: {"step": .., "done": .., "total": ..}
REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 30.0  # between two lines about the same cell, without a terminal
BAR = "{n_fmt}/{total_fmt} |{bar:24}| {elapsed} {desc}"


@dataclass(slots=True)
class _Running:
    """One cell under way."""

    started: float
    next: float  # time of the next line or redraw
    text: str = "starting"


class Screen:
    """Writes each line to the log and to the stream; draws a bar under them if the stream is a terminal.

    Cells that run side by side call it from threads of their own: each call is whole.

    Args:
        log: file that gets every line, as it is: a divergence stays greppable at the start of its line.
        n_cells: number of cells of the nightly run.
        stream: what a user reads; the process's standard output by default.

    Raises:
        OSError: the log cannot be written.
    """

    def __init__(self, log: Path, n_cells: int, stream: TextIO | None = None) -> None:
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self._stream = sys.stdout if stream is None else stream
        self._n_cells, self._n_done = n_cells, 0
        self._lock = threading.RLock()
        self._running: dict[str, _Running] = {}
        self._bar = _bar(n_cells, self._stream) if self._stream.isatty() else None

    def note(self, line: str) -> None:
        """Write one line into the log only."""
        with self._lock:
            self._log.write(line + "\n")

    def say(self, *lines: str) -> None:
        """Write lines together, into the log and to the stream."""
        with self._lock:
            for line in lines:
                self.note(line)
            self._clear()
            self._put("".join(line + "\n" for line in lines))

    def begin(self, name: str) -> None:
        """Start the clock of a cell."""
        with self._lock:
            now = time.monotonic()
            self._running[name] = _Running(now, now if self._bar is not None else now + PLAIN_SECONDS)

    def end(self, name: str, *, counts: bool = True) -> None:
        """Stop the clock of a cell; ``counts``: the bar moves on."""
        with self._lock:
            self._running.pop(name, None)
            self._n_done += counts

    def tick(self, name: str, folder: Path) -> None:
        """Show the progress of a cell; called many times a second, redraws at fixed intervals."""
        with self._lock:
            now, cell = time.monotonic(), self._running[name]
            if now < cell.next:
                return
            cell.next = now + (PLAIN_SECONDS if self._bar is None else REDRAW_SECONDS)
            cell.text = f"{name}: {read_progress(folder)}, {now - cell.started:.0f} s"
            if self._bar is None:
                self._put(f"  {self._n_done}/{self._n_cells} {cell.text}\n")
            else:
                self._draw(self._bar)

    def close(self) -> None:
        """Remove the bar and close the log."""
        with self._lock:
            if self._bar is not None:
                with contextlib.suppress(OSError):
                    self._bar.close()
            with contextlib.suppress(OSError):  # a full disk: what did not fit into the log was shown
                self._log.close()

    def _draw(self, bar: tqdm[Never]) -> None:
        bar.n = self._n_done
        bar.set_description_str(" | ".join(cell.text for cell in self._running.values()), refresh=False)
        with contextlib.suppress(OSError):
            bar.refresh()

    def _clear(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.clear()

    def _put(self, text: str) -> None:
        # `parity nightly | head` must not end the run: the log has every line.
        with contextlib.suppress(BrokenPipeError):
            self._stream.write(text)
            self._stream.flush()


def _bar(n_cells: int, stream: TextIO) -> tqdm[Never]:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # the default one is shared between processes
    tqdm.monitor_interval = 0  # no thread of its own
    bar: tqdm[Never] = tqdm(total=n_cells, file=stream, bar_format=BAR, leave=False, dynamic_ncols=True, mininterval=0)
    return bar


def read_progress(folder: Path) -> str:
    """Return the step and progress that the cell in ``folder`` reports."""
    try:
        state = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        done, total = int(state["done"]), int(state["total"])
        return f"{state['step']} {done:,} of {total:,}" if total else str(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return "starting"
