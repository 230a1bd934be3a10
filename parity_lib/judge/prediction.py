"""The spread of the logits that noise of the kernels' size makes, and what was observed over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.align import row_scale
from parity_lib.numerics.metrics import pair_sigma
from parity_lib.records.traces import F64, PairTrace

PERCENTILES = (0.0, 1.0, 10.0, 50.0, 90.0, 99.0, 100.0)
MEDIAN, INSIDE = (0.7, 1.4), (0.3, 3.0)
"""What a prediction has to reach on the reference itself, against float64: its median share, and the shares of 99 % of
the positions. Sizes that are wrong by more, or errors that are not what the noise takes them for, do not reach it."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What one pass with noise moved, over the standard deviation of each row."""

    rms: F64  # (n,), over the vocabulary
    errors: F64  # (n, k), at the reference's top ids


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Standard deviations that rounding gives the logits of each row, over the row's own standard deviation."""

    rms: F64  # (n,), over the vocabulary
    delta: F64  # (n,), of one of the top logits
    pair: F64  # (n,), of the difference of two top logits
    freedom: float  # degrees of freedom of the rms of one pass: few where few directions carry the noise


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


def predicted(drawn: Sequence[Drawn]) -> Prediction:
    """Return the spread over passes with noise: root mean squares, which grow no tail from few passes.

    Raises:
        TraceMismatchError: fewer than two passes.
    """
    if len(drawn) < 2:
        raise TraceMismatchError("a spread needs two passes with noise", expected="2 or more", found=len(drawn))
    squares = np.square([one.rms for one in drawn])
    errors = np.stack([one.errors for one in drawn])
    pairs = np.square([pair_sigma(one.errors) for one in drawn])
    return Prediction(
        rms=np.sqrt(squares.mean(axis=0)),
        delta=np.sqrt(np.square(errors).mean(axis=(0, 2))),
        pair=np.sqrt(pairs.mean(axis=0)),
        freedom=freedom(squares),
    )


def freedom(squares: F64) -> float:
    """Return the degrees of freedom of squares that are a chi-squared variable times a scale of each column.

    Args:
        squares: ``(draws, n)``.

    The shares of a column's sum are then Dirichlet distributed with parameter a, half the degrees of freedom, whatever
    the scale; the mean of the sum of their squares is (a + 1) / (draws a + 1), which is solved for a. Infinite where
    the draws do not differ.

    >>> generator = np.random.default_rng(1)
    >>> round(freedom(generator.chisquare(6, (4, 20_000)) * np.arange(1, 20_001)))
    6
    """
    n = len(squares)
    together = float(np.mean(np.square(squares).sum(axis=0) / np.square(squares.sum(axis=0))))
    return 2 * (1 - together) / (n * together - 1) if n * together > 1 else np.inf


def shares(pair: PairTrace, prediction: Prediction) -> Share:
    """Return what two sides differ by over what was predicted, position by position.

    Args:
        pair: the two, in the order of the prediction.
        prediction: of the noise that the two have between them.

    Raises:
        TraceMismatchError: another number of rows.
    """
    if len(pair) != len(prediction.rms):
        raise TraceMismatchError("a prediction is of other rows", expected=len(prediction.rms), found=len(pair))
    scale = row_scale(pair.reference)
    observed = pair.rms / scale
    ratio = observed / prediction.rms
    return Share(
        observed=_summary(observed),
        predicted=_summary(prediction.rms),
        percentiles=tuple(np.percentile(ratio, PERCENTILES).tolist()),
        inside=float(np.mean((ratio >= INSIDE[0]) & (ratio <= INSIDE[1]))),
    )


def _summary(values: F64) -> tuple[float, float, float]:
    return float(np.sqrt(np.mean(np.square(values)))), float(np.median(values)), float(values.max())
