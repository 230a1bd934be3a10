"""How far noise of the kernels' size moves the logits, the limits that follow, and what was observed over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.base.errors import EngineError, TraceMismatchError
from parity_lib.base.names import TOP_JUDGED
from parity_lib.judge.align import Flags, row_scale
from parity_lib.numerics.metrics import pair_sigma
from parity_lib.numerics.variances import Variances, exceeded, freedom, moderated
from parity_lib.records.drift_limits import FALSE_ALARM, DriftLimits
from parity_lib.records.traces import F64, PairTrace, Position

PERCENTILES = (0.0, 1.0, 10.0, 50.0, 90.0, 99.0, 100.0)
MEDIAN, INSIDE = (0.7, 1.4), (0.3, 3.0)
"""What a prediction has to reach on the reference itself, against float64: its median share, and the shares of 99 % of
the positions. Sizes that are wrong by more, or errors that are not what the noise takes them for, do not reach it."""
PARTS = 5  # the false alarms of a cell are shared out: delta, rms of a position, of a prompt, of all, flips

F32_ROW, F32_MIDDLE = 1e-2, 1e-3
"""Root mean square over the row's standard deviation that float32 does not reach: at one position, and in the
middle of all. Measured: 2e-4 at the most sensitive position, 3e-6 in the middle; rows of BF16 arithmetic are at 7e-3,
a row of another token at 1. Beyond, the rows are not those of the file, and limits would be wide enough for anything.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What one pass with noise moved, over the standard deviation of each row; NaN where the row is not finite."""

    rms: F64  # (n,), over the vocabulary
    errors: F64  # (n, k), at the reference's top ids


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Variances that rounding gives the logits of each row, over the row's own, and the freedom of one pass."""

    rms: Variances  # (n,), over the vocabulary
    delta: Variances  # (n,), of one of the top logits
    pair: Variances  # (n,), of the difference of two top logits
    freedom: float  # of the rms of one row in one pass: few where few directions carry the noise
    together: float  # of the mean square of all rows of a prompt in one pass: rows share the noise of earlier ones
    draws: int

    @property
    def sigma(self) -> F64:
        """Return the predicted rms of each row, over its standard deviation."""
        return np.asarray(np.sqrt(self.rms.values))


@dataclass(frozen=True, slots=True)
class Share:
    """What was observed over what was predicted, over all positions."""

    observed: tuple[float, float, float]  # rms over std: pooled, median, largest
    predicted: tuple[float, float, float]
    percentiles: tuple[float, ...]  # of observed over predicted, at PERCENTILES
    inside: float  # share of the positions in INSIDE

    @property
    def holds(self) -> bool:
        """Return whether the median lies in MEDIAN and 99 % of the positions in INSIDE."""
        middle = self.percentiles[PERCENTILES.index(50.0)]
        return MEDIAN[0] <= middle <= MEDIAN[1] and self.inside >= 0.99


def predicted(drawn: Sequence[Drawn], positions: Sequence[Position]) -> Prediction:
    """Return what rounding does to the logits, from some passes with noise.

    A variance is the mean over the passes, drawn to the middle of all rows as far as these lie close (``moderated``).

    Args:
        drawn: two passes or more.
        positions: of the rows.

    Raises:
        TraceMismatchError: fewer than two passes.
        EngineError: a finite row is not finite with noise, or the rows that noise was added to are not those that the
            graph gives without it: stale rows, or those of another file.
    """
    if len(drawn) < 2:
        raise TraceMismatchError("a spread needs two passes with noise", expected="2 or more", found=len(drawn))
    squares = np.square([one.rms for one in drawn])
    errors = np.stack([one.errors for one in drawn])
    finite: Flags = np.asarray(np.isfinite(squares).all(axis=0) & np.isfinite(errors).all(axis=(0, 2)))
    squares, errors = squares[:, finite], errors[:, finite]
    kept = [position for position, is_finite in zip(positions, finite, strict=True) if is_finite]
    refuse_unsound(np.sqrt(squares.mean(axis=0)), errors, kept)

    def spread(values: F64) -> Variances:
        return moderated(values.mean(axis=0), len(drawn) * freedom(values))

    rms = spread(squares)
    together = freedom(_of_prompts(squares / np.maximum(rms.values, np.finfo(float).tiny), kept))
    return Prediction(
        rms=_at(finite, rms),
        delta=_at(finite, spread(np.square(errors).mean(axis=2))),
        pair=_at(finite, spread(np.square([pair_sigma(of_draw) for of_draw in errors]))),
        freedom=freedom(squares),
        together=together,
        draws=len(drawn),
    )


def _at(rows: Flags, found: Variances) -> Variances:
    """Return variances of some rows among all; those of the others are NaN."""
    values = np.full(len(rows), np.nan)
    values[rows] = found.values
    return Variances(values, found.freedom)


