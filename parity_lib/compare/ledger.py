"""The flip ledger: is a flip explained by the reference's own margin, and are there as many as margins predict?

A flip is a tie if the reference's margin between the two ids at issue is at most three sigma of their *difference*.
Sigma comes from a band or from the self-spread, never from the candidate: a candidate with a fault would widen its
own excuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.names import Kind, LedgerClass
from parity_lib.traces import F64, Position

SIGMAS = 3.0
SURPLUS_P = 1e-3
"""Below this probability the number of ties is more than margins predict: one sound cell in a thousand trips it."""


@dataclass(frozen=True, slots=True)
class Flip:
    """One changed top-1 or top-5 set, with what decides its class."""

    position: Position
    kind: Kind  # TOP1 or TOP5_SET
    ledger: LedgerClass
    margin: float  # logits, reference's own, between the two ids at issue
    sigma: float  # logits, of the difference of two top logits at this position
    reference_id: int  # the id that lost its place
    candidate_id: int  # the id that took it


@dataclass(frozen=True, slots=True)
class Ledger:
    """All flips of one rung, and how many the reference's margins predict for noise of that sigma."""

    flips: tuple[Flip, ...]
    predicted_top1: float
    predicted_top5_set: float

    def count(self, ledger: LedgerClass, kind: Kind | None = None) -> int:
        """Return how many flips are of a class, of one kind or of both."""
        return sum(flip.ledger is ledger and kind in (None, flip.kind) for flip in self.flips)

    def predicted(self, kind: Kind) -> float:
        """Return the expected number of flips of a kind."""
        return self.predicted_top1 if kind is Kind.TOP1 else self.predicted_top5_set

    def surplus(self, kind: Kind) -> bool:
        """Return whether there are more ties of a kind than the margins predict: then they explain nothing."""
        return poisson_tail(self.count(LedgerClass.TIE, kind), self.predicted(kind)) < SURPLUS_P

    def to_json(self) -> dict[str, object]:
        """Return counts and entries as the verdict holds them."""
        kinds = {
            kind.value: {
                "ties": self.count(LedgerClass.TIE, kind),
                "unexplained": self.count(LedgerClass.UNEXPLAINED, kind),
                "predicted": self.predicted(kind),
                "surplus": self.surplus(kind),
            }
            for kind in (Kind.TOP1, Kind.TOP5_SET)
        }
        return {"counts": kinds, "flips": [_entry(flip) for flip in self.flips]}


def _entry(flip: Flip) -> dict[str, object]:
    return {
        "prompt_idx": flip.position.prompt_idx,
        "token_idx": flip.position.token_idx,
        "kind": flip.kind,
        "ledger": flip.ledger,
        "margin": flip.margin,
        "sigma": flip.sigma,
        "reference_id": flip.reference_id,
        "candidate_id": flip.candidate_id,
    }


def classify(margin: float, sigma: float) -> LedgerClass:
    """Return TIE if margin <= 3 sigma. A NaN on either side explains nothing."""
    return LedgerClass.TIE if margin <= SIGMAS * sigma else LedgerClass.UNEXPLAINED


def predicted_flips(margins: F64, sigmas: F64) -> float:
    """Return the expected number of flips: the sum over positions of P(N(0, sigma) > margin).

    That is erfc(margin / (sigma sqrt 2)) / 2. With sigma 0 only an exact tie can flip, and it counts half.
    """
    total = 0.0
    for margin, sigma in zip(margins.tolist(), sigmas.tolist(), strict=True):
        if sigma > 0:
            total += 0.5 * math.erfc(margin / (sigma * math.sqrt(2)))
        elif margin == 0:
            total += 0.5
    return total


def poisson_tail(count: int, mean: float) -> float:
    """Return P(X >= count) for a Poisson variable; an upper bound for the sum of rare independent flips.

    Summed upwards from ``count``, so that a tail of 1e-20 is not lost beside 1.
    """
    if count <= 0:
        return 1.0
    if mean <= 0:
        return 0.0
    if count <= mean:  # the tail is the large part here, and never near the limit
        return 1.0 - sum(_poisson(k, mean) for k in range(count))
    term, total, k = _poisson(count, mean), 0.0, count
    while term > total * 1e-17:
        total += term
        k += 1
        term *= mean / k
    return total


def _poisson(k: int, mean: float) -> float:
    return math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))


def margin_of_swap(left: Sequence[float], entered: Sequence[float]) -> float:
    """Return the reference's margin of a changed set: its largest logit that left less its smallest that entered.

    The widest pair, so that one far-off id among several cannot hide behind a close one.
    """
    return float(np.max(left)) - float(np.min(entered))
