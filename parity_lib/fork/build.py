"""Build a stack: fork source and patches in, one extension with its receipt in the cache out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from parity_lib.base.errors import EngineError, PinError, UsageError
from parity_lib.base.files import FREE_CACHE, LOCK, hold, replacing
from parity_lib.base.record import save_record
from parity_lib.engines.burn import sources, stacks
from parity_lib.engines.burn.stacks import LIBRARY, RECEIPT
from parity_lib.engines.worker.client import Worker
from parity_lib.fork import patch, source
from parity_lib.model_file.digest import sha256_file
from parity_lib.records.builds import StackReceipt
from parity_lib.records.pins import load_pins
from parity_lib.records.stack_pins import WITHOUT, StackPin

Say = Callable[[str], None]

SECONDS_BETWEEN_LINES = 10.0
TAIL_LINES = 25
KEPT_BUILDS = 8  # of one stack, with faults or without: other checkouts on this machine have theirs in the same folder
FEATURES = "python,pyo3/extension-module"
# Whatever the user's shell says to the compiler would not be in the receipt.
NOT_INHERITED = ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_", "CARGO_PROFILE_", "PYO3_")


def build(
    stack: str, from_: str, say: Say, *, faults: bool = False, again: bool = False, relock: bool = False
) -> StackReceipt:
    """Build a stack unless the build of these sources is there; return its receipt.

    Args:
        stack: an id of the pins. The judged library of ``crates-io`` is not built here: `make setup` installs it.
        from_: the fork's source, see ``fork.source.bring``; "" takes what an earlier build brought.
        say: told what happens, a line each.
        faults: the library in which faults can be seeded, which is never judged.
        again: build although it is there.
        relock: let cargo resolve the stack's lock file again, after its manifest or the fork's was changed.

    Raises:
        UsageError: no such stack, or a source for a stack that takes none.
        EngineError: no source at hand, a tool is missing, or the build failed.
        PinError: the source or a crate is not the pinned one.
    """
    pin = load_pins().stack(stack)
    _check(pin, from_, faults=faults)
    root = stacks.stacks_dir()
    with hold(root / pin.id / LOCK, lambda _: say("waiting for another build of the same stack")):
        tree = _source(pin, from_, root / "sources")
        if not again and not relock and (found := _present(pin, faults=faults)) is not None:
            say(f"stack {pin.id} is built: {found.words()}")
            return found
        return _build(pin, tree, root / pin.id, say, faults=faults, locked=not relock)


def _check(pin: StackPin, from_: str, *, faults: bool) -> None:
    if pin.id == sources.CRATES_IO and not faults:
        raise UsageError("this stack is not built here", place=pin.id, next_step="make setup")
    if from_ and pin.source is None:
        raise UsageError("takes no source: everything in it comes from crates.io", place=pin.id, found=from_)


def _present(pin: StackPin, *, faults: bool) -> StackReceipt | None:
    try:
        return stacks.find(pin, faults=faults)
    except (EngineError, PinError):
        return None


def _source(pin: StackPin, from_: str, folder: Path) -> Path | None:
    """Return the fork's source tree: from ``--source``, or kept from an earlier build; None for a stack without one."""
    if pin.source is None:
        return None
    if from_:
        return source.bring(from_, pin.source, folder)
    tree = source.kept(pin.source, folder)
    if tree is None:
        raise EngineError(
            "there is no source of the fork at hand",
            place=f"stack {pin.id}",
            expected=f"{pin.source.repository} at {pin.source.revision}",
            found="no --source, and none kept from an earlier build",
            next_step=stacks.how(pin),
        )
    return tree


def _build(pin: StackPin, tree: Path | None, folder: Path, say: Say, *, faults: bool, locked: bool) -> StackReceipt:
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    log = folder / "build.log"
    say(f"building stack {pin.id}{' with faults' if faults else ''}: one to three minutes on 2 cores")
    patches = patch.prepare(pin, tree, scratch)
    messages = _compile(pin, patches, log, say, faults=faults, locked=locked)
    patched = _check_patched(messages, patches, log)
    with replacing(folder / stacks.key(pin, faults=faults), kind=EngineError, next_step=FREE_CACHE) as part:
        part.mkdir()
        shutil.copyfile(_library(messages, pin, log), part / LIBRARY)
        receipt = _receipt(pin, part / LIBRARY, patched, faults=faults)
        save_record(receipt, part / RECEIPT)
    shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob(f"*/{RECEIPT}"), key=lambda path: path.stat().st_mtime)[:-KEPT_BUILDS]:
        shutil.rmtree(old.parent)
    say(f"stack {pin.id} is built: {receipt.words()}")
    return receipt


