"""Where the limits of rung T4 come from: the reference's own distance to a float64 oracle, never the candidate's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.files import write_atomic
from parity_lib.base.names import TOP_JUDGED, Rung, Settings
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.rows import Rows
from parity_lib.engines.oracle.rope import WALKED
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.align import Aligned, Flags, align, row_scale
from parity_lib.numerics.metrics import pair_sigma, pooled_rms_over_std
from parity_lib.records.tolerances import (
    FIRST,
    LATER,
    METRICS,
    Band,
    BandSet,
    ToleranceTable,
    dump_tolerances,
)
from parity_lib.records.traces import F64, PairTrace, Position, positions_of

if TYPE_CHECKING:
    from parity_lib.cell.request import Cell

BANDS_FILE = "bands.toml"
CHAINS = 8.1
"""How much larger than the reference's a correct engine's f32 error may be, from how the two add up, not from what the
candidate shows. ggml's f32 dot product keeps 64 partial sums on AVX-512 (32 on AVX2), matrixmultiply's sgemm one for
each output; the rounding error of a chain grows with the root of its length, so sqrt(64) = 8 times the reference's is
sound, and both err independently: sqrt(1 + 64) = 8.1.
"""
SAMPLE = 1.5
"""Room on top of that for a limit on the *largest* error: over one set of prompts the largest is a sample."""
FACTORS = {
    "pooled_rms_over_std": CHAINS,
    "position_rms_over_std": CHAINS * SAMPLE,
    "delta_over_std": CHAINS * SAMPLE,
    "pair_sigma_over_std": CHAINS,
}
"""Limit over what was measured. A fault below it is not seen at T4; finding it is T3's task."""
FEW_FIRST = 8
"""With fewer first rows than this, their limits are at least those of the later rows: of a few rows all may be exact by
luck, and a first row is not nearer to float64 than a later one."""
SENSITIVE = 10.0
"""A position whose error is so many times the median is sensitive: there the model itself amplifies the rounding that
it is given. It gets a limit of its own, since one such position in thousands would set the limit of all of them."""
AMPLIFIED = 30.0
"""The same, seen from the other side: one rounding error may happen to be small where another is large. So the
reference also scores its twin with keys and values in F16, a change some thousand times larger, and a position that
this moves so many times further than the median is sensitive too; its error is then taken to be as many times the
median as it moved.
SmolLM2-135M has one such position that all its files share, the sixth token of the eleventh prompt (100 to 200 times),
and some five more by file.
"""

F32_ROW, F32_MIDDLE = 1e-2, 1e-3
"""Root mean square over the row's standard deviation that float32 does not reach: at one position, and in the
middle of all. Measured: 2e-4 at the most sensitive position, 3e-6 in the middle; rows of BF16 arithmetic are at 7e-3,
a row of another token at 1. Beyond, the reference's rows are not those of its own file, and limits that are measured
by them would be wide enough for anything.
"""


def derive(
    pair: PairTrace,
    expected: Sequence[Position],
    model: str,
    quant: str,
    source: str,
    *,
    rough: PairTrace | None = None,
) -> list[Band]:
    """Return the T4 bands from a pair of (reference on the F32 twin, float64 oracle on the same file).

    Each limit is its factor of ``FACTORS`` times what the metric measures between the two: pooled rms, the worst
    position's rms, the worst delta at its id, and the spread of the error of the difference of two top logits, each
    over the standard deviation of the reference's row, apart for the first row of a prompt, for sensitive positions
    one by one, and for all other rows together.

    Args:
        pair: the reference's twin, the oracle.
        expected: every position that has to be there.
        model: id of the bands.
        quant: of the deployed file.
        source: what was run; part of each band's own source.
        rough: the reference's twin, strict settings against an F16 cache; without it nothing is known of amplification.

    Raises:
        EngineError: a position is missing, or a value is not finite: nothing can be derived from that.
    """
    seen = align(pair, expected)
    if seen.causes or not seen.finite.all():
        raise EngineError(
            "the limits cannot be derived",
            place=f"{model} {quant}",
            expected="the reference and the oracle at every position, all finite",
            found="; ".join(seen.causes) or f"{int((~seen.finite).sum())} positions with non-finite logits",
        )
    errors = _errors_of(seen)
    gain = _gain(rough, expected, len(seen))
    later = ~seen.first
    stands_out = _stands_out(errors.rms, errors.step, later) | _stands_out(errors.delta, errors.step, later)
    sensitive = later & (stands_out | (gain > AMPLIFIED))
    # A prompt of one token and one generated one has no later row, so the first ones stand in for them.
    rest = later & ~sensitive if later.any() else seen.first
    usual, first = errors.over(rest), errors.over(seen.first)
    if int(seen.first.sum()) < FEW_FIRST:
        first = {metric: max(value, usual[metric]) for metric, value in first.items()}
    found = {FIRST: (first, seen.first), LATER: (usual, rest)}
    for i in np.flatnonzero(sensitive).tolist():
        prompt_idx, token_idx = seen.positions[i]
        row = np.arange(len(seen)) == i
        found[f"prompt {prompt_idx} token {token_idx}"] = (errors.alone(row, float(gain[i]), usual, later), row)
    return [
        Band(model, quant, Rung.T4, metric, where, max(FACTORS[metric] * value, step), METRICS[metric], text, True)
        for where, (measured, rows) in found.items()
        for metric, value in measured.items()
        for step in [float(errors.step[rows].max())]
        for words in [f"{FACTORS[metric]:g} x {value:.3g}{_least(step, metric, value)}"]
        for text in [f"{words}, {int(rows.sum())} positions; {source}"]
    ]


