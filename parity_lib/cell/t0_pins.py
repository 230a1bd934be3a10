"""The capture of rung T0: checks of the files before any engine starts, and of each engine's own report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from parity_lib.base.errors import PinError
from parity_lib.base.names import Settings
from parity_lib.base.surroundings import ROOT
from parity_lib.cell.request import Cell
from parity_lib.engines.burn.build_info import JUDGED, WITH_FAULTS, library
from parity_lib.engines.burn.sources import lock_sha256, manifest
from parity_lib.engines.machine import machine_class
from parity_lib.judge.t0_pins import PinCheck, check_any, check_commit, check_equal, check_package, judge_pins
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.twins import ensure_twin
from parity_lib.records.pins import FilePin
from parity_lib.records.runs import LlamaRun, RunInfo, burn, llama
from parity_lib.records.verdicts import PinnedFiles, RungResult

FILES = ("model file", "F32 twin", "tokenizer", "prompts")
REFERENCE, TWIN, CANDIDATE, BF16_TWIN = "reference", "reference-twin", "candidate", "reference-bf16-twin"
ENGINES: Mapping[str, set[str]] = {  # check -> the sides that it needs
    "llama.cpp commit": {REFERENCE},
    "llama.cpp build flags": {REFERENCE},
    "llama.cpp sdist": {REFERENCE},
    "llama.cpp ISA target": {REFERENCE},
    "llama.cpp settings": {REFERENCE},
    "llama.cpp read the model file": {REFERENCE},
    "llama.cpp read the F32 twin": {TWIN},
    "burn read the file": {CANDIDATE},
    "burn Cargo.lock": {CANDIDATE},
    "burn library": {CANDIDATE},
    "same machine": {REFERENCE, CANDIDATE},
}
PACKAGES = ("gguf", "numpy", "tokenizers", "papermill")  # what the verdict of a cell is made with, beside the engines


def file_checks(cell: Cell) -> tuple[PinCheck, ...]:
    """Return the checks of the cell's files. An unpinned file is held to its hash when it was opened."""
    model, twin = sha256_file(cell.model_path), sha256_file(cell.twin_path)
    own = bool(cell.request.prompts)
    prompts = check_equal("prompts", cell.suite.sha256 if own else cell.pins.prompts_sha256, cell.suite.sha256)
    if cell.pin is None:
        return (
            check_equal("model file", model, model),
            check_equal("F32 twin", twin, twin),
            check_equal("tokenizer", cell.facts.tokenizer_sha256, cell.facts.tokenizer_sha256),
            prompts,
        )
    pin = cell.pin
    return (
        _made_here("model file", pin.file, model),
        _made_here("F32 twin", pin.twin, twin),
        check_equal("tokenizer", pin.tokenizer_sha256, cell.facts.tokenizer_sha256),
        prompts,
    )


def package_checks() -> tuple[PinCheck, ...]:
    """Return the checks of the Python packages that judge: each against its line in requirements.txt.

    The installed version says little where an import finds another folder first, so the module's place counts too.

    Raises:
        PinError: requirements.txt cannot be read.
    """
    path = ROOT / "requirements.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PinError(
            "the pinned versions cannot be read",
            place=path,
            expected="the file of the checkout",
            found=error.strerror or error,
            next_step="run from a checkout of the whole repository",
        ) from error
    pinned = dict(line.split()[0].split("==", 1) for line in lines if "==" in line.partition(" ")[0])
    return tuple(_package(name, pinned.get(name, "")) for name in PACKAGES)


def _package(name: str, pinned: str) -> PinCheck:
    spec = importlib.util.find_spec(name)
    origin = "" if spec is None or spec.origin is None else spec.origin
    try:
        installed = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return check_package(name, pinned, "", own=False, origin=origin)
    place = Path(str(installed.locate_file(f"{name}/__init__.py")))
    own = bool(origin) and Path(origin).resolve() == place.resolve()
    return check_package(name, pinned, installed.version, own=own, origin=origin or "nowhere")


def _made_here(name: str, pin: FilePin | None, found: str) -> PinCheck:
    """Check a digest. On a machine class without a pin, a made file has only its receipt.

    ``models.ensure`` has compared it with that receipt; here the check names the missing pin.
    """
    if pin is None or (not pin.sha256 and machine_class() not in pin.made and not pin.accepts(found)):
        return PinCheck(name, f"as made on {machine_class()}, which has no pin", found, ok=True)
    return check_any(name, pin.known, found)


