"""Rungs T4 and T5: two traces of logits on the same fed tokens, judged or reported position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity_lib.compare.align import Aligned, Flags, align
from parity_lib.compare.ledger import SIGMAS, Flip, Ledger, classify, margin_of_swap, predicted_flips
from parity_lib.compare.metrics import pooled_rms_over_std, std_of_all, summary
from parity_lib.errors import PinError, UsageError
from parity_lib.json_text import encode
from parity_lib.names import TOP_JUDGED, Kind, LedgerClass, Outcome, Rung
from parity_lib.tolerances import FIRST, LATER, BandSet
from parity_lib.traces import F64, LogitTrace, PairTrace, Position
from parity_lib.verdicts import Divergence, RungResult, TopK

LEDGER, LITERAL = "ledger", "literal"
_ORDER = (Kind.NON_FINITE, Kind.TOP1, Kind.TOP5_SET, Kind.LOGIT_DELTA, Kind.RMS)


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """The bands at each position, in logits: relative limits times the reference's own spread."""

    delta: F64  # (n,)
    rms: F64  # (n,)
    sigma: F64  # (n,) of the difference of two top logits
    pooled: tuple[tuple[str, float, float], ...]  # (FIRST or LATER, value, limit), relative


def _limits(seen: Aligned, bands: BandSet) -> _Limits:
    """Raises ``PinError`` if a band does not exist."""

    def at_each(metric: str) -> F64:
        first, later = (bands.band(metric, where).limit for where in (FIRST, LATER))
        return np.where(seen.first, first, later) * seen.pair.reference.std

    pooled = []
    for where, rows in ((FIRST, seen.first), (LATER, ~seen.first)):
        limit = bands.band("pooled_rms_over_std", where).limit
        if rows.any():
            value = pooled_rms_over_std(seen.pair.rms[rows], seen.pair.reference.std[rows])
            pooled.append((where, value, limit))
    delta, rms, sigma = (at_each(f"{name}_over_std") for name in ("delta", "position_rms", "pair_sigma"))
    return _Limits(delta, rms, sigma, tuple(pooled))


def judge_twin(
    pair: PairTrace, expected: Sequence[Position], bands: BandSet, *, policy: str = LEDGER
) -> tuple[RungResult, list[Divergence], Ledger]:
    """Judge rung T4: top-1 equal, top-5 set equal, delta and rms inside the band, at every expected position.

    Args:
        pair: reference's F32 twin against the candidate, same fed tokens.
        expected: every position that has to be there, from ``traces.expected_positions``.
        bands: of the model, quant and rung T4.
        policy: LEDGER: a flip that is a TIE, at a position inside the band, is counted and passes, as long as
            there are no more of them than margins predict; LITERAL: any flip diverges.

    Returns:
        The rung, its divergences in order of position and kind, and the ledger. A missing, unexpected or repeated
        position, no position at all, or a band that does not exist make the rung INCOMPLETE with the cause in its
        note; what was found is judged all the same, and a divergence is never hidden by a hole.

    Raises:
        UsageError: an unknown policy.
    """
    if policy not in (LEDGER, LITERAL):
        raise UsageError("unknown policy", expected=f"{LEDGER} or {LITERAL}", found=policy)
    seen = align(pair, expected)
    try:
        limits = _limits(seen, bands)
    except PinError as error:
        note = "; ".join([*seen.causes, str(error)])
        rung = RungResult(Rung.T4, Outcome.INCOMPLETE, seen.n_expected, 0, None, None, "logits", note=note)
        return rung, [], Ledger((), 0.0, 0.0)
    ledger = _ledger(seen, limits)
    divergences = _flips(seen, limits, ledger, policy) + _out_of_band(seen, limits) + _pooled(limits)
    value, limit, unit, at = _worst(seen, limits)
    n_positions = len({(d.prompt_idx, d.token_idx) for d in divergences if d.prompt_idx is not None})
    note = f"{n_positions} positions diverged, {ledger.count(LedgerClass.TIE)} ties counted"
    rung = RungResult(
        rung=Rung.T4,
        outcome=Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if seen.causes else Outcome.PARITY,
        expected=seen.n_expected,
        compared=len(seen),
        worst=value,
        limit=limit,
        unit=unit,
        worst_where=at,
        source=bands.source,
        note="; ".join([*seen.causes, note]),
    )
    return rung, sorted(divergences, key=_place), ledger