def _least(step: float, metric: str, value: float) -> str:
    """Return the words for a limit that is one float32 step of the largest logit; empty where it is above that."""
    return "" if FACTORS[metric] * value >= step else f", so one float32 step of the logits, {step:.3g}"


@dataclass(frozen=True, slots=True, eq=False)
class _Errors:
    """What the reference is off by at each position, over the scale of its row (its standard deviation)."""

    rms: F64  # (n,)
    delta: F64  # (n,), absolute
    sigma: F64  # (n,), of the difference of two top logits
    scale: F64  # (n,), logits
    step: F64  # (n,), one float32 step of the largest logit: nothing smaller can be measured

    def over(self, rows: Flags) -> dict[str, float]:
        """Return each metric over some rows together."""
        return {
            "pooled_rms_over_std": pooled_rms_over_std(self.rms[rows] * self.scale[rows], self.scale[rows]),
            "position_rms_over_std": float(self.rms[rows].max()),
            "delta_over_std": float(self.delta[rows].max()),
            "pair_sigma_over_std": float(np.sqrt(np.mean(self.sigma[rows] ** 2))),
        }

    def alone(self, row: Flags, gain: float, usual: Mapping[str, float], rows: Flags) -> dict[str, float]:
        """Return each metric of a sensitive position: as measured, as amplified, and never less than the usual."""
        measured = self.over(row)
        middle = {"position_rms_over_std": self.rms, "delta_over_std": self.delta, "pair_sigma_over_std": self.sigma}
        return {
            metric: max(measured[metric], usual[metric], gain * float(np.median(values[rows])))
            for metric, values in middle.items()
        }


def _errors_of(seen: Aligned) -> _Errors:
    scale = seen.scale
    off = seen.pair.candidate_at_reference[:, :TOP_JUDGED].astype(np.float64)
    sigma = pair_sigma(off - seen.pair.reference.topk_logits[:, :TOP_JUDGED])
    return _Errors(seen.pair.rms / scale, np.abs(seen.delta) / scale, sigma / scale, scale, seen.step / scale)


def _gain(rough: PairTrace | None, expected: Sequence[Position], n_rows: int) -> F64:
    """Return how many times the median each row moves with an F16 cache, ``(n_rows,)``; 1 where most do not move."""
    if rough is None:
        return np.ones(n_rows)
    moved = align(rough, expected)
    if moved.causes or not moved.finite.all() or len(moved) != n_rows:
        raise EngineError("the amplification of the rows cannot be measured", found="; ".join(moved.causes) or "NaN")
    relative = moved.pair.rms / moved.scale
    middle = float(np.median(relative))
    gain: F64 = relative / middle if middle > 0 else np.ones(n_rows)
    return gain


def _stands_out(values: F64, step: F64, rows: Flags) -> Flags:
    """Return where a value is more than ``SENSITIVE`` times the median of some rows, and than one float32 step."""
    if not rows.any():
        return np.zeros(len(values), bool)
    return np.asarray(values > SENSITIVE * np.maximum(np.median(values[rows]), step))


def derive_for(
    cell: Cell, sequences: Sequence[Sequence[int]], lengths: Sequence[int], twin: Rows, expected: Sequence[Position]
) -> BandSet:
    """Return limits for a file or prompts of the user's own, measured now.

    Args:
        cell: the cell.
        sequences: what the engines were fed.
        lengths: tokens of each prompt.
        twin: the reference's rows on the F32 twin.
        expected: every position of the cell.
    """
    table = ToleranceTable(measure(cell, sequences, lengths, twin, expected, command="derived on the fly"))
    return table.cell(cell.id.model, cell.id.quant, Rung.T4)


