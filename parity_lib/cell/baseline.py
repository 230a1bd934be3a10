"""Measure the baseline of both engines' kernels on one model's F32 twin."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from parity_lib.base.names import Settings
from parity_lib.cell.kernels import measure_kernels
from parity_lib.judge.kernels import variances
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP
from parity_lib.records.kernel_baseline import KernelBaseline


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
