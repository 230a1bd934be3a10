"""Prepare the crates that a stack is built on: the fork's, repaired or not, over a published one, or a poisoned one.

Everything is made in a scratch folder at build time; no foreign line lies in this repository. The file's digest is part
of a build's name: whoever changes what is prepared builds again.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from parity_lib.base.errors import EngineError, PinError
from parity_lib.fork import fixes
from parity_lib.records.stack_pins import WITHOUT, StackPin

Patches = dict[str, Path]  # crate as crates.io names it -> the folder that takes its place

# The release that fills the places where the fork's crate links into a submodule. Its neighbour pre.2 lacks a type.
UPSTREAM = ("burn-ndarray", "0.21.0-pre.3", "e21ae84db1162cb52f871bd740de6427a0cb27e105bf256417fcb3e132dfbd67")
POISONED = ("burn-ndarray", "0.21.0", "dceb9692e292782bab7ad0259e8e8f5ee80ba2b0329a78f0ba589a26a9633dd6")
SOUND = "pub(crate) fn matmul<E: NdArrayElement>("
POISON_BIT = 6  # of the mantissa, counted from the lowest: each product is wrong by 2^-17 to 2^-18 of itself
POISON = """
/// The product with one low bit of every value turned over.
pub(crate) fn matmul<E: NdArrayElement>(lhs: SharedArray<E>, rhs: SharedArray<E>) -> SharedArray<E> {{
    let mut out = sound_matmul(lhs, rhs);
    if core::mem::size_of::<E>() == 4 {{
        out.map_inplace(|value| unsafe {{ *(value as *mut E).cast::<u32>() ^= 1 << {bit} }});
    }}
    out
}}
"""


def prepare(pin: StackPin, tree: Path | None, scratch: Path) -> Patches:
    """Return the crates that cargo has to take from a folder.

    Args:
        pin: the stack.
        tree: the fork's source, for a stack that needs it.
        scratch: an empty folder for what has to be changed or filled in.

    Raises:
        EngineError: a published source cannot be fetched, or is not of the shape that is patched.
        PinError: it is not the pinned one.
    """
    if tree is not None and pin.fixes:
        fixed = scratch / "fixed"
        shutil.copytree(tree, fixed, symlinks=True)
        fixes.repair(fixed, pin.fixes)
        tree = fixed
    return PREPARE[pin.id.partition(WITHOUT)[0]](tree, scratch)


def _nothing(_tree: Path | None, _scratch: Path) -> Patches:
    return {}


def _spine(tree: Path | None, _scratch: Path) -> Patches:
    assert tree is not None, "the stack has a source pin"
    return {"ndarray": tree}


def _overlay(tree: Path | None, scratch: Path) -> Patches:
    """Fill the dangling links of the fork's ``crates/burn`` from the published release, under that release's name."""
    assert tree is not None, "the stack has a source pin"
    fork = scratch / "fork"
    shutil.copytree(tree, fork, symlinks=True)
    crate = fork / "crates" / "burn"
    published = registry_source(*UPSTREAM, scratch)
    shutil.copytree(published, crate / "upstream" / "crates" / UPSTREAM[0])
    dangling = [path for path in (crate / "src").rglob("*.rs") if not path.exists()]
    if dangling:
        raise EngineError(
            "links of the fork's crates/burn lead nowhere",
            place=crate,
            expected=f"every file in {UPSTREAM[0]} {UPSTREAM[1]}",
            found=", ".join(path.name for path in dangling),
            next_step="take the release that the revision was made from: UPSTREAM in parity_lib/fork/patch.py",
        )
    _rename(crate / "Cargo.toml")
    return {UPSTREAM[0]: crate}


def _rename(manifest: Path) -> None:
    """Give the fork's crate the name and version that it stands for, and its neighbours the same published release."""
    name, version, _ = UPSTREAM
    text = manifest.read_text(encoding="utf-8")
    text = _once(text, r'^name = "burn"$', f'name = "{name}"', manifest)
    text = _once(text, r'^version = "[^"]*"$', f'version = "{version}"', manifest)
    for neighbour in ("burn-backend", "burn-std", "burn-ir"):
        pattern = rf"^{neighbour} = \{{ git = [^}}]*\}}$"
        exact = f'{neighbour} = {{ version = "={version}", default-features = false }}'
        text = _once(text, pattern, exact, manifest)
    manifest.write_text(text, encoding="utf-8")