def judge_all(cell: Cell, files: Sequence[PinCheck], runs: Mapping[str, RunInfo]) -> RungResult:
    """Return T0's result over the files and the run info of each engine.

    Args:
        cell: the cell.
        files: what ``file_checks`` found.
        runs: run info by side, as a verdict names them. A side that is absent has delivered no rows, so that
            the rungs that need them are INCOMPLETE: here its pins are left out, and the note says so.
    """
    checks = [*files, *package_checks(), *_llama_checks(cell, runs), *_burn_checks(cell, runs)]
    required = [name for name in ENGINES if ENGINES[name] <= set(runs)]
    rung = judge_pins(checks, required=[*FILES, *(f"package {name}" for name in PACKAGES), *required])
    left = [name for name in ENGINES if name not in required]
    unknown = [check.name for check in files if "has no pin" in check.expected]
    notes = [f"{' and '.join(unknown)} made on {machine_class()}, which has no pin"] if unknown else []
    notes += [f"not checked, because a side has no rows: {', '.join(left)}"] if left else []
    return replace(rung, note="; ".join(filter(None, [*notes, rung.note]))) if notes else rung


def _llama_checks(cell: Cell, runs: Mapping[str, RunInfo]) -> list[PinCheck]:
    """Return the checks of llama.cpp: its build, its settings, the files that it read."""
    pin, checks = cell.pins.llama_cpp, []
    sides = [run for name, run in runs.items() if name != CANDIDATE]
    strict = ", ".join([Settings.STRICT] * len(sides)) + "; " + ", ".join(["f32"] * len(sides))
    names = [run.settings.name if isinstance(run, LlamaRun) else run.engine for run in sides]
    found = ", ".join(names) + "; " + ", ".join(run.kv_type for run in sides)
    if sides:
        checks.append(check_equal("llama.cpp settings", strict, found))
    if REFERENCE in runs:
        reference = llama(runs[REFERENCE])
        flags = " ".join(sorted(pin.build_args(cell.sides.reference.isa)))
        checks += [
            check_commit("llama.cpp commit", pin.commit, reference.commit),
            check_equal("llama.cpp build flags", flags, " ".join(sorted(reference.build.cmake_args))),
            check_equal("llama.cpp sdist", pin.sdist_sha256, reference.build.sdist_sha256),
            check_equal("llama.cpp ISA target", cell.sides.reference.isa, reference.build.target),
            check_equal("llama.cpp read the model file", sha256_file(cell.model_path), reference.model_sha256),
        ]
    if TWIN in runs:
        checks.append(check_equal("llama.cpp read the F32 twin", sha256_file(cell.twin_path), runs[TWIN].model_sha256))
    if BF16_TWIN in runs:
        path = ensure_twin(cell.model_path, cell.pins, kind="BF16")
        checks.append(check_equal("llama.cpp read the BF16 twin", sha256_file(path), runs[BF16_TWIN].model_sha256))
    return checks


def _burn_checks(cell: Cell, runs: Mapping[str, RunInfo]) -> list[PinCheck]:
    """Return the checks of burn: the file that it read, its lock file, its crates, and the machine."""
    if CANDIDATE not in runs:
        return []
    stack, candidate = cell.pins.stack(cell.id.stack), burn(runs[CANDIDATE])
    checks = [
        check_equal("burn read the file", sha256_file(cell.candidate_path), candidate.model_sha256),
        check_equal("burn Cargo.lock", lock_sha256(manifest(cell.id.stack)), candidate.lock_sha256),
        check_equal("burn library", WITH_FAULTS if cell.request.fault else JUDGED, library(candidate.build.features)),
    ]
    if REFERENCE in runs:
        checks.append(check_equal("same machine", runs[REFERENCE].machine_class, candidate.machine_class))
    checks += [
        check_equal(f"burn crate {crate}", version, candidate.build.crates.get(crate))
        for crate, version in stack.crates.items()
    ]
    if stack.source is not None:
        built = candidate.build.receipt
        checks.append(check_equal("fork revision", stack.source.revision, built and built.revision))
        checks.append(check_equal("fork source", stack.source.sha256, built and built.fork_sha256))
    return checks


def recorded_pins(cell: Cell) -> PinnedFiles:
    """Return the digests that every verdict names."""
    return PinnedFiles(
        pins_sha256=cell.pins.sha256,
        prompts_sha256=cell.suite.sha256,
        tolerances_sha256=cell.tolerances_sha256,
        model_sha256=sha256_file(cell.model_path),
        twin_sha256=sha256_file(cell.twin_path),
        candidate_sha256=sha256_file(cell.candidate_path),
    )
