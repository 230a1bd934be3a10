"""Where the limits of rung T4 come from: llama.cpp's own graph with noise of the size of each kernel's errors.

Nothing of the candidate's logits is used, and no position is special: where the model amplifies rounding, the noise
moves the logits further. What the prediction stands on is the measured baseline of each kernel of both engines
(``fixtures/kernel_baseline``, by ``parity baseline``). It is held to float64 by ``parity predict``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.json_text import encode
from parity_lib.base.names import TOP_JUDGED
from parity_lib.base.record import decode_record
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference import Reference, fed, through_cache
from parity_lib.cell.reference_cache import Kept
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.judge.align import row_scale
from parity_lib.judge.prediction import Drawn, Prediction, limits_of, predicted
from parity_lib.model_file.digest import sha256_file
from parity_lib.numerics.kernel_noise import BothNoise, KernelNoise
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.isa_evidence import LLAMA_CPP
from parity_lib.records.kernel_baseline import KernelBaseline, find_baseline
from parity_lib.records.tolerances import load_tolerances
from parity_lib.records.traces import LogitTrace, Position

AMPLIFIED = 16.0
"""Noise is drawn so many times larger than the kernels' errors, and what it moves is divided by it. A pass with noise
rounds by itself, elsewhere than the clean one; so its own rounding is a sixteenth of what is measured. The logits move
in proportion to the noise (tested), also at sensitive positions."""
DRAWS = 4
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""A second thread of numpy's BLAS, for the noise, beside those of ggml makes a pass four times slower."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """What the kernels of both engines err by, F32 weights."""

    reference: KernelBaseline
    candidate: KernelBaseline

    @property
    def noise(self) -> BothNoise:
        """Return the errors that the two have between them."""
        return BothNoise(KernelNoise(self.reference.variances), KernelNoise(self.candidate.variances))

    @property
    def sha256(self) -> str:
        """Return a digest of the numbers of both, for the cache key of what stands on them."""
        return hashlib.sha256(repr((self.reference.variances, self.candidate.variances)).encode()).hexdigest()


def baselines_of(cell: Cell) -> Baselines:
    """Return the baselines of a cell's engines on their ISA targets. Raises ``PinError`` where none was measured."""
    return Baselines(
        find_baseline(LLAMA_CPP, cell.sides.reference.isa), find_baseline(cell.id.stack, cell.sides.candidate.isa)
    )


def derive_limits(cell: Cell, reference: Reference, twin: Rows) -> DriftLimits:
    """Return the limits of every position of a cell, predicted now or taken from the cache.

    Args:
        cell: the cell. Where file and prompts are pinned, the limits are held to ``fixtures/tolerances.toml``.
        reference: what was fed.
        twin: the reference's rows on the F32 twin.

    Raises:
        PinError: a kernel has no baseline on the ISA target of an engine; or the limits are not those of the fixture.
        EngineError: an engine refused or died, or the rows are not those of the file.
    """
    limits = measure_limits(cell, reference, twin)
    if not cell.unpinned:
        load_tolerances().find(cell.id.model, cell.id.quant, limits).hold(limits)
    return limits


def measure_limits(cell: Cell, reference: Reference, twin: Rows) -> DriftLimits:
    """Return the limits of a cell, held to nothing. Raises as ``derive_limits``."""
    baselines = baselines_of(cell)
    fields = {
        "twin_sha256": sha256_file(cell.twin_path),
        "baselines": baselines.sha256,
        "draws": DRAWS,
        **fed(reference),
    }
    fields["rows"] = hashlib.sha256(twin.digests.tobytes()).hexdigest()

    def make() -> Kept:
        found = predict(cell, reference.sequences, logits.trace(twin), twin.spool, baselines.noise, DRAWS)
        return Kept(encode(_limits(cell, found, twin.positions, baselines)))

    kept = through_cache(cell, "limits", fields, make, again=False)
    return decode_record(kept.data, DriftLimits, "the cached limits")


def limits_of_rows(
    cell: Cell, sequence: Sequence[int], clean: LogitTrace, positions: Sequence[Position]
) -> DriftLimits:
    """Return the limits of one sequence's rows, whichever engine gave them, predicted now. Raises as ``derive_limits``.

    Args:
        cell: the cell.
        sequence: what was fed.
        clean: whose deviations and top ids the limits refer to, one row for each token.
        positions: of its rows.
    """
    baselines = baselines_of(cell)
    found = predict(cell, [sequence], clean, None, baselines.noise, DRAWS)
    return _limits(cell, found, positions, baselines)


def predict(
    cell: Cell,
    sequences: Sequence[Sequence[int]],
    clean: LogitTrace,
    spool: Path | None,
    noise: KernelNoise | BothNoise,
    draws: int,
) -> Prediction:
    """Score tokens so many times on the F32 twin with noise on every node; return the spread of the logits.

    Args:
        cell: the cell.
        sequences: what was fed.
        clean: the rows without noise, whose deviations and top ids are referred to.
        spool: the rows themselves; None to score them first.
        noise: of each kernel.
        draws: passes; the seeds are 0, 1, ...

    Raises:
        EngineError: llama.cpp died; a finite row is not finite with noise; or the rows are not those of the file.
    """
    scale, ids, found = row_scale(clean), clean.topk_ids[:, :TOP_JUDGED], []
    loud = noise.times(AMPLIFIED)
    with open_llama(cell, cell.twin_path, kind="llama_perturbed", env=ONE_THREAD) as engine:
        if spool is None:
            spool = cell.spools / "clean.f32"
            engine.call("score", sequences, spool, progress=cell.progress.step("llama.cpp scores the F32 twin"))
        for seed in range(draws):
            progress = cell.progress.step(f"llama.cpp with noise, pass {seed + 1} of {draws}")
            rms, errors = engine.call("perturb", sequences, spool, ids, loud, seed=seed, progress=progress)
            found.append(Drawn(rms / scale / AMPLIFIED, errors / scale[:, np.newaxis] / AMPLIFIED))
    positions = [Position(*p) for p in zip(clean.prompt_idx.tolist(), clean.token_idx.tolist(), strict=True)]
    lost = (clean.n_nonfinite == 0) & ~np.all([np.isfinite(one.rms) for one in found], axis=0)
    if lost.any():
        at = positions[int(np.flatnonzero(lost)[0])]
        raise EngineError(
            "a finite row is not finite with noise, so no limit can be predicted",
            place=f"{cell.twin_path.name}, prompt {at.prompt_idx} token {at.token_idx}",
            found=f"{int(lost.sum())} such rows",
        )
    return predicted(found, positions)


def _limits(cell: Cell, found: Prediction, positions: Sequence[Position], baselines: Baselines) -> DriftLimits:
    reference, candidate = (baselines.reference, baselines.candidate)
    source = (
        f"{found.draws} passes of llama.cpp on the F32 twin with noise of the kernels' errors: {reference.name}, "
        f"{candidate.name}; prompts {cell.suite.sha256[:12]}; {datetime.now(UTC):%Y-%m-%d}"
    )
    return limits_of(found, positions, reference=reference.name, candidate=candidate.name, source=source)
