"""Keep what the reference computed, under everything that can change it, until the space is wanted for something newer.

An entry is a folder of the cache, whole or absent: ``record.json`` (the fields that it is kept under, the data, the run
that made it) and ``rows.f32``. Using it costs no trust: the fields are compared, and every row is hashed, which its
trace needs anyway. What does not hold is refused by name, removed, and computed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError, ModelFileError, ParityError, RecordError, UsageError
from parity_lib.base.files import replacing
from parity_lib.base.json_text import dump_line, encode
from parity_lib.base.record import decode_record
from parity_lib.base.surroundings import cache_dir
from parity_lib.cell.rows import Rows
from parity_lib.models.cache import lock
from parity_lib.records.runs import LlamaRun
from parity_lib.records.traces import Position

SCHEMA = "parity/kept-reference/1"
LIMIT = "PARITY_TRACES_GB"  # environment variable: how much may be kept; 0 keeps nothing
DEFAULT_GB = 30.0
KEEP_FREE = 4 << 30  # bytes of the disk that the cache leaves free: running cells write their rows first
RECORD, ROWS, REFUTED = "record.json", "rows.f32", "refuted"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of the disk that is written to, never of the cache
ENTRY = re.compile(r"[a-z0-9]+-[0-9a-f]{32}")


@dataclass(frozen=True, eq=False)
class Kept:
    """What one step of the reference gave: plain data, and rows where it made rows."""

    data: Mapping[str, Any]
    rows: Rows | None = None

    def differences(self, other: Kept) -> list[str]:
        """Compare a recomputation bit by bit; return one sentence for each difference."""
        found = [f"other {name}" for name in self.data if dump_line(self.data[name]) != dump_line(other.data.get(name))]
        if self.rows is None or other.rows is None:
            return found
        if self.rows.positions != other.rows.positions or not np.array_equal(self.rows.fed_id, other.rows.fed_id):
            return [*found, "rows of other positions or fed tokens"]
        unequal = np.flatnonzero((self.rows.digests != other.rows.digests).any(axis=1))
        if len(unequal):
            prompt_idx, token_idx = self.rows.positions[int(unequal[0])]
            n, of = len(unequal), len(self.rows.positions)
            found.append(f"{n} of {of} rows have other bits, the first at prompt {prompt_idx} token {token_idx}")
        return found


@dataclass
class Slot:
    """One place of the cache while its lock is held.

    ``notes`` gets a sentence for everything that the reader should know.
    """

    folder: Path
    fields: Mapping[str, Any]
    limit_bytes: float
    notes: list[str] = field(default_factory=list)

    def load(self, rows_at: Path) -> Kept | None:
        """Return the cached result, its rows linked to ``rows_at``; None if there is none or it is damaged.

        Every row is hashed and compared with the digest that was stored beside it.

        Raises:
            EngineError: there is no room for the rows at ``rows_at``; the entry stays.
        """
        if not self.folder.exists():
            return None
        try:
            kept = _load(self.folder, self.fields, rows_at)
        except EngineError:
            raise
        except (OSError, ValueError, KeyError, TypeError, ParityError) as error:
            self.notes.append(f"the cached {self.fields['part']} was refused, removed and computed again: {error}")
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        with contextlib.suppress(OSError):  # without an access time the entry may be evicted early
            os.utime(self.folder / RECORD)
        return kept

    def store(self, kept: Kept) -> None:
        """Cache a result; if that is not possible, add a note: the cell does not depend on it."""
        try:
            record = json.dumps(_record(kept, self.fields)) + "\n"
            size = len(record) + (0 if kept.rows is None else kept.rows.spool.stat().st_size)
            if size > self.limit_bytes:
                self.notes.append(f"the {self.fields['part']} was not cached: larger than {LIMIT} allows")
                return
            with replacing(self.folder, sync=False) as part:
                part.mkdir()
                if kept.rows is not None:
                    _link(kept.rows.spool, part / ROWS)
                    (part / ROWS).chmod(0o444)
                (part / RECORD).write_text(record)
            _make_room(self.folder, self.limit_bytes)
        except (RecordError, OSError) as error:
            reason = error.found if isinstance(error, RecordError) else error.strerror or error
            self.notes.append(f"the {self.fields['part']} was not cached: {reason}")

    def refute(self) -> None:
        """Remove an entry that a recomputation contradicts; keep its record, without rows, beside the cache."""
        with contextlib.suppress(OSError):
            aside = self.folder.parent / REFUTED
            aside.mkdir(exist_ok=True)
            (self.folder / RECORD).replace(aside / f"{self.folder.name}.json")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_slot(fields: Mapping[str, Any], notes: list[str]) -> Iterator[Slot | None]:
    """Lock the cache slot of these fields: a second process waits, then finds the result. None without a usable cache.

    Args:
        fields: everything that can change the result; ``part`` names what it is, in lower-case letters and digits.
        notes: gets a sentence if the cache cannot be used.

    Raises:
        UsageError: the limit in the environment is no number.
    """
    fields = encode({"schema": SCHEMA, **fields})
    limit = limit_bytes()
    digest = hashlib.sha256(dump_line(fields).encode()).hexdigest()
    folder = traces_dir() / f"{fields['part']}-{digest[:32]}"
    with contextlib.ExitStack() as held:
        slot: Slot | None = None
        try:
            if limit > 0:
                held.enter_context(lock(folder))
                slot = Slot(folder, fields, limit, notes)
            else:
                notes.append(f"the {fields['part']} was not cached: {LIMIT} is 0")
        except ModelFileError as error:
            notes.append(f"the {fields['part']} was computed without the cache: {error}")
        yield slot


def traces_dir() -> Path:
    """Return the folder of the entries. It may not exist yet."""
    return cache_dir() / "traces"


def limit_bytes() -> float:
    """Return how many bytes the entries may take together. Raises ``UsageError`` for what is no number."""
    text = os.environ.get(LIMIT, str(DEFAULT_GB))
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e9:
        raise UsageError("not a size", place=LIMIT, expected="gigabytes, 0 or more", found=text)
    return found * 1e9


def _record(kept: Kept, fields: Mapping[str, Any]) -> dict[str, Any]:
    record = {"fields": fields, "data": encode(kept.data), "rows": None}
    if kept.rows is not None:
        rows = kept.rows
        record["rows"] = {
            "run": encode(rows.run),
            "n_vocab": rows.n_vocab,
            "positions": [list(p) for p in rows.positions],
            "fed_id": rows.fed_id.tolist(),
            "sha256": [digest.tobytes().hex() for digest in rows.digests],
        }
    return {"sha256": _digest(record), **record}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_line(record).encode()).hexdigest()


def _load(folder: Path, fields: Mapping[str, Any], rows_at: Path) -> Kept:
    record = json.loads((folder / RECORD).read_text())
    stated = record.pop("sha256")
    if stated != _digest(record):
        raise ValueError("its record was changed since it was written")
    if record["fields"] != fields:
        other = [name for name in fields if record["fields"].get(name) != fields[name]]
        raise ValueError(f"it is of another {', '.join(other) or 'kind'}")
    if record["rows"] is None:
        return Kept(record["data"])
    found = record["rows"]
    _bring(folder / ROWS, rows_at)
    positions = tuple(Position(*p) for p in found["positions"])
    expected, size = 4 * found["n_vocab"] * len(positions), rows_at.stat().st_size
    if size != expected:
        raise ValueError(f"its rows have {size} bytes instead of {expected}")
    fed_id = np.array(found["fed_id"], np.int32)
    rows = Rows(decode_record(found["run"], LlamaRun, "run"), rows_at, found["n_vocab"], positions, fed_id)
    stored = np.frombuffer(bytes.fromhex("".join(found["sha256"])), np.uint8).reshape(-1, 32)
    damaged = np.flatnonzero((rows.digests != stored).any(axis=1))
    if len(damaged):
        prompt_idx, token_idx = positions[int(damaged[0])]
        n = f"{len(damaged)} of {len(positions)} rows"
        raise ValueError(f"{n} do not have their digest, the first is prompt {prompt_idx} token {token_idx}")
    return Kept(record["data"], rows)


def _bring(source: Path, rows_at: Path) -> None:
    """Link the cached rows to ``rows_at``. Raises ``EngineError`` if the disk there is full."""
    try:
        rows_at.parent.mkdir(parents=True, exist_ok=True)
        rows_at.unlink(missing_ok=True)
        _link(source, rows_at)
    except OSError as error:
        with contextlib.suppress(OSError):  # remove the partial file, so that a full disk recovers
            rows_at.unlink(missing_ok=True)
        if error.errno not in NO_ROOM:
            raise
        raise EngineError(
            "the spool of logit rows cannot be written",
            place=rows_at,
            expected="room and permission for the rows",
            found=error.strerror or error,
            next_step="free space, or choose another output folder",
        ) from error


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, so that it survives the removal of ``source``; copy it if it is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _size(folder: Path) -> int:
    """Return the size of an entry in bytes; 0 if another process has just removed it."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except OSError:
        return 0


def _make_room(newest: Path, limit: float) -> None:
    """Remove the entries that were not used for longest until all fit and the disk has room; never the newest one.

    A cell that uses a removed entry keeps its own link to the rows.
    """
    entries = [path for path in newest.parent.iterdir() if ENTRY.fullmatch(path.name) and path.is_dir()]
    used: dict[Path, float] = {}
    for path in entries:
        with contextlib.suppress(OSError):
            used[path] = (path / RECORD).stat().st_mtime
    total = sum(_size(path) for path in used)
    limit = min(limit, total + shutil.disk_usage(newest).free - KEEP_FREE)
    for path in sorted(used, key=used.__getitem__):
        if total <= limit:
            return
        if path != newest:
            total -= _size(path)
            shutil.rmtree(path, ignore_errors=True)
