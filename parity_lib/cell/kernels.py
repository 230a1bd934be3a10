"""Capture one prompt and measure each kernel of both engines against float64: the file as it is, or its F32 twin."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Compute, Settings
from parity_lib.cell import steps
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.prompt_tokens import prompt_tokens
from parity_lib.cell.t3_replay import DECODED, check_buffers
from parity_lib.engines.llamacpp.buffers import PLAIN
from parity_lib.engines.llamacpp.settings import N_UBATCH
from parity_lib.judge.kernels import Kernel, kernels, variances
from parity_lib.numerics.op_error import FEW_ROWS, KernelErrors
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP
from parity_lib.records.kernel_baseline import KernelBaseline
from parity_lib.records.runs import RunInfo
from parity_lib.records.verdicts import CellId

FEWEST, MOST = FEW_ROWS + DECODED, N_UBATCH + DECODED  # tokens: with fewer, no tensor is judged


@dataclass(frozen=True, slots=True)
class Baseline:
    """The kernels of one run, and what was run."""

    cell: CellId
    settings: Settings
    prompt: str  # its name
    passes: tuple[int, ...]  # rows of each
    weights_in: Mapping[str, int]  # the reference's buffers -> products from it
    kernels: tuple[Kernel, ...]
    errors: tuple[KernelErrors, ...] = ()  # of every op, in order
    runs: Mapping[str, RunInfo] = field(default_factory=dict)  # of ``llama.cpp`` and ``burn``


def measure_kernels(
    request: Mapping[str, Any], *, settings: Settings, prompt: str, n_tokens: int, twin: bool = False
) -> Baseline:
    """Return the kernels of one prompt's first tokens, the last two of them decoded one by one.

    Args:
        request: what chooses model, file, target, stack, prompts, fault, threads and folder, as ``open_cell`` takes it.
        settings: of llama.cpp; its cache is float32 in all that can be captured.
        prompt: number or name; empty is the longest.
        n_tokens: how many of its tokens.
        twin: of the file's F32 twin, in place of the file as it is.

    Raises:
        UsageError: there is no such prompt, or it has too few tokens.
        EngineError: an engine refused or died, or no weight was re-ordered where that was the point.
    """
    if not FEWEST <= n_tokens <= MOST:
        raise UsageError(
            "that many tokens cannot be measured", place="tokens", expected=f"{FEWEST} to {MOST}", found=n_tokens
        )
    cell = steps.open_cell(**request, compute=Compute.GGML)
    nodes, path = cell.spools / "nodes", cell.twin_path if twin else cell.model_path
    with open_llama(cell, path, settings, kind="llama_taps") as engine:
        told = prompt_tokens(cell.suite, cell.facts, engine)
        found = cell.suite.get(prompt) if prompt else max(cell.suite.prompts, key=lambda p: len(told[p.idx]))
        if len(told[found.idx]) < n_tokens:
            raise UsageError(
                "the prompt has fewer tokens",
                place=f"prompt {found.idx} ({found.name})",
                expected=n_tokens,
                found=len(told[found.idx]),
                next_step="choose another prompt, or fewer tokens",
            )
        passes = (n_tokens - DECODED, *[1] * DECODED)
        try:
            engine.call("capture", told[found.idx][:n_tokens], list(passes), nodes)
            buffers = check_buffers(nodes, settings)
            runs = {LLAMA_CPP: engine.call("run_info")}
            with open_burn(cell, "burn_kernels", path=str(path)) as candidate:
                progress = cell.progress.step("each op against float64")
                errors = candidate.call("kernels", nodes, path, progress=progress)
                runs[BURN] = candidate.call("run_info")
        finally:
            shutil.rmtree(nodes, ignore_errors=True)
    table = tuple(kernels(errors, PLAIN))
    return Baseline(cell.id, settings, found.name, passes, dict(buffers), table, tuple(errors), runs)


def measure_baselines(
    request: Mapping[str, Any], *, prompt: str = "", n_tokens: int = 64
) -> tuple[KernelBaseline, KernelBaseline]:
    """Return the kernels of llama.cpp (strict settings) and of burn, both on llama.cpp's inputs, F32 weights.

    Args:
        request: what chooses model, file, target, stack, prompts, threads and folder, as ``open_cell`` takes it.
        prompt: number or name; empty is the longest.
        n_tokens: how many of its tokens; the last two are decoded one by one.

    Raises:
        UsageError: there is no such prompt, or it has too few tokens.
        EngineError: an engine refused or died.
    """
    found = measure_kernels(request, settings=Settings.STRICT, prompt=prompt, n_tokens=n_tokens, twin=True)
    model, quant, command = found.cell.model, found.cell.quant, ["parity", "baseline", found.cell.model]
    command += [quant, *(["--prompt", prompt] if prompt else []), "--tokens", str(n_tokens), "--write"]
    reference, candidate = found.runs[LLAMA_CPP], found.runs[BURN]
    shared = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "machine_class": reference.machine_class,
    }
    return (
        KernelBaseline(
            engine=LLAMA_CPP,
            isa=reference.isa_requested,
            commit=reference.commit,
            lock_sha256="",
            kernels=tuple(variances(found.errors, LLAMA_CPP, model, quant)),
            **shared,
        ),
        KernelBaseline(
            engine=found.cell.stack,
            isa=candidate.isa_requested,
            commit="",
            lock_sha256=candidate.lock_sha256,
            kernels=tuple(variances(found.errors, BURN, model, quant)),
            **shared,
        ),
    )
