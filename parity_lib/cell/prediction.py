"""Hold the prediction of rung T4's limits to float64: what is observed over what the kernels' noise predicts.

The distance of the reference's twin to the oracle, which no pass with noise has seen, has to be what was predicted; and
so has the candidate's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parity_lib.cell import rows as logits
from parity_lib.cell import steps
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t4_limits import DRAWS, baselines_of, predict
from parity_lib.engines.oracle.rope import WALKED
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.prediction import Share, shares
from parity_lib.numerics.kernel_noise import BothNoise, KernelNoise
from parity_lib.records.verdicts import CellId

LLAMA_CPP, BURN, BETWEEN = "llama.cpp to float64", "burn to float64", "burn to llama.cpp"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was predicted for one cell, and what was observed over it."""

    cell: CellId
    n_positions: int
    draws: int
    shares: Mapping[str, Share]  # LLAMA_CPP, BURN, BETWEEN


def score_oracle(cell: Cell, reference: Reference) -> Rows:
    """Score tokens with the float64 oracle on the cell's F32 twin, at the angles that llama.cpp walks to."""
    spool = cell.spools / "oracle.f32"
    asked = {"path": str(cell.twin_path), "n_threads": cell.n_threads, "angles": WALKED}
    with Worker("oracle", asked, log=cell.log("oracle")) as oracle:
        counts = oracle.call("score", reference.sequences, spool, progress=cell.progress.step("float64 oracle scores"))
        run, n_vocab = oracle.call("run_info"), oracle.call("n_vocab")
    return logits.delivered(run, spool, n_vocab, reference.sequences, reference.prompt_lengths, counts)


def measure_prediction(request: Mapping[str, Any], *, draws: int = DRAWS) -> Predicted:
    """Return observed over predicted for a cell: llama.cpp's twin and the candidate against float64, and each other.

    Args:
        request: what chooses model, file, target, stack, prompts, threads and folder, as ``open_cell`` takes it.
        draws: passes with noise, for each of the two engines.

    Raises:
        PinError: a kernel has no baseline on the ISA target of an engine.
        EngineError: an engine refused or died.
    """
    cell = steps.open_cell(**request)
    try:
        baselines = baselines_of(cell)
        steps.check_pins(cell)
        reference = steps.capture_reference(cell)
        twin = steps.capture_twin(cell, reference)
        candidate = steps.capture_candidate(cell, reference)
        oracle = score_oracle(cell, reference)
        expected = steps.positions(cell, reference)
        pairs = {LLAMA_CPP: (oracle, twin), BURN: (oracle, candidate), BETWEEN: (twin, candidate)}
        both, clean = baselines.noise, logits.trace(twin)
        noises: dict[str, KernelNoise | BothNoise] = {LLAMA_CPP: both.first, BURN: both.second, BETWEEN: both}
        found = {
            name: predict(cell, reference.sequences, clean, twin.spool, noise, draws) for name, noise in noises.items()
        }
        judged = {name: shares(logits.pair(*pairs[name], expected), found[name]) for name in pairs}
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
    return Predicted(cell.id, len(expected), draws, judged)
