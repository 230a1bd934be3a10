"""What rung T0 looks at in a cell: the files before any engine starts, each engine once it has said what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from parity_lib.capture.cell_request import Cell
from parity_lib.capture.model_twins import ensure_twin
from parity_lib.compare.pins import PinCheck, check_any, check_commit, check_equal, judge_pins
from parity_lib.engines.burn_sources import lock_sha256, manifest
from parity_lib.engines.machine import machine_class
from parity_lib.model_file import sha256_file
from parity_lib.names import Settings
from parity_lib.pins import FilePin
from parity_lib.traces import RunInfo
from parity_lib.verdicts import RungResult

FILES = ("model file", "F32 twin", "tokenizer", "prompts")
ENGINES = (
    "llama.cpp commit",
    "llama.cpp build flags",
    "llama.cpp sdist",
    "llama.cpp leg",
    "llama.cpp settings",
    "llama.cpp read the model file",
    "llama.cpp read the F32 twin",
    "burn read the file",
    "burn Cargo.lock",
    "same machine",
)


def file_checks(cell: Cell) -> tuple[PinCheck, ...]:
    """Return the checks of the cell's files. A file of the user's own is pinned by what it was when it was opened."""
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


def _made_here(name: str, pin: FilePin | None, found: str) -> PinCheck:
    """Check a digest. What was made on a machine class without a pin is known by the receipt of its making only.

    ``capture.models`` has compared it with that receipt; here the record says that nobody pinned it.
    """
    if pin is None or (not pin.sha256 and machine_class() not in pin.made and not pin.accepts(found)):
        return PinCheck(name, f"as made on {machine_class()}, which has no pin", found, ok=True)
    return check_any(name, pin.known, found)


def judge_all(
    cell: Cell,
    files: Sequence[PinCheck],
    reference: RunInfo,
    twin: RunInfo,
    candidate: RunInfo,
    bf16_twin: RunInfo | None = None,
) -> RungResult:
    """Return T0's result over the files and what each engine said about itself.

    Args:
        cell: the cell.
        files: what ``file_checks`` found.
        reference: llama.cpp on the file as it is.
        twin: llama.cpp on the F32 twin.
        candidate: burn.
        bf16_twin: llama.cpp on the BF16 twin, in a cell in bf16.
    """
    pin, stack = cell.pins.llama_cpp, cell.pins.stack(cell.id.stack)
    flags = " ".join(sorted(pin.build_args(cell.id.isa)))
    runs = [run for run in (reference, twin, bf16_twin) if run is not None]
    strict = ", ".join([Settings.STRICT] * len(runs)) + "; " + ", ".join(["f32"] * len(runs))
    found = ", ".join(str(run.settings.get("name")) for run in runs) + "; " + ", ".join(r.kv_type for r in runs)
    checks = [
        *files,
        check_commit("llama.cpp commit", pin.commit, reference.commit),
        check_equal("llama.cpp build flags", flags, " ".join(sorted(reference.build.get("cmake_args", ())))),
        check_equal("llama.cpp sdist", pin.sdist_sha256, reference.build.get("sdist_sha256")),
        check_equal("llama.cpp leg", cell.id.isa, reference.build.get("leg")),
        check_equal("llama.cpp settings", strict, found),
        check_equal("llama.cpp read the model file", sha256_file(cell.model_path), reference.model_sha256),
        check_equal("llama.cpp read the F32 twin", sha256_file(cell.twin_path), twin.model_sha256),
        check_equal("burn read the file", sha256_file(cell.candidate_path), candidate.model_sha256),
        check_equal("burn Cargo.lock", lock_sha256(manifest(cell.id.stack)), candidate.lock_sha256),
        check_equal("same machine", reference.machine_class, candidate.machine_class),
    ]
    checks += [
        check_equal(f"burn crate {crate}", version, _crates(candidate.build).get(crate))
        for crate, version in stack.crates.items()
    ]
    if stack.source is not None:
        built = candidate.build.get("receipt", {})
        checks.append(check_equal("fork revision", stack.source.revision, built.get("revision")))
        checks.append(check_equal("fork source", stack.source.sha256, built.get("fork_sha256")))
    if bf16_twin is not None:
        path = ensure_twin(cell.model_path, cell.pins, kind="BF16")
        checks.append(check_equal("llama.cpp read the BF16 twin", sha256_file(path), bf16_twin.model_sha256))
    rung = judge_pins(checks, required=[*FILES, *ENGINES])
    unknown = [check.name for check in files if "has no pin" in check.expected]
    if unknown:
        note = f"{' and '.join(unknown)} made on {machine_class()}, which has no pin: {rung.note}".rstrip(": ")
        rung = replace(rung, note=note)
    return rung


def _crates(build: Mapping[str, Any]) -> Mapping[str, Any]:
    crates = build.get("crates", build)
    return crates if isinstance(crates, Mapping) else {}


def recorded_pins(cell: Cell) -> dict[str, str]:
    """Return what every verdict names, so that a record can be tied to its inputs years later."""
    return {
        "pins_sha256": cell.pins.sha256,
        "prompts_sha256": cell.suite.sha256,
        "tolerances_sha256": cell.tolerances_sha256,
        "model_sha256": sha256_file(cell.model_path),
        "twin_sha256": sha256_file(cell.twin_path),
        "candidate_sha256": sha256_file(cell.candidate_path),
    }
