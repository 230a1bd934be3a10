"""Atomic file writes, appended lines, and one kind of lock."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from parity_lib.base.errors import ParityError, RecordError, UsageError

LOCK = ".lock"  # of a folder
FREE = "choose another folder with --out, or free some space"
FREE_CACHE = "free some space, or point PARITY_CACHE to another disk"


@contextmanager
def replacing(
    path: Path,
    *,
    kind: type[ParityError] = RecordError,
    what: str = "cannot be written",
    expected: object = None,
    next_step: str = FREE,
    sync: bool = True,
) -> Iterator[Path]:
    """Yield a path beside ``path``: the file or folder written there becomes ``path`` at the end of the block.

    If anything goes wrong it is removed, and what stood under ``path`` stays. The folder of ``path`` is made.

    Args:
        path: the file or folder to replace.
        kind: class of the error below.
        what: its words, as its other fields.
        expected: what the disk should have allowed.
        next_step: what to do where it did not.
        sync: survive a power cut; without it, large files of the current run are written faster.

    Raises:
        RecordError: (or ``kind``) the block, the flush or the renaming raised ``OSError``.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(part)
        yield part
        put(part, path, sync=sync)
    except OSError as error:
        raise kind(what, place=path, expected=expected, found=error.strerror or error, next_step=next_step) from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be what was unwritable
            _remove(part)


def put(part: Path, path: Path, *, sync: bool = True) -> Path:
    """Rename a finished file or folder to ``path``, in the place of what stands there; return ``path``.

    For what another program made under a name of its own; :func:`replacing` ends so too.

    Args:
        part: what is finished, on the same disk.
        path: its new name.
        sync: survive a power cut.

    Raises:
        OSError: it cannot be flushed or renamed.
    """
    if sync:
        _flush(part)
    if part.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    part.replace(path)
    if sync:
        _flush(path.parent)
    return path


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk (``fsync``)."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash or power cut it is complete or absent.

    Raises:
        RecordError: the folder cannot be made or written, or the disk is full; an older file stays as it was.
    """
    with replacing(path) as part:
        part.write_bytes(data)


def hold(
    path: Path,
    busy: Callable[[str], None] | None = None,
    *,
    kind: type[ParityError] = RecordError,
    next_step: str = "give another --out, or put the folder's permissions right",
) -> IO[bytes]:
    """Lock the file ``path`` exclusively and return it open; closing it, or ``with``, releases the lock.

    Every lock of this project is this one: ``filelock``'s native, exclusive lock of an open file. While it is held,
    another call for the same path waits, or ``busy`` refuses it, also in the same process. The kernel drops the lock
    when the process ends, however it ends. The lock file stays, and holds the process id of its last holder.

    Args:
        path: the lock file; its folder is made if need be.
        busy: called with the holder's process id, or ``unknown``, if the lock is not free; raises to refuse the
            caller, returns to let it wait.
        kind: class of the error below.
        next_step: its last words.

    Raises:
        RecordError: (or ``kind``) the file cannot be opened or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(path.open("ab+", buffering=0))
            if not lock_descriptor(file.fileno(), blocking=False):
                if busy is not None:
                    file.seek(0)
                    busy(file.read(32).decode("ascii", "replace").strip() or "unknown")
                lock_descriptor(file.fileno())
            opened.pop_all()
    except OSError as error:
        raise kind(
            "cannot be locked",
            place=path,
            expected="a folder that can be written",
            found=error.strerror or error,
            next_step=next_step,
        ) from error
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, only without a name
        file.truncate(0)
        file.write(f"{os.getpid()}\n".encode())
    return file


def hold_folder(folder: Path, next_step: str) -> IO[bytes]:
    """Return the lock of an output folder, held as by :func:`hold`: two runs would overwrite each other's records.

    Raises:
        UsageError: another run holds it.
        RecordError: it cannot be locked.
    """

    def refuse(holder: str) -> None:
        raise UsageError(
            "another run writes into this folder",
            place=folder,
            expected="a folder that no other run is writing to",
            found=f"process {holder}, still running",
            next_step=next_step,
        )

    return hold(folder / LOCK, refuse)


def is_held(folder: Path) -> bool:
    """Return whether a living process holds the lock of a folder."""
    try:
        with (folder / LOCK).open("rb") as file:
            return not lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises ``RecordError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError("cannot be read", place=path, found=error.strerror or error) from error


def append(path: Path, data: bytes) -> None:
    """Append whole lines under a lock, in one write; a line that a crash cut short is ended first.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            lock_descriptor(file.fileno())
            end = file.seek(0, os.SEEK_END)
            if end and data:
                file.seek(end - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RecordError("cannot be written", place=path, found=error.strerror or error, next_step=FREE) from error