def _place(d: Divergence) -> tuple[bool, int, int, int]:
    """Order by position, then by kind; what has no position stands last."""
    return (d.prompt_idx is None, d.prompt_idx or 0, d.token_idx or 0, _ORDER.index(d.kind))


def _ledger(seen: Aligned, limits: _Limits) -> Ledger:
    """Return the class of each flip at a finite position, and how many flips the reference's margins predict."""
    flips = []
    for i in np.flatnonzero(seen.finite).tolist():
        if not seen.top1_equal[i]:
            flips.append(_top1_flip(seen, i, float(limits.sigma[i])))
        if not seen.top5_equal[i]:
            flips.append(_set_flip(seen, i, float(limits.sigma[i])))
    top, sigma = seen.pair.reference.topk_logits[seen.finite].astype(np.float64), limits.sigma[seen.finite]

    def predicted(last: int) -> float:
        has_next = top.shape[1] > last + 1
        return predicted_flips(top[:, last] - top[:, last + 1], sigma) if has_next else 0.0

    return Ledger(tuple(flips), predicted(0), predicted(TOP_JUDGED - 1))


def _top1_flip(seen: Aligned, i: int, sigma: float) -> Flip:
    r, c = seen.pair.reference, seen.pair.candidate
    margin = float(r.topk_logits[i, 0]) - float(seen.pair.reference_at_candidate[i, 0])
    ids = int(r.topk_ids[i, 0]), int(c.topk_ids[i, 0])
    return Flip(seen.positions[i], Kind.TOP1, classify(margin, sigma), margin, sigma, *ids)


def _set_flip(seen: Aligned, i: int, sigma: float) -> Flip:
    r = dict(_top5(seen.pair.reference, i))
    c_ids = seen.pair.candidate.topk_ids[i, :TOP_JUDGED].tolist()
    at_c = dict(zip(c_ids, seen.pair.reference_at_candidate[i, :TOP_JUDGED].tolist(), strict=True))
    left = {token: logit for token, logit in r.items() if token not in at_c}
    entered = {token: logit for token, logit in at_c.items() if token not in r}
    margin = margin_of_swap(list(left.values()), list(entered.values()))
    ids = max(left, key=left.__getitem__), min(entered, key=entered.__getitem__)
    return Flip(seen.positions[i], Kind.TOP5_SET, classify(margin, sigma), margin, sigma, *ids)


def _flips(seen: Aligned, limits: _Limits, ledger: Ledger, policy: str) -> list[Divergence]:
    """Return the flips that diverge: all but the ties that band, count and policy let pass."""
    row = {position: i for i, position in enumerate(seen.positions)}
    inside = (np.abs(seen.delta) <= limits.delta) & (seen.pair.rms <= limits.rms)
    divergences = []
    for flip in ledger.flips:
        i, surplus = row[flip.position], ledger.surplus(flip.kind)
        if policy == LEDGER and flip.ledger is LedgerClass.TIE and inside[i] and not surplus:
            continue
        note = f"margin {flip.margin:.3g}, {SIGMAS:g} sigma {SIGMAS * flip.sigma:.3g}"
        note += ", more ties than margins predict" if surplus else ""
        divergences.append(_at_position(seen, limits, i, flip.kind, ledger=flip.ledger, note=note))
    return divergences


