"""The build receipt of the reference: what was compiled, from what, with what, and the hashes that came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from parity_lib.base.errors import PinError
from parity_lib.base.files import write_atomic

SCHEMA = "parity/build-receipt/1"
FILE_NAME = "parity-build-receipt.json"
REBUILD = "build the reference again: python -m parity_lib.engines.llamacpp.build"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one build of the reference is. Two builds with equal receipts gave the same libraries."""

    binding: str  # "llama-cpp-python"
    version: str
    commit: str  # of llama.cpp, 40 hex digits, as pinned
    sdist_sha256: str
    wheel_sha256: str
    target: str  # "avx512", "avx2", "neon"
    cmake_args: tuple[str, ...]
    cpu_flags: tuple[str, ...]  # as /proc/cpuinfo lists them; the libraries use all of these without asking
    compiler: str  # first line of ``c++ --version``
    tools: Mapping[str, str]  # cmake, ninja, scikit-build-core
    architecture: str  # "x86_64", "aarch64"
    libraries: Mapping[str, str]  # file name -> SHA-256, every lib*.so* of the package's lib folder
    schema: str = SCHEMA


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_libraries(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 for every shared library in ``folder``, sorted by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("lib*.so*"))}


def write_receipt(receipt: Receipt, path: Path) -> None:
    """Write ``receipt`` as JSON, whole or not at all."""
    write_atomic(path, (json.dumps(asdict(receipt), indent=2, sort_keys=True) + "\n").encode())


def read_receipt(path: Path) -> Receipt:
    """Read a receipt; raise ``PinError`` if it is missing, damaged or of another version."""
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise PinError(
            "the build of the reference has no receipt",
            place=path.name,
            expected="a receipt beside the libraries",
            found=f"none in the folder {path.parent.name}",
            next_step=REBUILD,
        ) from None
    except (OSError, ValueError) as error:
        raise PinError(
            "the build receipt cannot be read", place=path.name, expected="JSON", found=error, next_step=REBUILD
        ) from error
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise PinError(
            "the build receipt is of another version", place=path.name, expected=SCHEMA, found=found, next_step=REBUILD
        )
    try:
        lists = {name: tuple(fields[name]) for name in ("cmake_args", "cpu_flags")}
        return Receipt(**(fields | lists))
    except (KeyError, TypeError) as error:
        raise PinError(
            "the build receipt lacks a field", place=path.name, expected=SCHEMA, found=error, next_step=REBUILD
        ) from error


def check_libraries(receipt: Receipt, loaded: Iterable[Path]) -> None:
    """Raise ``PinError`` unless every loaded library has the hash in the receipt; none loaded is an error too."""
    paths = sorted(loaded)
    if not paths:
        raise PinError(
            "no library of the reference is loaded",
            place="libllama.so",
            expected=", ".join(receipt.libraries),
            found="none",
            next_step=REBUILD,
        )
    for path in paths:
        pinned = receipt.libraries.get(path.name, "no such library")
        found = sha256_of(path)
        if found != pinned:
            raise PinError(
                "a library of the reference is not the one that was built",
                place=path.name,
                expected=pinned,
                found=found,
                next_step=REBUILD,
            )
