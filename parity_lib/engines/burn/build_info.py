"""Check what the Rust extension was built from."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.json_text import encode
from parity_lib.base.record import decode_record
from parity_lib.engines.burn import stacks
from parity_lib.engines.burn.sources import CRATES_IO, NATIVE, lock_sha256, manifest, source_sha256
from parity_lib.records.builds import BurnBuild
from parity_lib.records.pins import load_pins

Extension = Any  # the module burn_gguf, or an object of it; its types are in burn_gguf/burn_gguf.pyi

__all__ = [
    "CRATES_IO",
    "JUDGED",
    "NATIVE",
    "WITH_FAULTS",
    "check_built",
    "check_sources",
    "library",
    "load",
    "source_sha256",
]

JUDGED, WITH_FAULTS = "without faults", "with faults"  # the two libraries of a stack; only the first is ever judged
REBUILD = "run `make setup`, which builds the extension again"


def check_sources(build: BurnBuild, native: Path = NATIVE) -> None:
    """Raise ``PinError`` if ``native`` holds other sources, or another lock, than ``build`` was made from."""
    own = manifest(build.stack, native)
    found = {"source_sha256": source_sha256(own, native), "lock_sha256": lock_sha256(own)}
    for name, digest in found.items():
        if getattr(build, name) != digest:
            raise PinError(
                "the Rust extension is stale: it was built from other sources",
                place=f"burn_gguf, {name}",
                expected=digest,
                found=getattr(build, name),
                next_step=REBUILD if build.stack == CRATES_IO else f"parity stack build {build.stack}",
            )


def library(features: str) -> str:
    """Return which of a stack's libraries has these features, with commas between: ``JUDGED`` or ``WITH_FAULTS``."""
    return WITH_FAULTS if stacks.FAULTS in features.split(",") else JUDGED


@cache
def load(stack: str, *, faults: bool = False) -> tuple[Extension, BurnBuild]:
    """Import the extension of a stack; return it and what it was built from.

    Args:
        stack: its id.
        faults: the library in which faults can be seeded; else the judged one, which has none.

    Raises:
        UsageError: there is no such stack.
        EngineError: it is not built.
        PinError: it was built from other sources than this checkout's, on another stack, or is the other library.
    """
    if stack == CRATES_IO and not faults:
        extension, receipt = _installed(), None
    else:
        extension, receipt = stacks.load(stack, faults=faults)
    said = json.loads(extension.build_info())
    said |= {"library": library(said["features"]), "receipt": None if receipt is None else encode(receipt)}
    build = decode_record(said, BurnBuild, "burn_gguf, build info")
    if build.stack != stack:
        raise PinError(
            "the extension is built on another stack",
            place="stack",
            expected=stack,
            found=build.stack,
            next_step=f"{REBUILD}, or ask for stack {build.stack}",
        )
    expected = WITH_FAULTS if faults else JUDGED
    if build.library != expected:
        raise PinError(
            "the extension is the other library of the stack",
            place=f"stack {stack}",
            expected=expected,
            found=f"{build.library}: features {build.features}",
            next_step=REBUILD if stack == CRATES_IO else stacks.AGAIN,
        )
    check_sources(build)
    return extension, build


def check_built(stack: str, *, faults: bool = False) -> None:
    """Raise what ``load`` would raise about a stack, without loading any but the installed one."""
    if stack == CRATES_IO and not faults:
        load(stack)
    else:
        stacks.find(load_pins().stack(stack), faults=faults)


def _installed() -> Extension:
    try:
        return importlib.import_module("burn_gguf")
    except ImportError as error:
        raise EngineError(
            "the Rust extension is not built",
            place="burn_gguf",
            expected="an importable module burn_gguf",
            found=error,
            next_step=REBUILD,
        ) from error