def _of_prompts(squares: F64, positions: Sequence[Position]) -> F64:
    """Return the sums over each prompt's rows, ``(draws, prompts)``."""
    prompts = np.array([position.prompt_idx for position in positions])
    sums = [squares[:, prompts == prompt].sum(axis=1) for prompt in np.unique(prompts)]
    return np.stack(sums, axis=1) if sums else squares


def refuse_unsound(rms: F64, errors: F64, positions: Sequence[Position]) -> None:
    """Refuse rows that their own graph does not give again: all passes with noise then miss them by the same.

    Args:
        rms: predicted, over the standard deviation of the row, ``(n,)``.
        errors: ``(draws, n, k)``.
        positions: ``(n,)``.

    Raises:
        EngineError: with the worst position, or with the median of all.
    """
    if not len(rms):
        return
    worst, middle = int(np.argmax(rms)), float(np.median(rms))
    size = np.square(errors).sum(axis=(0, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        common = np.square(errors.sum(axis=0)).sum(axis=1) / (len(errors) * size)
    shared, chance = float(np.mean(common[size > 0])) if (size > 0).any() else 0.0, 1 / len(errors)
    if rms[worst] <= F32_ROW and middle <= F32_MIDDLE and shared <= (1 + chance) / 2:
        return
    raise EngineError(
        "the reference's rows are not what its graph computes from the same file, so no limit can be predicted",
        place=f"prompt {positions[worst].prompt_idx} token {positions[worst].token_idx}",
        expected=f"rms over std of at most {F32_ROW:g} at each position and {F32_MIDDLE:g} in the middle; {chance:.0%} "
        "of it common to all passes",
        found=f"{rms[worst]:.3g} there, {middle:.3g} in the middle, {shared:.0%} in common",
        next_step="remove the folder `traces` of the cache and run again; if it stays, the reference is broken",
    )


def limits_of(
    prediction: Prediction, positions: Sequence[Position], *, reference: str, candidate: str, source: str
) -> DriftLimits:
    """Return the limits of T4: quantiles of what is predicted, at FALSE_ALARM for all positions together.

    A square of one position over its prediction is F distributed, with the degrees of freedom of one pass and those of
    the prediction. An rms is a mean over so many values that chance hardly moves it: there the prediction may be off by
    as much as its own check allows (MEDIAN).

    Args:
        prediction: of the noise of both engines.
        positions: of its rows.
        reference: name of the baseline of its kernels.
        candidate: the same.
        source: what was run.
    """
    part = FALSE_ALARM / PARTS
    n, n_prompts = len(positions), len({position.prompt_idx for position in positions})
    together = min(prediction.together, n * prediction.freedom)
    prompt_idx, token_idx = (np.array([position[i] for position in positions], np.int32) for i in range(2))
    return DriftLimits(
        prompt_idx=prompt_idx,
        token_idx=token_idx,
        rms=prediction.sigma,
        delta=np.sqrt(prediction.delta.values),
        pair=np.sqrt(prediction.pair.values),
        rms_limit=MEDIAN[1] * exceeded(prediction.freedom, prediction.rms.freedom, part / n),
        delta_limit=exceeded(1, prediction.delta.freedom, part / (n * TOP_JUDGED)),
        pair_limit=exceeded(1, prediction.pair.freedom, part / n),
        pooled_limit=MEDIAN[1] * exceeded(n_prompts * together, prediction.draws * n_prompts * together, part),
        prompt_limit=MEDIAN[1] * exceeded(together, prediction.draws * together, part / n_prompts),
        false_alarm=FALSE_ALARM,
        draws=prediction.draws,
        reference=reference,
        candidate=candidate,
        source=source,
    )


def shares(pair: PairTrace, prediction: Prediction) -> Share:
    """Return what two sides differ by over what was predicted, position by position.

    Args:
        pair: the two, in the order of the prediction.
        prediction: of the noise that the two have between them.

    Raises:
        TraceMismatchError: another number of rows.
    """
    sigma = prediction.sigma
    if len(pair) != len(sigma):
        raise TraceMismatchError("a prediction is of other rows", expected=len(sigma), found=len(pair))
    observed = pair.rms / row_scale(pair.reference)
    ratio = observed / sigma
    return Share(
        observed=_summary(observed),
        predicted=_summary(sigma),
        percentiles=tuple(np.percentile(ratio, PERCENTILES).tolist()),
        inside=float(np.mean((ratio >= INSIDE[0]) & (ratio <= INSIDE[1]))),
    )


def _summary(values: F64) -> tuple[float, float, float]:
    return float(np.sqrt(np.mean(np.square(values)))), float(np.median(values)), float(values.max())
