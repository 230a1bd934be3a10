"""Every changed top-1 or top-5 set of an aligned pair, classed by the reference's own margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.base.names import TOP_JUDGED, Kind, LedgerClass, Rung
from parity_lib.judge.align import Aligned
from parity_lib.records.row_numbers import Flip, FlipKind, Flips
from parity_lib.records.self_spread import Displaced
from parity_lib.records.traces import F64, LogitTrace
from parity_lib.records.verdicts import Divergence, TopK

SIGMAS = 3.0
SURPLUS_P = 1e-3
"""Below this probability there are more near-ties than margins predict: a false alarm in one sound cell of 1,000."""


def ledger_of(seen: Aligned, sigma: F64, sigmas: float = SIGMAS) -> Ledger:
    """Return the class of each flip at a finite position, and how many flips the reference's margins predict.

    Args:
        seen: the pair.
        sigma: of the difference of two top logits at each position, logits, ``(n,)``; never from the candidate.
        sigmas: up to so many of them a margin is a near-tie's.
    """
    flips = []
    for i in np.flatnonzero(seen.finite).tolist():
        if not seen.top1_equal[i]:
            flips.append(_top1_flip(seen, i, float(sigma[i]), sigmas))
        if not seen.top5_equal[i]:
            flips.append(_set_flip(seen, i, float(sigma[i]), sigmas))
    top, sigma = seen.pair.reference.topk_logits[seen.finite].astype(np.float64), sigma[seen.finite]

    def predicted(last: int) -> float:
        has_next = top.shape[1] > last + 1
        return predicted_flips(top[:, last] - top[:, last + 1], sigma) if has_next else 0.0

    return Ledger(tuple(flips), predicted(0), predicted(TOP_JUDGED - 1))


DRAWS, RIVALS, SEED = 128, 24, 20261123


def expected_changes(top: F64, sigma: F64, n_first: int) -> float:
    """Return how many positions change their first ``n_first`` ids under noise, in the mean over seeded draws.

    Where the noise is as large as the gaps, other pairs than the last in and the first out change places as well:
    on a Q4_K_M file half as many again. Each logit gets a noise of its own of sigma/sqrt(2), so that a difference
    has sigma.

    Args:
        top: the reference's largest logits, descending, ``(n, k)``; of ids beyond RIVALS none is near.
        sigma: of the difference of two logits, ``(n,)``.
        n_first: 1 for the top-1, 5 for the top-5 set.
    """
    near = top[:, :RIVALS]
    if near.shape[1] <= n_first or not len(near):
        return 0.0
    generator = np.random.Generator(np.random.PCG64(SEED))
    changed = 0
    for _ in range(DRAWS):
        noisy = near + generator.standard_normal(near.shape) * (sigma / np.sqrt(2))[:, None]
        changed += int((noisy[:, :n_first].min(axis=1) < noisy[:, n_first:].max(axis=1)).sum())
    return changed / DRAWS


def top5(trace: LogitTrace, i: int) -> TopK:
    """Return the first five (id, logit) of a row."""
    ids, logits = trace.topk_ids[i, :TOP_JUDGED].tolist(), trace.topk_logits[i, :TOP_JUDGED].tolist()
    return tuple(zip(ids, logits, strict=True))


def _top1_flip(seen: Aligned, i: int, sigma: float, sigmas: float) -> Flip:
    r, c = seen.pair.reference, seen.pair.candidate
    margin = float(r.topk_logits[i, 0]) - float(seen.pair.reference_at_candidate[i, 0])
    ids = int(r.topk_ids[i, 0]), int(c.topk_ids[i, 0])
    return Flip(*seen.positions[i], Kind.TOP1, classify(margin, sigma, sigmas), margin, sigma, *ids)


def _set_flip(seen: Aligned, i: int, sigma: float, sigmas: float) -> Flip:
    r = dict(top5(seen.pair.reference, i))
    c_ids = seen.pair.candidate.topk_ids[i, :TOP_JUDGED].tolist()
    at_c = dict(zip(c_ids, seen.pair.reference_at_candidate[i, :TOP_JUDGED].tolist(), strict=True))
    left = {token: logit for token, logit in r.items() if token not in at_c}
    entered = {token: logit for token, logit in at_c.items() if token not in r}
    margin = margin_of_swap(list(left.values()), list(entered.values()))
    ids = max(left, key=left.__getitem__), min(entered, key=entered.__getitem__)
    return Flip(*seen.positions[i], Kind.TOP5_SET, classify(margin, sigma, sigmas), margin, sigma, *ids)


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
        """Return whether there are more near-ties of a kind than the margins predict: then none is excused."""
        return poisson_tail(self.count(LedgerClass.TIE, kind), self.predicted(kind)) < SURPLUS_P

    def record(self, known: Sequence[Displaced] = ()) -> Flips:
        """Return counts and entries as the verdict holds them, with the unexplained ones that are known."""
        counts = {
            kind: FlipKind(
                ties=self.count(LedgerClass.TIE, kind),
                unexplained=self.count(LedgerClass.UNEXPLAINED, kind),
                predicted=self.predicted(kind),
                surplus=self.surplus(kind),
            )
            for kind in (Kind.TOP1, Kind.TOP5_SET)
        }
        return Flips(counts, self.flips, tuple(known))


def classify(margin: float, sigma: float, sigmas: float = SIGMAS) -> LedgerClass:
    """Return TIE if margin <= 3 sigma (or so many as are asked for), else UNEXPLAINED, also where one of them is NaN.

    >>> classify(margin=0.02, sigma=0.01).value, classify(margin=0.05, sigma=0.01).value
    ('TIE', 'UNEXPLAINED')
    """
    return LedgerClass.TIE if margin <= sigmas * sigma else LedgerClass.UNEXPLAINED


def predicted_flips(margins: F64, sigmas: F64) -> float:
    """Return the expected number of flips: the sum over positions of P(N(0, sigma) > margin).

    That is erfc(margin / (sigma sqrt 2)) / 2. With sigma 0 only an exact tie can flip, and it counts half.

    >>> round(predicted_flips(np.array([0.0, 1.0, 9.0]), np.array([1.0, 1.0, 1.0])), 4)
    0.6587
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

    >>> round(poisson_tail(3, mean=0.5), 4)
    0.0144
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

    >>> margin_of_swap([7.0, 6.5], [6.0])
    1.0
    """
    return float(np.max(left)) - float(np.min(entered))


def divergence_at(
    seen: Aligned, rung: Rung, i: int, kind: Kind, limit: float, *, ledger: LedgerClass | None = None, note: str = ""
) -> Divergence:
    """Return a divergence at position i: always with both top-5s and the one delta, so that each line stands alone."""
    return Divergence(
        rung=rung,
        kind=kind,
        limit=limit,
        prompt_idx=seen.positions[i].prompt_idx,
        token_idx=seen.positions[i].token_idx,
        top5_burn=top5(seen.pair.candidate, i),
        top5_llamacpp=top5(seen.pair.reference, i),
        delta=float(seen.delta[i]),
        delta_id=int(seen.delta_id[i]),
        ledger=ledger,
        note=note,
    )