def _out_of_band(seen: Aligned, limits: _Limits) -> list[Divergence]:
    """Return the positions with a non-finite value, or with a delta or an rms that is not inside its band."""
    r, c, rms = seen.pair.reference, seen.pair.candidate, seen.pair.rms
    # Negated comparisons: a NaN is outside.
    delta_out, rms_out = ~(np.abs(seen.delta) <= limits.delta), ~(rms <= limits.rms)
    divergences = []
    for i in np.flatnonzero(~seen.finite | delta_out | rms_out).tolist():
        if not seen.finite[i]:
            note = f"non-finite logits of {r.n_vocab}: llama.cpp {r.n_nonfinite[i]}, burn {c.n_nonfinite[i]}"
            divergences.append(_at_position(seen, limits, i, Kind.NON_FINITE, note=note))
            continue
        if delta_out[i]:
            divergences.append(_at_position(seen, limits, i, Kind.LOGIT_DELTA))
        if rms_out[i]:
            found = _at_position(seen, limits, i, Kind.RMS, note="delta is the rms over the vocabulary, logits")
            divergences.append(replace(found, delta=float(rms[i]), delta_id=None, limit=float(limits.rms[i])))
    return divergences


def _pooled(limits: _Limits) -> list[Divergence]:
    note = "rms over std, pooled over the rows of this kind"
    return [
        Divergence(Rung.T4, Kind.RMS, limit, where=f"pooled-{where}", delta=value, note=note)
        for where, value, limit in limits.pooled
        if not value <= limit
    ]


def _at_position(
    seen: Aligned, limits: _Limits, i: int, kind: Kind, *, ledger: LedgerClass | None = None, note: str = ""
) -> Divergence:
    """Return a divergence at position i: always with both top-5s and the one delta, so that each line stands alone."""
    return Divergence(
        rung=Rung.T4,
        kind=kind,
        limit=float(limits.delta[i]),
        prompt_idx=seen.positions[i].prompt_idx,
        token_idx=seen.positions[i].token_idx,
        top5_burn=_top5(seen.pair.candidate, i),
        top5_llamacpp=_top5(seen.pair.reference, i),
        delta=float(seen.delta[i]),
        delta_id=int(seen.delta_id[i]),
        ledger=ledger,
        note=note,
    )


def _top5(trace: LogitTrace, i: int) -> TopK:
    ids, logits = trace.topk_ids[i, :TOP_JUDGED].tolist(), trace.topk_logits[i, :TOP_JUDGED].tolist()
    return tuple(zip(ids, logits, strict=True))


def _worst(seen: Aligned, limits: _Limits) -> tuple[float | None, float | None, str, str]:
    """Return value, limit, unit and place of what is nearest to its limit, or farthest beyond it."""
    cases = [(value, limit, "rms/std", f"pooled over {where} rows") for where, value, limit in limits.pooled]
    for values, limit_of, word in ((np.abs(seen.delta), limits.delta, "delta"), (seen.pair.rms, limits.rms, "rms")):
        if len(seen):
            i = int(np.argmax([_share(*case) for case in zip(values.tolist(), limit_of.tolist(), strict=True)]))
            prompt_idx, token_idx = seen.positions[i]
            at = f"{word} at prompt {prompt_idx} token {token_idx}"
            cases.append((float(values[i]), float(limit_of[i]), "logits", at))
    return max(cases, key=lambda case: _share(case[0], case[1]), default=(None, None, "logits", ""))


def _share(value: float, limit: float) -> float:
    """Return how much of a limit is used up; everything, where there is no telling."""
    if math.isnan(value) or math.isnan(limit):
        return math.inf
    if limit == 0:
        return 0.0 if value == 0 else math.inf
    return value / limit


