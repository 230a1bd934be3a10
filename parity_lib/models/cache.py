"""Keep model files in the cache: whole or absent, one maker at a time, each held to its pin or its receipt."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from parity_lib.base.errors import ModelFileError, PinError
from parity_lib.base.files import FREE_CACHE, hold, replacing
from parity_lib.base.surroundings import cache_dir
from parity_lib.engines.machine import machine_class
from parity_lib.model_file.digest import sha256_file
from parity_lib.records.pins import BY_LLAMA_CPP, FilePin

SCHEMA = "parity/model-receipt/1"
Say = Callable[[str], None]
"""Called with a line for the user before something slow begins."""
SPARE_BYTES = 256 << 20  # left free on the disk beside what a file needs


def quiet(line: str) -> None:
    """Ignore the message."""


def models_dir() -> Path:
    """Return the folder of the model files, in the cache. It may not exist yet."""
    return cache_dir() / "models"


def check_digest(path: Path, pin: FilePin | None, name: str, kind: str, *, fresh: bool = False) -> str:
    """Return the file's SHA-256 after finding it pinned, or, where this machine class has no pin, as it was made.

    What llama.cpp makes may differ between machine classes. A class without a pin is held to the receipt that
    was written when the file was made; rung T0 then reports "unpinned".
    """
    digest = sha256_file(path, fresh=fresh)
    made_here = pin is None or (kind in BY_LLAMA_CPP and machine_class() not in pin.made)
    if (pin is not None and pin.accepts(digest)) or (made_here and read_receipt(path).get("sha256") == digest):
        return digest
    verb = f"fetch {name}" if kind == "fetch" else "prepare"
    raise PinError(
        "the file is not the pinned one",
        place=f"{name}: {path}",
        expected=f"SHA-256 {' or '.join(pin.known) if pin else read_receipt(path).get('sha256', 'as in its receipt')}",
        found=f"{digest}, {path.stat().st_size:,} bytes"
        + (f" for {pin.bytes:,}" if pin and pin.bytes != path.stat().st_size else ""),
        next_step=f"unless it was changed on purpose, remove it and run `parity models {verb}`",
    )


def _receipt_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.receipt.json")


def write_receipt(path: Path, made: Path, fields: Mapping[str, object]) -> None:
    """Record what ``made``, about to become ``path``, is and came from."""
    record = {
        "schema": SCHEMA,
        "sha256": sha256_file(made, fresh=True),
        "bytes": made.stat().st_size,
        "machine_class": machine_class(),
        **fields,
    }
    with part_of(_receipt_path(path)) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")


def read_receipt(path: Path) -> dict[str, Any]:
    """Return what was recorded when the file was made; empty where there is no readable receipt."""
    try:
        record = json.loads(_receipt_path(path).read_text())
    except (OSError, ValueError):
        return {}  # no receipt proves nothing: the caller refuses the file
    return record if isinstance(record, dict) and record.get("schema") == SCHEMA else {}


def need_space(folder: Path, n_bytes: int) -> None:
    """Raise ``ModelFileError`` unless the folder's disk holds so many bytes more, and some to spare."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE_BYTES:
        raise ModelFileError(
            "there is not enough space on the disk",
            place=folder,
            expected=f"{(n_bytes + SPARE_BYTES) / 1e6:,.0f} MB",
            found=f"{free / 1e6:,.0f} MB",
            next_step=FREE_CACHE,
        )


def part_of(path: Path) -> AbstractContextManager[Path]:
    """Return a context that gives a path beside ``path``; it becomes ``path`` if the block ends well.

    Raises:
        ModelFileError: at the end of the block, the file cannot be written.
    """
    return replacing(path, kind=ModelFileError, next_step=FREE_CACHE)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock of one file, across processes; the kernel lets go of it when a process dies.

    Whoever holds it is the only maker, so what a killed one left behind is removed first.
    """
    step = "point PARITY_CACHE to a folder of your own"
    with hold(path.parent / f".{path.name}.lock", kind=ModelFileError, next_step=step):
        name = glob.escape(path.name)
        for pattern in (f".{name}.*.part", f"..{name}.*.part"):  # ours, and the quantiser's part of our part
            for left in path.parent.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
