"""Literal numbers of the deployed file: shares of equal tops, summaries and first flips of a pair, without a gate."""

from __future__ import annotations

import math

import numpy as np

from parity_lib.judge.align import Aligned, Flags
from parity_lib.numerics.metrics import pooled_rms_over_std, std_of_all, summary
from parity_lib.records.row_numbers import FirstFlip, NonFinite, PairNumbers, PairReport


def literal_report(seen: Aligned) -> PairReport:
    """Return the literal numbers of a pair: ``all`` positions, the ``generated`` ones (token_idx >= 0), first flips.

    The first flip of a generated token of a prompt is where free-running greedy texts part.
    """
    generated = np.array([position.token_idx >= 0 for position in seen.positions], bool)
    return PairReport(
        all=literal_numbers(seen, np.ones(len(seen), bool)),
        generated=literal_numbers(seen, generated),
        first_top1_flips=_first_flips(seen),
        n_nonfinite=NonFinite(
            reference=int(seen.pair.reference.n_nonfinite.sum()), candidate=int(seen.pair.candidate.n_nonfinite.sum())
        ),
    )


def literal_numbers(seen: Aligned, rows: Flags) -> PairNumbers | None:
    """Return counts, shares and summaries over some positions; only ``{"positions": 0}`` without one.

    ``rms_over_std``: root mean square of all differences over the standard deviation of all reference logits, as
    published tables have it; ``rms_over_row_std``: pooled over the deviation within rows, the unit of the bands.
    ``delta`` is |delta| at delta_id; KL and JSD in nats.
    """
    n = int(rows.sum())
    if n == 0:
        return None
    pair, r = seen.pair, seen.pair.reference
    rms = float(np.sqrt(np.mean(pair.rms[rows] ** 2)))
    same1, same5 = int(seen.top1_equal[rows].sum()), int(seen.top5_equal[rows].sum())
    return PairNumbers(
        positions=n,
        top1_equal=same1,
        top1_share=same1 / n,
        top5_set_equal=same5,
        top5_set_share=same5 / n,
        rms=rms,
        rms_over_std=_ratio(rms, std_of_all(r.mean[rows], r.std[rows])),
        rms_over_row_std=pooled_rms_over_std(pair.rms[rows], r.std[rows]),
        max_abs=float(pair.max_abs[rows].max()),
        delta=summary(np.abs(seen.delta[rows])),
        kl_ref_cand=summary(pair.kl_ref_cand[rows]),
        kl_cand_ref=summary(pair.kl_cand_ref[rows]),
        jsd=summary(pair.jsd[rows]),
    )


def _ratio(value: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if value == 0 else math.inf
    return value / scale


def _first_flips(seen: Aligned) -> tuple[FirstFlip, ...]:
    """Return the first flip of a generated token of each prompt that has one, in order of prompts."""
    first: dict[int, int] = {}
    for i, (prompt_idx, token_idx) in enumerate(seen.positions):
        if token_idx < 0 or seen.top1_equal[i]:
            continue
        if prompt_idx not in first or token_idx < seen.positions[first[prompt_idx]].token_idx:
            first[prompt_idx] = i
    return tuple(
        FirstFlip(
            prompt_idx=prompt_idx,
            token_idx=seen.positions[i].token_idx,
            reference_id=int(seen.pair.reference.topk_ids[i, 0]),
            candidate_id=int(seen.pair.candidate.topk_ids[i, 0]),
            margin=float(seen.pair.reference.topk_logits[i, 0]) - float(seen.pair.reference_at_candidate[i, 0]),
        )
        for prompt_idx, i in sorted(first.items())
    )
