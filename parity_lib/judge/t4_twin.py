"""Rung T4: llama.cpp on the F32 twin and the candidate on the same fed tokens, judged position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from parity_lib.base.errors import PinError, UsageError
from parity_lib.base.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.judge.align import Aligned, align
from parity_lib.judge.flips import Ledger, divergence_at, ledger_of
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.traces import F64, PairTrace, Position
from parity_lib.records.verdicts import Divergence, RungResult

LEDGER, LITERAL = "ledger", "literal"
SIGMA = "predicted sigma"  # unit
_ORDER = (Kind.NON_FINITE, Kind.TOP1, Kind.TOP5_SET, Kind.LOGIT_DELTA, Kind.RMS)


@dataclass(frozen=True, slots=True, eq=False)
class _Limits:
    """The limits at each position, in logits: predicted deviations times the reference's own spread."""

    delta: F64  # (n,)
    rms: F64  # (n,)
    sigma: F64  # (n,) of the difference of two top logits
    sigmas: float  # so many of them do not flip two logits
    pooled: tuple[_Pooled, ...]  # of all finite rows, and of each prompt's


class _Pooled(NamedTuple):
    """Root mean square over some positions of rms over what is predicted there, and its limit."""

    where: str
    value: float
    limit: float


def _limits(seen: Aligned, limits: DriftLimits) -> _Limits:
    """Raises ``PinError`` if a position has no limit."""
    at = limits.at(seen.positions)
    scale, step = seen.scale, seen.step  # two float32 numbers that differ at all differ by a step
    return _Limits(
        delta=np.maximum(at.delta * at.delta_limit * scale, step),
        rms=np.maximum(at.rms * at.rms_limit * scale, step),
        sigma=np.maximum(at.pair * scale, 2 * step / at.pair_limit),  # each of two logits may be off by a step
        sigmas=at.pair_limit,
        pooled=_pooled_of(seen, at),
    )


def _pooled_of(seen: Aligned, at: DriftLimits) -> tuple[_Pooled, ...]:
    predicted = np.maximum(at.rms * seen.scale, seen.step)[seen.finite]
    squares = np.square(seen.pair.rms[seen.finite] / predicted)
    if not len(squares):
        return ()
    prompts = at.prompt_idx[seen.finite]
    over_all = _Pooled("all positions", float(np.sqrt(squares.mean())), at.pooled_limit)
    of_prompts = (
        _Pooled(f"prompt {prompt}", float(np.sqrt(squares[prompts == prompt].mean())), at.prompt_limit)
        for prompt in np.unique(prompts)
    )
    return (over_all, *of_prompts)


def judge_twin(
    pair: PairTrace, expected: Sequence[Position], limits: DriftLimits, *, policy: str = LEDGER
) -> tuple[RungResult, list[Divergence], Ledger]:
    """Judge rung T4: top-1 equal, top-5 set equal, delta and rms inside the band, at every expected position.

    Args:
        pair: reference's F32 twin against the candidate, same fed tokens.
        expected: every position that has to be there, from ``records.traces.expected_positions``.
        limits: of every one of these positions.
        policy: LEDGER: a flip that is a TIE, at a position inside the band, is counted and passes, as long as
            there are no more of them than margins predict; LITERAL: any flip diverges.

    Returns:
        The rung, its divergences in order of position and kind, and the ledger. A missing, unexpected or repeated
        position, no position at all, or one without a limit make the rung INCOMPLETE with the cause in its
        note; what was found is judged all the same, and a divergence is never hidden by a missing row.

    Raises:
        UsageError: an unknown policy.
    """
    if policy not in (LEDGER, LITERAL):
        raise UsageError("unknown policy", expected=f"{LEDGER} or {LITERAL}", found=policy)
    seen = align(pair, expected)
    try:
        own = _limits(seen, limits)
    except PinError as error:
        lost = _non_finite(seen)
        note = "; ".join([*_counted(seen), *seen.causes, str(error)])
        outcome = Outcome.DIVERGED if lost else Outcome.INCOMPLETE
        rung = RungResult(Rung.T4, outcome, seen.n_expected, len(lost), None, None, "logits", note=note)
        return rung, lost, Ledger((), 0.0, 0.0)
    ledger = ledger_of(seen, own.sigma, own.sigmas)
    divergences = _non_finite(seen) + _flips(seen, own, ledger, policy) + _out_of_band(seen, own) + _pooled(own)
    value, limit, unit, at = _worst(seen, own)
    n_positions = len({(d.prompt_idx, d.token_idx) for d in divergences if d.prompt_idx is not None})
    note = f"{n_positions} positions diverged, {ledger.count(LedgerClass.TIE)} near-ties counted"
    rung = RungResult(
        rung=Rung.T4,
        outcome=Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if seen.causes else Outcome.PARITY,
        expected=seen.n_expected,
        compared=len(seen),
        worst=value,
        limit=limit,
        unit=unit,
        worst_where=at,
        source=limits.source,
        note="; ".join([*seen.causes, note, *_counted(seen)]),
    )
    return rung, sorted(divergences, key=_place), ledger


