"""Keep model files in the cache: whole or absent, one maker at a time, each held to its pin or its receipt."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from parity_lib.base.errors import ModelFileError, PinError, RecordError
from parity_lib.base.files import FREE_CACHE, hold, read_bytes, replacing
from parity_lib.base.json_text import dump_page, encode, parse
from parity_lib.base.record import decode_record
from parity_lib.base.surroundings import cache_dir
from parity_lib.engines.machine import machine_class
from parity_lib.model_file.digest import sha256_file
from parity_lib.records.model_receipts import ModelReceipt, TwinReceipt
from parity_lib.records.pins import BY_LLAMA_CPP, FilePin

Receipt = ModelReceipt | TwinReceipt
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
    if pin is not None and pin.accepts(digest):
        return digest
    receipt = read_receipt(path)
    if made_here and receipt is not None and receipt.sha256 == digest:
        return digest
    as_made = receipt.sha256 if receipt is not None else "in a receipt beside it, which cannot be read"
    verb = f"fetch {name}" if kind == "fetch" else "prepare"
    raise PinError(
        "the file is not the pinned one",
        place=f"{name}: {path}",
        expected=f"SHA-256 {' or '.join(pin.known) if pin else as_made}",
        found=f"{digest}, {path.stat().st_size:,} bytes"
        + (f" for {pin.bytes:,}" if pin and pin.bytes != path.stat().st_size else ""),
        next_step=f"unless it was changed on purpose, remove it and run `parity models {verb}`",
    )


def _receipt_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.receipt.json")


def write_receipt(path: Path, receipt: Receipt) -> None:
    """Record what a file, about to become ``path``, is and came from.

    Raises:
        RecordError: a field is not of its type.
        ModelFileError: the receipt cannot be written.
    """
    place = _receipt_path(path)
    decode_record(encode(receipt), type(receipt), place)
    with part_of(place) as part:
        part.write_text(dump_page(receipt))


def read_receipt(path: Path) -> Receipt | None:
    """Return what was recorded when a file was made; None where there is no receipt that can be read.

    A missing or damaged receipt proves nothing: the caller refuses the file, or makes it again.
    """
    place = _receipt_path(path)
    try:
        data = parse(read_bytes(place).decode("utf-8", "replace"), str(place))
        kind: type[Receipt] = ModelReceipt
        if isinstance(data, dict) and "twin_of" in data:
            kind = TwinReceipt
            if data.get("schema") == ModelReceipt.__struct_config__.tag:  # what a twin's receipt bore until 2026-12
                data["schema"] = TwinReceipt.__struct_config__.tag
        return decode_record(data, kind, place)
    except RecordError:
        return None


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
