"""The folder of a cell while it runs: held by one process, and empty of an earlier run's records."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from parity_lib.errors import RecordError, UsageError

LOCK = ".lock"
RECORDS = (
    *("verdict.json", "divergences.jsonl", "bands.toml", "spread.json"),
    *("twin.npz", "twin.json", "native.npz", "native.json"),
)

# Locks of this process by their path. The kernel lets go of them when the process ends, however it ends.
_held: dict[Path, int] = {}


def take(folder: Path) -> None:
    """Make the output folder, hold it, and clear it of an earlier run's record, which must not pass for this one's.

    Raises:
        UsageError: another process writes into it. Nothing in it was touched.
        RecordError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder)
        for name in RECORDS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(
            "the output folder cannot be written",
            place=folder,
            expected="a folder of one's own",
            found=error.strerror or error,
            next_step="give another --out, or put the folder's permissions right",
        ) from error


def let_go(folder: Path) -> None:
    """Let another process write into the folder; does nothing where it is not held."""
    file = _held.pop(folder.resolve() / LOCK, None)
    if file is not None:
        os.close(file)


def _hold(folder: Path) -> None:
    """Lock the folder for this process. A notebook that opens its cell again holds it already."""
    path = folder.resolve() / LOCK
    mine = _held.get(path)
    if mine is not None and path.exists() and os.fstat(mine).st_ino == path.stat().st_ino:
        return
    let_go(folder)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(file, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(file)
        raise UsageError(
            "another run writes into this folder",
            place=folder,
            expected="a folder that nobody writes into",
            found=f"process {holder}, still running",
            next_step="wait for it, or give another --out",
        ) from error
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, only without a name
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
    _held[path] = file
