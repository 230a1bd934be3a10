"""Every changed top-1 or top-5 set of an aligned pair, classed by the reference's own margin."""

from __future__ import annotations

import numpy as np

from parity_lib.compare.align import Aligned
from parity_lib.compare.ledger import Flip, Ledger, classify, margin_of_swap, predicted_flips
from parity_lib.names import TOP_JUDGED, Kind
from parity_lib.traces import F64, LogitTrace
from parity_lib.verdicts import TopK


def ledger_of(seen: Aligned, sigma: F64) -> Ledger:
    """Return the class of each flip at a finite position, and how many flips the reference's margins predict.

    Args:
        seen: the pair.
        sigma: of the difference of two top logits at each position, logits, ``(n,)``; never from the candidate.
    """
    flips = []
    for i in np.flatnonzero(seen.finite).tolist():
        if not seen.top1_equal[i]:
            flips.append(_top1_flip(seen, i, float(sigma[i])))
        if not seen.top5_equal[i]:
            flips.append(_set_flip(seen, i, float(sigma[i])))
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


def _top1_flip(seen: Aligned, i: int, sigma: float) -> Flip:
    r, c = seen.pair.reference, seen.pair.candidate
    margin = float(r.topk_logits[i, 0]) - float(seen.pair.reference_at_candidate[i, 0])
    ids = int(r.topk_ids[i, 0]), int(c.topk_ids[i, 0])
    return Flip(seen.positions[i], Kind.TOP1, classify(margin, sigma), margin, sigma, *ids)


def _set_flip(seen: Aligned, i: int, sigma: float) -> Flip:
    r = dict(top5(seen.pair.reference, i))
    c_ids = seen.pair.candidate.topk_ids[i, :TOP_JUDGED].tolist()
    at_c = dict(zip(c_ids, seen.pair.reference_at_candidate[i, :TOP_JUDGED].tolist(), strict=True))
    left = {token: logit for token, logit in r.items() if token not in at_c}
    entered = {token: logit for token, logit in at_c.items() if token not in r}
    margin = margin_of_swap(list(left.values()), list(entered.values()))
    ids = max(left, key=left.__getitem__), min(entered, key=entered.__getitem__)
    return Flip(seen.positions[i], Kind.TOP5_SET, classify(margin, sigma), margin, sigma, *ids)
