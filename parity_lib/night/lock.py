"""One night in one folder: a lock that the kernel lets go of when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from parity_lib.errors import RecordError, UsageError

LOCK = ".lock"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a night's folder; two runs in one would overwrite each other's cells.

    Raises:
        UsageError: another process holds it.
        RecordError: the lock cannot be written.
    """
    path = folder / LOCK
    try:
        file = path.open("a+")
    except OSError as error:
        raise RecordError(
            "the run's folder cannot be locked",
            place=path,
            expected="a folder that can be written",
            found=error.strerror or error,
            next_step="give another --out, or put the folder's permissions right",
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UsageError(
                "another run writes into this folder",
                place=folder,
                expected="a folder that nobody writes into",
                found=f"process {file.read().strip() or 'unknown'}, still running",
                next_step="wait for it, or start a night of your own without --resume",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Return whether a living process holds the folder."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
