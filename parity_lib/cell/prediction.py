"""Predict how far rounding moves the logits: llama.cpp's own graph with noise of each kernel's measured size.

Nothing of the candidate's logits is used. What the prediction stands on is the baseline of each kernel
(``fixtures/kernel_baseline``), and it is held to float64: the distance of the reference's twin to the oracle, which no
pass with noise has seen, has to be what was predicted.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_lib.base.names import TOP_JUDGED
from parity_lib.cell import rows as logits
from parity_lib.cell import steps
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t4_bands import score_oracle
from parity_lib.judge.align import row_scale
from parity_lib.judge.prediction import Drawn, Prediction, Share, predicted, shares
from parity_lib.numerics.kernel_noise import BothNoise, KernelNoise
from parity_lib.records.kernel_baseline import load_baseline
from parity_lib.records.verdicts import CellId

AMPLIFIED = 16.0
"""Noise is drawn so many times larger than the kernels' errors, and what it moves is divided by it. A pass with noise
rounds by itself, elsewhere than the clean one; so its own rounding is a sixteenth of what is measured. The logits move
in proportion to the noise (tested), also at sensitive positions."""
DRAWS = 4
LLAMA_CPP, BURN, BETWEEN = "llama.cpp to float64", "burn to float64", "burn to llama.cpp"


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was predicted for one cell, and what was observed over it."""

    cell: CellId
    n_positions: int
    draws: int
    shares: Mapping[str, Share]  # LLAMA_CPP, BURN, BETWEEN


def predict(cell: Cell, reference: Reference, twin: Rows, noise: KernelNoise | BothNoise, draws: int) -> Prediction:
    """Score the cell's tokens so many times on the F32 twin with noise on every node; return the spread of the logits.

    Args:
        cell: the cell.
        reference: what was fed.
        twin: the reference's rows on the F32 twin, without noise.
        noise: of each kernel.
        draws: passes; the seeds are 0, 1, ...
    """
    clean = logits.trace(twin)
    scale, ids, found = row_scale(clean), clean.topk_ids[:, :TOP_JUDGED], []
    with open_llama(cell, cell.twin_path, kind="llama_perturbed") as engine:
        for seed in range(draws):
            progress = cell.progress.step(f"llama.cpp with noise, pass {seed + 1} of {draws}")
            rms, errors = engine.call(
                "perturb",
                *(reference.sequences, twin.spool, ids, noise.times(AMPLIFIED)),
                seed=seed,
                progress=progress,
            )
            found.append(Drawn(rms / scale / AMPLIFIED, errors / scale[:, np.newaxis] / AMPLIFIED))
    return predicted(found)


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
        theirs = KernelNoise(load_baseline("llama.cpp", cell.sides.reference.isa).variances)
        ours = KernelNoise(load_baseline(cell.id.stack, cell.sides.candidate.isa).variances)
        steps.check_pins(cell)
        reference = steps.capture_reference(cell)
        twin = steps.capture_twin(cell, reference)
        candidate = steps.capture_candidate(cell, reference)
        oracle = score_oracle(cell, reference.sequences, reference.prompt_lengths)
        expected = steps.positions(cell, reference)
        pairs = {LLAMA_CPP: (oracle, twin), BURN: (oracle, candidate), BETWEEN: (twin, candidate)}
        noises: dict[str, KernelNoise | BothNoise] = {LLAMA_CPP: theirs, BURN: ours, BETWEEN: BothNoise(theirs, ours)}
        found = {name: predict(cell, reference, twin, noise, draws) for name, noise in noises.items()}
        judged = {name: shares(logits.pair(*pairs[name], expected), found[name]) for name in pairs}
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
    return Predicted(cell.id, len(expected), draws, judged)
