"""The Rust sources of the candidate, and the digests that tie a build to them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from parity_lib.records.stack_pins import WITHOUT

NATIVE = Path(__file__).resolve().parents[2] / "burn_gguf"
CRATES_IO = "crates-io"  # the stack whose manifest lies beside the sources; the others have a folder in stacks/


def manifest(stack: str, native: Path = NATIVE) -> Path:
    """Return the folder of a stack's ``Cargo.toml`` and ``Cargo.lock``; without one of its fixes it has the same."""
    return native if stack == CRATES_IO else native / "stacks" / stack.partition(WITHOUT)[0]


def source_sha256(manifest: Path, native: Path = NATIVE) -> str:
    """Return the SHA-256 of the crate's sources, computed as ``burn_gguf/build.rs`` does for the binary.

    Args:
        manifest: the folder of the stack's ``Cargo.toml``.
        native: the folder of ``build.rs`` and ``src``.
    """
    files = {"Cargo.toml": manifest / "Cargo.toml", "build.rs": native / "build.rs"}
    files |= {path.relative_to(native).as_posix(): path for path in (native / "src").rglob("*.rs")}
    digest = hashlib.sha256()
    for name in sorted(files, key=str.encode):
        content = files[name].read_bytes() if files[name].exists() else b""
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def lock_sha256(manifest: Path) -> str:
    """Return the SHA-256 of a stack's ``Cargo.lock``, or "no Cargo.lock"."""
    lock = manifest / "Cargo.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else "no Cargo.lock"