def report_native(pair: PairTrace, expected: Sequence[Position]) -> tuple[RungResult, dict[str, Any]]:
    """Report rung T5 literally, without a gate: how far the candidate is from the file as llama.cpp runs it.

    Args:
        pair: reference on the quantised file, strict settings, against the candidate; same fed tokens.
        expected: every position that has to be there.

    Returns:
        A rung with outcome REPORTED, and the literal numbers: ``all`` positions, the ``generated`` ones
        (token_idx >= 0), and for each prompt the first flip of a generated token: from there on free-running
        greedy texts part. INCOMPLETE where a position is missing or a row is not finite: such a reference
        chose tokens that mean nothing.
    """
    seen = align(pair, expected)
    causes = list(seen.causes)
    if not seen.finite.all():
        causes.append(f"{int((~seen.finite).sum())} positions are not finite")
    generated = np.array([position.token_idx >= 0 for position in seen.positions], bool)
    literal = {
        "all": literal_numbers(seen, np.ones(len(seen), bool)),
        "generated": literal_numbers(seen, generated),
        "first_top1_flips": _first_flips(seen),
        "n_nonfinite": {
            "reference": int(seen.pair.reference.n_nonfinite.sum()),
            "candidate": int(seen.pair.candidate.n_nonfinite.sum()),
        },
    }
    worst = int(np.nanargmax(np.abs(seen.delta))) if np.isfinite(seen.delta).any() else None
    rung = RungResult(
        rung=Rung.T5,
        outcome=Outcome.INCOMPLETE if causes else Outcome.REPORTED,
        expected=seen.n_expected,
        compared=len(seen),
        worst=None if worst is None else abs(float(seen.delta[worst])),
        limit=None,
        unit="logits",
        worst_where="" if worst is None else "prompt {} token {}".format(*seen.positions[worst]),
        source="literal, no gate",
        note="; ".join(causes),
    )
    return rung, encode(literal)


def literal_numbers(seen: Aligned, rows: Flags) -> dict[str, Any]:
    """Return counts, shares and summaries over some positions; ``{"positions": 0}`` and no number for none.

    ``rms_over_std``: root mean square of all differences over the standard deviation of all reference logits, as
    published tables have it; ``rms_over_row_std``: pooled over the deviation within rows, the unit of the bands.
    ``delta`` is |delta| at delta_id; KL and JSD in nats.
    """
    n = int(rows.sum())
    if n == 0:
        return {"positions": 0}
    pair, r = seen.pair, seen.pair.reference
    rms = float(np.sqrt(np.mean(pair.rms[rows] ** 2)))
    same1, same5 = int(seen.top1_equal[rows].sum()), int(seen.top5_equal[rows].sum())
    return {
        "positions": n,
        "top1_equal": same1,
        "top1_share": same1 / n,
        "top5_set_equal": same5,
        "top5_set_share": same5 / n,
        "rms": rms,
        "rms_over_std": _ratio(rms, std_of_all(r.mean[rows], r.std[rows])),
        "rms_over_row_std": pooled_rms_over_std(pair.rms[rows], r.std[rows]),
        "max_abs": float(pair.max_abs[rows].max()),
        "delta": summary(np.abs(seen.delta[rows])),
        "kl_ref_cand": summary(pair.kl_ref_cand[rows]),
        "kl_cand_ref": summary(pair.kl_cand_ref[rows]),
        "jsd": summary(pair.jsd[rows]),
    }


def _ratio(value: float, scale: float) -> float:
    if scale == 0:
        return 0.0 if value == 0 else math.inf
    return value / scale


def _first_flips(seen: Aligned) -> list[dict[str, Any]]:
    """Return the first flip of a generated token of each prompt that has one, in order of prompts."""
    first: dict[int, int] = {}
    for i, (prompt_idx, token_idx) in enumerate(seen.positions):
        if token_idx < 0 or seen.top1_equal[i]:
            continue
        if prompt_idx not in first or token_idx < seen.positions[first[prompt_idx]].token_idx:
            first[prompt_idx] = i
    return [
        {
            "prompt_idx": prompt_idx,
            "token_idx": seen.positions[i].token_idx,
            "reference_id": int(seen.pair.reference.topk_ids[i, 0]),
            "candidate_id": int(seen.pair.candidate.topk_ids[i, 0]),
            "margin": float(seen.pair.reference.topk_logits[i, 0]) - float(seen.pair.reference_at_candidate[i, 0]),
        }
        for prompt_idx, i in sorted(first.items())
    ]
