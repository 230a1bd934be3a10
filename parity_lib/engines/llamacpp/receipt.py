"""The build receipt of the reference: read, and held against the libraries that are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from parity_lib.base.errors import PinError, RecordError
from parity_lib.base.record import load_record
from parity_lib.records.builds import Receipt

FILE_NAME = "parity-build-receipt.json"
REBUILD = "build the reference again: python -m parity_lib.engines.llamacpp.build"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_libraries(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 for every shared library in ``folder``, sorted by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("lib*.so*"))}


def read_receipt(path: Path) -> Receipt:
    """Read a receipt; raise ``PinError`` if it is missing, damaged or of another version."""
    if not path.exists():
        raise PinError(
            "the build of the reference has no receipt",
            place=path.name,
            expected="a receipt beside the libraries",
            found=f"none in the folder {path.parent.name}",
            next_step=REBUILD,
        )
    try:
        return load_record(path, Receipt)
    except RecordError as error:
        raise PinError(
            "the build receipt cannot be used", place=path.name, expected=error.expected, found=error, next_step=REBUILD
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
