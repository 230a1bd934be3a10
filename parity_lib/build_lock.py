"""One build of a thing at a time: who comes second waits, and finds what the first one has made."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be.

    Args:
        folder: where the thing will lie.
        what: who may hold it already, for the line that says what is waited for.
        say: gets that line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for {what}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