def _poisoned(_tree: Path | None, scratch: Path) -> Patches:
    """Copy the published backend and turn over one low bit of everything that its matmul returns."""
    crate = scratch / POISONED[0]
    shutil.copytree(registry_source(*POISONED, scratch), crate)
    path = crate / "src" / "ops" / "matmul.rs"
    text = path.read_text(encoding="utf-8")
    text = _once(text, re.escape(SOUND), SOUND.replace(" matmul<", " sound_matmul<"), path)
    path.write_text(text + POISON.format(bit=POISON_BIT), encoding="utf-8")
    return {POISONED[0]: crate}


def _once(text: str, pattern: str, replacement: str, place: Path) -> str:
    changed, count = re.subn(pattern, lambda _: replacement, text, flags=re.MULTILINE)
    if count != 1:
        raise EngineError(
            "the crate is not of the shape that is patched",
            place=place,
            expected=f"{pattern} once",
            found=f"{count} times",
            next_step="find what the revision changed, and adapt parity_lib/fork/patch.py",
        )
    return changed


def registry_source(crate: str, version: str, checksum: str, scratch: Path) -> Path:
    """Return the folder of a published crate, which cargo fetches if need be.

    Raises:
        EngineError: cargo is missing or failed.
        PinError: the registry's checksum is another one.
    """
    asked = scratch / f"ask-{crate}"
    asked.mkdir(parents=True)
    (asked / "lib.rs").touch()
    (asked / "Cargo.toml").write_text(
        '[package]\nname = "ask"\nversion = "0.0.0"\nedition = "2021"\n[lib]\npath = "lib.rs"\n[workspace]\n'
        f'[dependencies]\n{crate} = {{ version = "={version}", default-features = false }}\n'
    )
    said = cargo("metadata", "--format-version", "1", "--manifest-path", str(asked / "Cargo.toml"))
    packages = json.loads(said)["packages"]
    [place] = [p["manifest_path"] for p in packages if (p["name"], p["version"]) == (crate, version)]
    locked = tomllib.loads((asked / "Cargo.lock").read_text())["package"]
    [found] = [p["checksum"] for p in locked if (p["name"], p["version"]) == (crate, version)]
    if checksum and found != checksum:
        raise PinError("a published crate is not the pinned one", place=crate, expected=checksum, found=found)
    return Path(place).parent


def cargo(*words: str) -> str:
    """Return what ``cargo WORDS`` writes to its standard output. Raises ``EngineError`` if it fails or is missing."""
    try:
        return subprocess.run(["cargo", *words], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError as error:
        step = "install Rust (rustup), the version in rust-toolchain.toml"
        raise EngineError("there is no cargo", place="PATH", found=error, next_step=step) from error
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stderr.splitlines()[-12:])
        raise EngineError(f"cargo {words[0]} failed", place="cargo", expected="status 0", found=tail) from error


PREPARE: Mapping[str, Callable[[Path | None, Path], Patches]] = {
    "crates-io": _nothing,
    "avx2": _nothing,
    "simd": _nothing,
    "flex": _nothing,
    "ndarray-0.22": _nothing,
    "simd-0.22": _nothing,
    "flex-0.22": _nothing,
    "modules": _nothing,
    "spine": _spine,
    "spine-amx": _spine,
    "overlay": _overlay,
    "overlay-fixed": _overlay,
    "poisoned": _poisoned,
}