def _compile(
    pin: StackPin, patches: Mapping[str, Path], log: Path, say: Say, *, faults: bool, locked: bool
) -> list[dict[str, Any]]:
    """Run cargo; return its messages about what it compiled, and write its output to ``log``."""
    manifest = sources.manifest(pin.id) / "Cargo.toml"
    features = f"{FEATURES},{stacks.FAULTS}" if faults else FEATURES
    words = ["cargo", "build", "--release", "--features", features, "--manifest-path", str(manifest)]
    words += ["--locked"] if locked else []
    words += ["--message-format", "json-render-diagnostics"]
    for crate, folder in patches.items():
        words += ["--config", f"patch.crates-io.{crate}.path={json.dumps(str(folder))}"]
    target = target_dir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    env["CARGO_TARGET_DIR"] = str(target)
    if WITHOUT in pin.id:
        env["BURN_GGUF_STACK_ID"] = pin.id  # its manifest is the whole stack's
    # What maturin told PyO3 when it built the installed extension: with the same words nothing is compiled twice.
    told = sorted(target.glob("maturin/pyo3-config-*-abi3.txt"))
    env |= {"PYO3_CONFIG_FILE": str(told[0])} if len(told) == 1 else {}
    out = log.with_name("messages.jsonl")
    with log.open("w") as err, out.open("w") as messages:
        status = _run(words, env, err, messages, say)
    if status != 0:
        tail = "\n".join(log.read_text().splitlines()[-TAIL_LINES:])
        raise EngineError(
            "cargo build failed",
            place=log,
            expected="status 0",
            found=f"status {status}\n{tail}",
            next_step="read it; if the lock file needs an update, find out why, then use --relock",
        )
    return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]


def target_dir() -> Path:
    """Return cargo's build folder: that of the installed extension, where most crates are compiled already."""
    named = os.environ.get("CARGO_TARGET_DIR")
    return Path(named) if named else sources.NATIVE / "target"


def _run(words: list[str], env: Mapping[str, str], err: IO[str], out: IO[str], say: Say) -> int:
    try:
        process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    except FileNotFoundError as error:
        step = "install Rust (rustup), the version in rust-toolchain.toml"
        raise EngineError("there is no cargo", place="PATH", found=error, next_step=step) from error
    began = due = time.monotonic()
    with process:
        try:
            while (status := process.poll()) is None:
                time.sleep(0.1)
                if time.monotonic() >= due + SECONDS_BETWEEN_LINES:
                    due = time.monotonic()
                    say(f"compiling, {due - began:.0f} s")
        except BaseException:
            process.terminate()  # cargo ends its compilers
            raise
    return status


def _check_patched(messages: list[dict[str, Any]], patches: Mapping[str, Path], log: Path) -> dict[str, str]:
    """Return crate -> version of what was compiled from the patched folders; refuse a crate from elsewhere.

    Raises:
        EngineError: cargo compiled such a crate from elsewhere, or not at all.
    """
    compiled: dict[str, list[str]] = {}
    for message in messages:
        if message.get("reason") == "compiler-artifact" and "lib" in message["target"]["kind"]:
            compiled.setdefault(_crate(message), []).append(message["manifest_path"])
    patched = {}
    for crate, folder in patches.items():
        manifest = (folder / "Cargo.toml").resolve()
        found = compiled.get(crate, [])
        if [Path(path).resolve() for path in found] != [manifest]:
            raise EngineError(
                "cargo did not build on the patched crate",
                place=log,
                expected=f"{crate} compiled from {manifest}",
                found=", ".join(found) or "nowhere",
                next_step="the patch does not apply: compare its version with the one in the stack's manifest",
            )
        patched[crate] = _version(messages, str(found[0]))
    return patched


def _crate(message: Mapping[str, Any]) -> str:
    """Return the package of a message: its id ends in ``#name@version`` or in ``/name#version``."""
    head, _, tail = str(message["package_id"]).rpartition("#")
    return tail.partition("@")[0] if "@" in tail else head.rpartition("/")[2]


def _version(messages: list[dict[str, Any]], manifest: str) -> str:
    [package] = {str(m["package_id"]) for m in messages if m.get("manifest_path") == manifest}
    return package.rpartition("#")[2].rpartition("@")[2]


def _library(messages: list[dict[str, Any]], pin: StackPin, log: Path) -> Path:
    own = str(sources.manifest(pin.id) / "Cargo.toml")
    made = [m for m in messages if m.get("manifest_path") == own and "cdylib" in m.get("target", {}).get("kind", [])]
    libraries = [name for message in made for name in message["filenames"] if name.endswith((".so", ".dylib"))]
    if len(libraries) != 1:
        raise EngineError("cargo made no library", place=log, expected="one .so", found=libraries)
    return Path(libraries[0])


def _receipt(pin: StackPin, library: Path, patched: Mapping[str, str], *, faults: bool) -> StackReceipt:
    """Read the new library's build info in a worker process, and compare it with the sources of this checkout."""
    with Worker("parity_lib.fork.probe:StackProbe", {"library": str(library)}, timeout=60) as probe:
        said, can_seed = probe.call("build"), probe.call("faults")
    manifest = sources.manifest(pin.id)
    expected = {
        "stack": pin.id,
        "source_sha256": sources.source_sha256(manifest),
        "lock_sha256": sources.lock_sha256(manifest),
    }
    found = {name: said[name] for name in expected}
    if found != expected:
        raise PinError(
            "the sources changed while they were built", place=pin.id, expected=expected, found=found,
            next_step="build again",
        )  # fmt: skip
    fork = pin.source
    return StackReceipt(
        key=stacks.key(pin, faults=faults),
        recipe_sha256=stacks.recipe_sha256(),
        revision=fork.revision if fork is not None else "",
        fork_sha256=fork.sha256 if fork is not None else "",
        patched=dict(patched),
        library_sha256=sha256_file(library, fresh=True),
        rustc=said["rustc"],
        features=tuple(sorted(filter(None, said["features"].split(",")))),
        target=said["target"],
        faults=can_seed,
        fixes=pin.fixes,
        **expected,
    )