def _place(d: Divergence) -> tuple[bool, int, int, int]:
    """Return a sort key: by position, then by kind; divergences without a position last."""
    return (d.prompt_idx is None, d.prompt_idx or 0, d.token_idx or 0, _ORDER.index(d.kind))


def _flips(seen: Aligned, limits: _Limits, ledger: Ledger, policy: str) -> list[Divergence]:
    """Return the flips that diverge: all but the near-ties that band, count and policy accept."""
    row = {position: i for i, position in enumerate(seen.positions)}
    inside = (np.abs(seen.delta) <= limits.delta) & (seen.pair.rms <= limits.rms)
    divergences = []
    for flip in ledger.flips:
        i, surplus = row[flip.position], ledger.surplus(flip.kind)
        if policy == LEDGER and flip.ledger is LedgerClass.TIE and inside[i] and not surplus:
            continue
        note = f"margin {flip.margin:.3g}, {limits.sigmas:.3g} sigma {limits.sigmas * flip.sigma:.3g}"
        note += ", more near-ties than margins predict" if surplus else ""
        limit = float(limits.delta[i])
        divergences.append(divergence_at(seen, Rung.T4, i, flip.kind, limit, ledger=flip.ledger, note=note))
    return divergences


def _out_of_band(seen: Aligned, limits: _Limits) -> list[Divergence]:
    """Return the positions with a delta or an rms that is not inside its band."""
    rms = seen.pair.rms
    # Negated comparisons: a NaN is outside.
    delta_out, rms_out = ~(np.abs(seen.delta) <= limits.delta), ~(rms <= limits.rms)
    divergences = []
    for i in np.flatnonzero(seen.finite & (delta_out | rms_out)).tolist():
        limit = float(limits.delta[i])
        if delta_out[i]:
            divergences.append(divergence_at(seen, Rung.T4, i, Kind.LOGIT_DELTA, limit))
        if rms_out[i]:
            found = divergence_at(
                seen, Rung.T4, i, Kind.RMS, limit, note="delta is the rms over the vocabulary, logits"
            )
            divergences.append(replace(found, delta=float(rms[i]), delta_id=None, limit=float(limits.rms[i])))
    return divergences


def _non_finite(seen: Aligned) -> list[Divergence]:
    """Return the positions with a value that is not finite on a side: no limit is needed to see that."""
    return [
        divergence_at(seen, Rung.T4, i, Kind.NON_FINITE, 0.0, note=seen.non_finite_words(i))
        for i in np.flatnonzero(~seen.finite).tolist()
    ]


def _counted(seen: Aligned) -> list[str]:
    """Return how many rows are not finite, and how many are constant, in words."""
    counts = ((~seen.finite, "not finite"), (seen.finite & seen.constant, "constant: all their logits are equal"))
    return [f"{int(rows.sum())} rows are {words}" for rows, words in counts if rows.any()]


def _pooled(limits: _Limits) -> list[Divergence]:
    note = "rms over what is predicted, root mean square over these positions, predicted sigmas"
    return [
        Divergence(Rung.T4, Kind.RMS, limit, where=f"pooled over {where}", delta=value, note=note)
        for where, value, limit in limits.pooled
        if not value <= limit
    ]


def _worst(seen: Aligned, limits: _Limits) -> tuple[float | None, float | None, str, str]:
    """Return value, limit, unit and place of what is nearest to its limit, or farthest beyond it."""
    cases = [(value, limit, SIGMA, f"pooled over {where}") for where, value, limit in limits.pooled]
    for values, limit_of, word in ((seen.pair.rms, limits.rms, "rms"), (np.abs(seen.delta), limits.delta, "delta")):
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
