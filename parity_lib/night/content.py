"""What a cell's result depends on, as one digest: a finished cell is kept only while all of it is the same."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from parity_lib.base.errors import PinError
from parity_lib.base.toml_table import fixture_path
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.receipt import FILE_NAME, read_receipt
from parity_lib.night.plan import PlanCell
from parity_lib.records.builds import Receipt

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "parity_lib"
FILES = ("requirements.txt", "rust-toolchain.toml")
PATTERNS = (
    "fixtures/*.toml",
    f"{LIBRARY}/**/*.py",
    f"{LIBRARY}/burn_gguf/**/*.rs",
    f"{LIBRARY}/burn_gguf/**/Cargo.*",
    f"{LIBRARY}/burn_gguf/**/*.toml",
)
BUILD_OUTPUT = "target"


def source_digest(root: Path = ROOT) -> str:
    """Return the SHA-256 (64 hex digits) of the library, the native sources, the fixtures and this machine's engines.

    Source by source: name and bytes, in the order of the names. Then the machine's class and the receipt of the
    llama.cpp that is installed; the candidate's binary follows from its sources, or is refused as stale.
    """
    digest = hashlib.sha256()
    for path in _sources(root):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode() + content)
    receipt = installed_reference()
    digest.update(f"{machine.machine_class()}\0{receipt}".encode())
    return digest.hexdigest()


def _sources(root: Path) -> Iterator[Path]:
    found = {path for pattern in PATTERNS for path in root.glob(pattern)}
    found |= {root / name for name in FILES if (root / name).is_file()}
    for path in sorted(found):
        if BUILD_OUTPUT not in path.relative_to(root).parts and path.is_file():
            yield path


def installed_reference() -> Receipt | None:
    """Return the receipt of the installed llama.cpp without loading it, or None where there is no readable one."""
    spec = importlib.util.find_spec("llama_cpp")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        try:
            return read_receipt(Path(folder) / "lib" / FILE_NAME)
        except PinError:
            continue
    return None


def cell_key(cell: PlanCell, isa: str, notebooks: Path, source: str) -> str:
    """Return the cell's name with the ISA target filled in, and 8 digits over everything that can change its result.

    Args:
        cell: the entry of the plan.
        isa: the ISA target that it runs on.
        notebooks: where its notebook lies.
        source: what ``source_digest`` returned when the nightly run began.
    """
    digest = hashlib.sha256(f"{cell.content()} {isa} {source}".encode())
    for path in [*([fixture_path(cell.prompts)] if cell.prompts else []), notebooks / f"{cell.notebook}.ipynb"]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{replace(cell, isa=isa).name}-{digest.hexdigest()[:8]}"
