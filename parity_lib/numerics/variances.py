"""Variances that few draws tell: how many degrees of freedom they have, what they lend each other, what exceeds them.

Sources: G. K. Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, section 6.2 (moderated variances).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, digamma, polygamma, stdtrit

from parity_lib.records.traces import F64

SURE = 1e-3  # how often degrees of freedom may be taken for more than they are


@dataclass(frozen=True, slots=True, eq=False)
class Variances:
    """Estimates of variances, and the degrees of freedom that each of them has."""

    values: F64  # (n,)
    freedom: float


def freedom(squares: F64) -> float:
    """Return the degrees of freedom of squares that are a chi-squared variable times a scale of each column.

    Args:
        squares: ``(draws, n)``.

    The shares of a column's sum are then Dirichlet distributed with parameter a, half the degrees of freedom, whatever
    the scale; the mean of the sum of their squares is (a + 1) / (draws a + 1), which is solved for a. Few columns know
    that mean badly, and too many degrees of freedom would make limits too narrow: so it is solved at the mean's upper
    bound (Student, one in a thousand), and one column alone has one. Infinite where no draw differs from 0.

    >>> generator = np.random.default_rng(1)
    >>> round(freedom(generator.chisquare(6, (4, 20_000)) * np.arange(1, 20_001)))
    6
    """
    n, sums = len(squares), squares.sum(axis=0)
    moved = sums > 0
    if not moved.any():
        return np.inf
    shares = np.square(squares[:, moved] / sums[moved]).sum(axis=0)
    if len(shares) == 1:
        return 1.0
    bound = float(stdtrit(len(shares) - 1, 1 - SURE)) * float(np.std(shares, ddof=1)) / np.sqrt(len(shares))
    together = min(float(np.mean(shares)) + bound, 1.0)
    return max(2 * (1 - together) / (n * together - 1), 1.0) if n * together > 1 else np.inf


def moderated(variances: F64, freedom: float) -> Variances:
    """Return variances that borrow from each other: each is drawn to the middle as far as all of them lie close.

    Args:
        variances: ``(n,)``, estimates of different true values; 0 is not counted among those that lend.
        freedom: degrees of freedom of each.

    The true ones are taken for scaled inverse chi-squared, whose scale and degrees of freedom follow from mean and
    variance of the logarithms. Where they lie far apart, little is borrowed.

    >>> generator = np.random.default_rng(1)
    >>> round(moderated(generator.chisquare(4, 20_000) / 4 * 7 / generator.chisquare(7, 20_000), 4).freedom)
    11
    """
    usable = variances[(variances > 0) & np.isfinite(variances)]
    if len(usable) < 2 or not np.isfinite(freedom):
        return Variances(variances, freedom)
    logs = np.log(usable) - digamma(freedom / 2) + np.log(freedom / 2)
    surplus = float(np.var(logs, ddof=1)) - float(polygamma(1, freedom / 2))
    if surplus <= 0:  # no further apart than draws of one variance
        return Variances(np.full_like(variances, np.exp(logs.mean())), freedom * len(usable))
    lent = 2 * _inverse_trigamma(surplus)
    middle = np.exp(logs.mean() + digamma(lent / 2) - np.log(lent / 2))
    return Variances((lent * middle + freedom * variances) / (lent + freedom), lent + freedom)


def _inverse_trigamma(value: float) -> float:
    """Return x with trigamma(x) = value, above 0, by Newton's method on 1 / trigamma, which is convex."""
    x = 0.5 + 1 / value
    for _ in range(50):
        at = float(polygamma(1, x))
        step = at * (1 - at / value) / float(polygamma(2, x))
        x += step
        if -step < 1e-10 * x:
            break
    return x


def exceeded(observed: float, known: float, probability: float) -> float:
    """Return what the root of an observed variance over a known one exceeds with a probability.

    Args:
        observed: degrees of freedom of the observed one, 1 for a single normal number.
        known: degrees of freedom of the known one; infinite where it is exact.
        probability: of exceeding it.

    The root of the F distribution's quantile, by the inverse of the incomplete beta function, which keeps its digits
    for small probabilities.

    >>> round(exceeded(1, 1e9, 0.0455), 2), round(exceeded(1, 10, 0.0455), 2)
    (2.0, 2.28)
    """
    known = min(known, 1e9)
    observed = min(observed, 1e9)
    share = float(betaincinv(known / 2, observed / 2, probability))
    return float(np.sqrt(known * (1 - share) / (observed * share)))
