"""The SHA-256 of a file, remembered while the file is the same."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from parity_lib.base.errors import ModelFileError, RecordError
from parity_lib.base.files import write_atomic
from parity_lib.base.surroundings import cache_dir
from parity_lib.model_file.header import require_file


def sha256_file(path: Path, *, fresh: bool = False) -> str:
    """Return the SHA-256 of a file's content, lower-case hex.

    The result is remembered under ``cache_dir()/sha256`` and used again only while device, inode, size, time of
    modification **and time of change** of the file are the same: a program can set back the first time, not the
    second. A file changed less than two seconds before it was hashed is not remembered, because a second change
    could carry the same times. ``fresh=True`` reads the file in any case.

    Raises ``ModelFileError`` if the file cannot be read.
    """
    path = Path(path).resolve()
    require_file(path)
    try:
        before = path.stat()
        stamp = [before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
        entry = cache_dir() / "sha256" / (hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + ".json")
        if not fresh and (known := _remembered(entry, stamp)) is not None:
            return known
        started_ns = time.time_ns()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(
            "the file cannot be read",
            place=path,
            expected="a file that can be read",
            found=error.strerror or error,
            next_step="correct the path or its permissions",
        ) from error
    if started_ns - max(before.st_mtime_ns, before.st_ctime_ns) > 2_000_000_000:
        _remember(entry, {"path": str(path), "stamp": stamp, "sha256": digest})
    return digest


def _remembered(entry: Path, stamp: list[int]) -> str | None:
    try:
        record = json.loads(entry.read_text())
        return str(record["sha256"]) if record["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a lost or broken memory costs one more reading, nothing else


def _remember(entry: Path, record: Mapping[str, object]) -> None:
    try:
        write_atomic(entry, json.dumps(record).encode())
    except RecordError:
        return  # a read-only cache folder must not stop a judgement