def measure(
    cell: Cell,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int],
    twin: Rows,
    expected: Sequence[Position],
    *,
    command: str,
) -> list[Band]:
    """Score the same tokens with the float64 oracle on the F32 twin, and derive the bands."""
    rows = score_oracle(cell, sequences, lengths)
    pair, finite = finite_rows(logits.pair(twin, rows, expected), expected)
    if not len(pair):
        return []  # T4 names each row; there is nothing that a limit could be measured by
    refuse_unsound(pair, twin.run.model_path)
    rough = logits.pair(twin, _with_f16_cache(cell, sequences, lengths), expected)
    source = (
        f"llama.cpp {twin.run.commit} strict on the F32 twin {twin.run.model_sha256[:12]}, against float64 numpy with "
        f"walked angles, prompts {cell.suite.sha256[:12]}; {datetime.now(UTC):%Y-%m-%d}, {twin.run.machine_class}; "
        f"{command}"
    )
    return derive(pair, finite, cell.id.model, cell.id.quant, source, rough=_at(rough, finite))


def score_oracle(cell: Cell, sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> Rows:
    """Score tokens with the float64 oracle on the cell's F32 twin, at the angles that llama.cpp walks to."""
    spool = cell.spools / "oracle.f32"
    asked = {"path": str(cell.twin_path), "n_threads": cell.n_threads, "angles": WALKED}
    with Worker("oracle", asked, log=cell.log("oracle")) as oracle:
        counts = oracle.call("score", sequences, spool, progress=cell.progress.step("float64 oracle scores"))
        run, n_vocab = oracle.call("run_info"), oracle.call("n_vocab")
    return logits.delivered(run, spool, n_vocab, sequences, lengths, counts)


def finite_rows(pair: PairTrace, expected: Sequence[Position]) -> tuple[PairTrace, tuple[Position, ...]]:
    """Return the rows that are finite on the reference's side, and the positions that are expected of them.

    T4 diverges at the others. A position that is missing is still expected.
    """
    lost = pair.reference.n_nonfinite > 0
    without = {position for position, bad in zip(positions_of(pair.reference), lost, strict=True) if bad}
    return pair.take(np.flatnonzero(~lost)), tuple(position for position in expected if position not in without)


def _at(pair: PairTrace, wanted: Sequence[Position]) -> PairTrace:
    """Return the rows of a pair at some positions."""
    among = set(wanted)
    return pair.take(np.array([i for i, p in enumerate(positions_of(pair.reference)) if p in among], np.intp))


def refuse_unsound(pair: PairTrace, place: str) -> None:
    """Refuse a reference that is farther from the float64 oracle than float32 explains: stale rows, another file.

    Raises:
        EngineError: with the worst position, or with the median of all.
    """
    relative = pair.rms / row_scale(pair.reference)
    worst = int(np.argmax(np.where(np.isfinite(relative), relative, np.inf)))
    middle = float(np.median(relative))
    if relative[worst] <= F32_ROW and middle <= F32_MIDDLE:  # not so for NaN
        return
    at = f"prompt {pair.reference.prompt_idx[worst]} token {pair.reference.token_idx[worst]}"
    raise EngineError(
        "the reference's rows are not what the float64 oracle computes from the same file, so no limit can be derived",
        place=f"{place}, {at}",
        expected=f"rms over std of at most {F32_ROW:g} at each position and {F32_MIDDLE:g} in the middle",
        found=f"{relative[worst]:.3g} there, {middle:.3g} in the middle",
        next_step="remove the folder `traces` of the cache and run again; if it stays, the reference is broken",
    )


def _with_f16_cache(cell: Cell, sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> Rows:
    """Score the same tokens with llama.cpp on the F32 twin, with keys and values in F16."""
    settings, spool = Settings.FLASH_F16, cell.spools / "rough.f32"
    with open_llama(cell, cell.twin_path, settings) as engine:
        counts = engine.call("score", sequences, spool, progress=cell.progress.step("llama.cpp, F16 cache, scores"))
        run, n_vocab = engine.call("run_info"), engine.call("n_vocab")
    return logits.delivered(run, spool, n_vocab, sequences, lengths, counts)


def save_bands(bands: BandSet, folder: Path) -> Path:
    """Write the limits of a verdict beside it, so that its traces can be judged again."""
    path = folder / BANDS_FILE
    own = [band for band in bands.table.bands if band.key[:3] == (bands.model, bands.quant, bands.rung.value)]
    write_atomic(path, dump_tolerances(own).encode())
    return path
