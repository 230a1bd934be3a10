"""Finds and loads the builds of the candidate that `parity stack build` made, each with its receipt.

A stack has up to two libraries, each with a receipt: the judged one, and one of the same sources with the cargo
feature ``faults``, for red controls. `parity stack build` makes them; `make setup` installs the judged one of
``crates-io``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from parity_lib.base.errors import EngineError, PinError, RecordError
from parity_lib.base.record import load_record
from parity_lib.base.surroundings import cache_dir
from parity_lib.engines.burn import sources
from parity_lib.records.builds import StackReceipt
from parity_lib.records.pins import load_pins
from parity_lib.records.stack_pins import StackPin

Extension = Any  # the module burn_gguf; its types are in burn_gguf/burn_gguf.pyi

RECEIPT, LIBRARY = "receipt.json", "burn_gguf.abi3.so"
AGAIN = "build the stack again: parity stack build"
FAULTS = "faults"  # the cargo feature: faults can be seeded
FORK = Path(__file__).resolve().parents[2] / "fork"
RECIPE = FORK / "patch.py"  # decides what a patched crate holds
FIXES = (FORK / "fixes.py", FORK / "fixes.toml")  # decide what a fixed source holds


def stacks_dir() -> Path:
    """Return the folder of all builds; it may not exist yet."""
    return cache_dir() / "stacks"


def key(pin: StackPin, *, faults: bool = False) -> str:
    """Return the name of the build that belongs to this checkout: 16 hex digits over everything that decides it.

    Args:
        pin: the stack.
        faults: of the library in which faults can be seeded.
    """
    manifest = sources.manifest(pin.id)
    source = pin.source
    parts = {
        "stack": pin.id,
        "source_sha256": sources.source_sha256(manifest),
        "lock_sha256": sources.lock_sha256(manifest),
        "recipe_sha256": recipe_sha256(),
        "revision": source.revision if source is not None else "",
        "fork_sha256": source.sha256 if source is not None else "",
    } | ({"feature": FAULTS} if faults else {})
    parts |= {"fixes": " ".join(pin.fixes), "fixes_sha256": fixes_sha256()} if pin.fixes else {}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def recipe_sha256() -> str:
    """Return the SHA-256 of the code that prepares patched crates."""
    return hashlib.sha256(RECIPE.read_bytes()).hexdigest()


def fixes_sha256() -> str:
    """Return the SHA-256 of the fixes and of the code that writes them into a source."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in FIXES)).hexdigest()


def folder(pin: StackPin, *, faults: bool = False) -> Path:
    """Return where the build of this checkout's sources lies, or would lie."""
    return stacks_dir() / pin.id / key(pin, faults=faults)


def find(pin: StackPin, *, faults: bool = False) -> StackReceipt:
    """Return the receipt of the build that belongs to this checkout, after its library was read against it.

    Args:
        pin: the stack.
        faults: the library in which faults can be seeded; else the judged one, in which none can.

    Raises:
        EngineError: it is not built.
        PinError: its receipt cannot be read, or the library is not the one that was built.
    """
    place = folder(pin, faults=faults)
    name = _name(pin, faults=faults)
    if not (place / RECEIPT).is_file():
        others = sorted(path.parent.name for path in place.parent.glob(f"*/{RECEIPT}"))
        raise EngineError(
            "the stack is not built" if not faults else "the library with faults is not built",
            place=name,
            expected=f"a build of these sources ({place.name})",
            found=f"builds of other sources only ({', '.join(others)})" if others else "none",
            next_step=how(pin, faults=faults),
        )
    receipt = read(place / RECEIPT)
    library = place / LIBRARY
    found = hashlib.sha256(library.read_bytes()).hexdigest() if library.is_file() else "no library"
    if receipt.key != place.name or found != receipt.library_sha256 or (FAULTS in receipt.features) is not faults:
        raise PinError(
            "the library of the stack is not the one that was built",
            place=name,
            expected=f"{place.name}, {receipt.library_sha256}",
            found=f"{receipt.key}, {found}, features {' '.join(receipt.features) or 'none'}",
            next_step=how(pin, faults=faults),
        )
    return receipt


def _name(pin: StackPin, *, faults: bool) -> str:
    return f"stack {pin.id}" + (", with faults" if faults else "")


def how(pin: StackPin, *, faults: bool = False) -> str:
    """Return the command that builds a stack."""
    command = f"parity stack build {pin.id}" + (" --faults" if faults else "")
    if pin.source is None:
        return command
    where = f"a checkout or git directory of {pin.source.repository} that has {pin.source.revision[:12]}"
    return f"{command} --source DIR ({where})"


def read(path: Path) -> StackReceipt:
    """Read a receipt; raise ``PinError`` if it is damaged or of another version."""
    try:
        return load_record(path, StackReceipt)
    except RecordError as error:
        raise PinError(
            "the receipt of a stack's build cannot be read",
            place=path,
            expected=error.expected,
            found=error,
            next_step=AGAIN,
        ) from error


def load(stack: str, *, faults: bool = False) -> tuple[Extension, StackReceipt]:
    """Import the extension of a stack from its folder; return it with its receipt.

    For workers: all stacks have one module name, and each brings an allocator whose thread-local memory is reserved
    when it is loaded, so that a process can hold two or three of them and no more. Others ask ``find``.

    Raises:
        UsageError: there is no such stack.
        EngineError: it is not built, or cannot be imported.
        PinError: as ``find``.
    """
    pin = load_pins().stack(stack)
    receipt = find(pin, faults=faults)
    path = folder(pin, faults=faults) / LIBRARY
    spec = importlib.util.spec_from_file_location("burn_gguf", path)
    assert spec is not None, "a path that ends in .so has a loader"
    assert spec.loader is not None, "a path that ends in .so has a loader"
    try:
        extension = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(extension)
    except ImportError as error:
        raise EngineError(
            "the library of the stack cannot be imported",
            place=_name(pin, faults=faults),
            expected="the module burn_gguf",
            found=error,
            next_step=how(pin, faults=faults),
        ) from error
    return extension, receipt
