"""Rung T4: llama.cpp on the F32 twin and the candidate on the same fed tokens, judged position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity_lib.compare.align import Aligned, align
from parity_lib.compare.flips import ledger_of, top5
from parity_lib.compare.ledger import SIGMAS, Ledger
from parity_lib.compare.metrics import pooled_rms_over_std
from parity_lib.errors import PinError, UsageError
from parity_lib.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.tolerances import FIRST, LATER, BandSet
from parity_lib.traces import F64, PairTrace, Position
from parity_lib.verdicts import Divergence, RungResult

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
        return np.array(bands.at(metric, seen.positions, seen.first.tolist())) * seen.pair.reference.std

    pooled = []
    usual = np.array([position not in bands.sensitive for position in seen.positions], bool)
    for where, rows in ((FIRST, usual & seen.first), (LATER, usual & ~seen.first)):
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
    ledger = ledger_of(seen, limits.sigma)
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
        top5_burn=top5(seen.pair.candidate, i),
        top5_llamacpp=top5(seen.pair.reference, i),
        delta=float(seen.delta[i]),
        delta_id=int(seen.delta_id[i]),
        ledger=ledger,
        note=note,
    )


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
