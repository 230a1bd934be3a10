"""Rung T5: the deployed file, literally, and a gate on whether the reference itself is healthy.

llama.cpp rounds activations before each quantised product, and differs from itself by that rounding. So the candidate
is not held to its rows but to a ratio: its distance to them over the reference's distance to itself. Limits come from
the reference's own F32 twin and are pinned (``judge/self_spread.py``,
``fixtures/spread.toml``), never from the candidate.

A file whose twin gives the file's own rows to the bit (any file of F32 tensors) has no such distance: there T4 has
judged the candidate on these very rows, and T5 holds the reference to 0 rows that differ from its twin's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace

from parity_lib.base.errors import ParityError
from parity_lib.base.names import TOP_JUDGED, Kind, LedgerClass, Outcome, Rung
from parity_lib.judge.align import Aligned, align
from parity_lib.judge.flips import SIGMAS, Ledger, divergence_at, expected_changes, ledger_of
from parity_lib.judge.literal import literal_report
from parity_lib.judge.native_basis import Basis, basis_of, foreign, is_own_twin, missing_rows
from parity_lib.judge.self_spread import METRICS
from parity_lib.judge.self_spread import numbers as numbers_of
from parity_lib.numerics.metrics import pooled_rms_over_std, summary
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import Flip, Numbers, PinnedNumbers, Ratio, Spread, VariantNumbers
from parity_lib.records.self_spread import Displaced, SelfSpread, Variant
from parity_lib.records.self_spread_pins import PINNED, SpreadPin
from parity_lib.records.traces import PairTrace, Position
from parity_lib.records.verdicts import Divergence, RungResult

NEAR = 0.25
"""The self-spread has to be within 25 % of its pinned value on the machine class of the pin."""
KINDS = {"rms": Kind.RMS, "p99": Kind.P99, "kl": Kind.KL}
UNITS = {"rms": "rms/std", "p99": "logits", "kl": "nats", "pair_sigma": "logits"}
OWN_TWIN = "the F32 twin gives the rows of the file itself, on which T4 judges the candidate"
ACCUSED = "the candidate equals the F32 twin (T4), so it is the reference's native path that moved"
_ORDER = (Kind.NON_FINITE, Kind.SPREAD, Kind.TOP1, Kind.TOP5_SET, Kind.RMS, Kind.P99, Kind.KL)


def judge_native(
    pair: PairTrace, expected: Sequence[Position], spread: SelfSpread, pin: SpreadPin | None
) -> tuple[RungResult, list[Divergence], Measured]:
    """Judge rung T5: rms, p99 and mean KL over the self-spread, the self-spread over its pin, no unexplained flip.

    Args:
        pair: reference on the file as it is, strict settings, against the candidate; same fed tokens.
        expected: every position that has to be there.
        spread: the reference's own spread on the same file and tokens, measured in this run or cached.
        pin: of this file, target and prompts. From another machine class only its limits are taken; without any, the
            limits are derived from ``spread``: then the reference is not held to anything that was measured before.

    Returns:
        The rung, its divergences, and what was measured: ``native``, ``spread`` and ``native_ledger``. Missing rows
        and an incomplete self-spread make the rung INCOMPLETE; they never hide a divergence.
    """
    seen = align(pair, expected)
    numbers = Measured(native=literal_report(seen))
    causes = [*seen.causes, *missing_rows(spread)]
    lost = sorted(_non_finite(seen), key=_place)  # no limit is needed to see that
    wrong = foreign(pair, expected, spread)
    if wrong:
        return _unmeasured(seen, lost, [*causes, *wrong]), lost, numbers
    lost += _non_finite_variants(seen, spread)
    if is_own_twin(spread):
        return _same_rows(seen, lost, causes), lost, numbers
    try:
        basis = basis_of(spread, pin)
    except ParityError as error:
        return _unmeasured(seen, lost, [*causes, str(error)]), lost, numbers
    observed = _observed(seen)
    ledger = _ledger(seen, basis)
    divergences = [
        *lost,
        *(_off_the_pin(basis.base, pin) if basis.own_class and pin is not None else ()),
        *_over_the_limit(basis, observed if len(seen) else {}),
        *_unexplained(seen, basis, ledger),
    ]
    known = [flip for flip in ledger.flips if flip.ledger is LedgerClass.UNEXPLAINED and _known(flip, basis)]
    places = [Displaced(*flip.position, flip.kind) for flip in known]
    told = _told(basis, observed, spread, pin)
    numbers = replace(numbers, spread=told, native_ledger=ledger.record(places))
    rung = _rung(seen, basis, observed, divergences, causes)
    return rung, sorted(divergences, key=_place), numbers


def report_native(pair: PairTrace, expected: Sequence[Position]) -> tuple[RungResult, list[Divergence], Measured]:
    """Report rung T5 literally, without a band: for cells whose candidate is not an exact product (``bf16``).

    Returns:
        A rung with outcome REPORTED, no divergence, and the literal numbers. A row that is not finite on either side is
        DIVERGED all the same, a line each; a position that is missing is INCOMPLETE.
    """
    seen = align(pair, expected)
    lost = _non_finite(seen)
    worst = int(np.nanargmax(np.abs(seen.delta))) if np.isfinite(seen.delta).any() else None
    rung = RungResult(
        rung=Rung.T5,
        outcome=Outcome.DIVERGED if lost else Outcome.INCOMPLETE if seen.causes else Outcome.REPORTED,
        expected=seen.n_expected,
        compared=len(seen),
        worst=None if worst is None else abs(float(seen.delta[worst])),
        limit=None,
        unit="logits",
        worst_where="" if worst is None else "prompt {} token {}".format(*seen.positions[worst]),
        source="literal, no band",
        note="; ".join([*seen.causes, *([f"{len(lost)} positions are not finite"] if lost else [])]),
    )
    return rung, lost, Measured(native=literal_report(seen))


def accuse_reference(
    twin: RungResult, native: RungResult, divergences: Sequence[Divergence]
) -> tuple[RungResult, list[Divergence]]:
    """Return T5 and its divergences with the accused named: with T4 at parity, a red T5 is the reference's.

    With any other result of T4 the rung stays as it is: then the candidate is the first suspect.
    """
    if twin.outcome is not Outcome.PARITY or native.outcome is not Outcome.DIVERGED:
        return native, list(divergences)

    def said(note: str) -> str:
        return f"{ACCUSED}; {note}" if note else ACCUSED

    told = [replace(d, note=said(d.note)) if d.rung is Rung.T5 else d for d in divergences]
    return replace(native, note=said(native.note)), told


def _observed(seen: Aligned) -> dict[str, float]:
    """Return METRICS of the candidate's distance to the deployed file; NaN if a row is not finite, or without any."""
    if not len(seen):
        return dict.fromkeys(METRICS, float("nan"))
    return {
        "rms": pooled_rms_over_std(seen.pair.rms, seen.pair.reference.std),
        "p99": summary(np.abs(seen.delta)).p99,
        "kl": float(seen.pair.kl_ref_cand.mean()),
    }


def _over_the_limit(basis: Basis, observed: dict[str, float]) -> list[Divergence]:
    divergences = []
    for metric, value in observed.items():
        base = basis.base.metric(metric)
        allowed = basis.limit[metric] * base
        if value <= allowed and base > 0:  # negated: a NaN is outside
            continue
        note = f"{metric} {value:.3g} {UNITS[metric]} is {_over(value, base):.3g} of the self-spread"
        note += f", limit {basis.limit[metric]:.3g}; the reference's own twin had {basis.ratio[metric]:.3g}"
        divergences.append(Divergence(Rung.T5, KINDS[metric], allowed, where="pooled", delta=value, note=note))
    return divergences


def _off_the_pin(base: Numbers, pin: SpreadPin) -> list[Divergence]:
    divergences = []
    for metric in PINNED:
        found, pinned = base.metric(metric), float(getattr(pin, metric))
        if abs(found - pinned) <= NEAR * pinned:
            continue
        note = (
            f"the reference's own {metric} is {found:.3g} {UNITS[metric]}, pinned {pinned:.3g} for {pin.machine_class}"
        )
        note += f", more than {NEAR:.0%} off: the reference's own spread has changed since it was pinned"
        where = f"self-spread {metric}"
        divergences.append(
            Divergence(Rung.T5, Kind.SPREAD, NEAR * pinned, where=where, delta=found - pinned, note=note)
        )
    return divergences


def _non_finite(seen: Aligned) -> list[Divergence]:
    return [
        divergence_at(seen, Rung.T5, i, Kind.NON_FINITE, 0.0, note=seen.non_finite_words(i))
        for i in np.flatnonzero(~seen.finite).tolist()
    ]


def _non_finite_variants(seen: Aligned, spread: SelfSpread) -> list[Divergence]:
    """Return the ways to run llama.cpp whose rows are not finite where those of strict settings are."""
    strict = {p for p, n in zip(seen.positions, seen.pair.reference.n_nonfinite.tolist(), strict=True) if n}
    keys = [Position(*key) for key in zip(spread.prompt_idx.tolist(), spread.token_idx.tolist(), strict=True)]
    divergences = []
    for variant in spread.variants:
        rows = [keys[row] for row in variant.rows[~np.isfinite(variant.rms)].tolist()]
        bad = [position for position in rows if position not in strict]
        if bad:
            note = f"{len(bad)} rows of llama.cpp itself are not finite, the first at prompt {bad[0].prompt_idx} "
            note += f"token {bad[0].token_idx}; with strict settings they are, so llama.cpp is at fault"
            divergences.append(
                Divergence(Rung.T5, Kind.NON_FINITE, 0.0, where=f"self-spread {variant.name}", note=note)
            )
    return divergences


def with_site(divergence: Divergence, words: str) -> Divergence:
    """Return a divergence that names where llama.cpp's values are first not finite, if it is one of those at T5.

    Args:
        divergence: of any rung.
        words: ``ops.non_finite_words`` of the replayed graphs (T3); empty where none was seen, and nothing is added.
    """
    if not words or divergence.rung is not Rung.T5 or divergence.kind is not Kind.NON_FINITE:
        return divergence
    return replace(divergence, note=f"{divergence.note}; {words}")


def name_site(rung: RungResult, words: str, divergences: Sequence[Divergence]) -> RungResult:
    """Return a rung whose note names that place, if it is T5 and rows are not finite."""
    if not words or rung.rung is not Rung.T5 or not any(with_site(d, words) is not d for d in divergences):
        return rung
    return replace(rung, note="; ".join(filter(None, [rung.note, words])))


def _ledger(seen: Aligned, basis: Basis) -> Ledger:
    """Return the flips, each classed by the self-spread at its position, and how many that noise would make."""
    sigma = np.array([basis.sigma[position] for position in seen.positions])
    top, here = seen.pair.reference.topk_logits[seen.finite].astype(np.float64), sigma[seen.finite]
    flips = ledger_of(seen, sigma).flips
    return Ledger(flips, *(expected_changes(top, here, n_first) for n_first in (1, TOP_JUDGED)))


def _unexplained(seen: Aligned, basis: Basis, ledger: Ledger) -> list[Divergence]:
    """Return the flips that neither the self-spread explains nor the reference's own twin is known to show."""
    row = {position: i for i, position in enumerate(seen.positions)}
    surplus = {kind: ledger.surplus(kind) for kind in (Kind.TOP1, Kind.TOP5_SET)}
    divergences = []
    for flip in ledger.flips:
        tie = flip.ledger is LedgerClass.TIE
        if (tie and not surplus[flip.kind]) or (not tie and _known(flip, basis)):
            continue
        note = f"margin {flip.margin:.3g}, {SIGMAS:g} sigma {SIGMAS * flip.sigma:.3g} of the self-spread"
        note += ", more near-ties than margins predict" if tie else ""
        i, limit = row[flip.position], SIGMAS * flip.sigma
        divergences.append(divergence_at(seen, Rung.T5, i, flip.kind, limit, ledger=flip.ledger, note=note))
    return divergences


def _known(flip: Flip, basis: Basis) -> bool:
    return (*flip.position, flip.kind) in basis.displaced


def _rung(
    seen: Aligned, basis: Basis, observed: dict[str, float], divergences: list[Divergence], causes: list[str]
) -> RungResult:
    """Return the rung; its worst case is the ratio that is nearest to its limit, or farthest beyond it."""
    ratios = {metric: _over(value, basis.base.metric(metric)) for metric, value in observed.items()}
    worst = max(METRICS, key=lambda m: np.inf if np.isnan(ratios[m]) else ratios[m] / basis.limit[m])
    word = "" if basis.own_class else "provisional: no self-spread is pinned for this file on this machine class"
    return RungResult(
        rung=Rung.T5,
        outcome=Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if causes else Outcome.PARITY,
        expected=seen.n_expected,
        compared=len(seen),
        worst=ratios[worst],
        limit=basis.limit[worst],
        unit="of self-spread",
        worst_where=f"{worst}, pooled",
        source=basis.source,
        note="; ".join(part for part in (*_lost_words(seen), *causes, word) if part),
    )


def _unmeasured(seen: Aligned, lost: Sequence[Divergence], causes: list[str]) -> RungResult:
    """Return the rung without limits: DIVERGED where rows are not finite, else INCOMPLETE."""
    outcome, compared = (Outcome.DIVERGED, int((~seen.finite).sum())) if lost else (Outcome.INCOMPLETE, 0)
    note = "; ".join([*_lost_words(seen), *causes])
    return RungResult(Rung.T5, outcome, seen.n_expected, compared, None, None, "of self-spread", note=note)


def _same_rows(seen: Aligned, lost: Sequence[Divergence], causes: list[str]) -> RungResult:
    """Return the rung of a file that is its own F32 twin."""
    return RungResult(
        rung=Rung.T5,
        outcome=Outcome.DIVERGED if lost else Outcome.INCOMPLETE if causes else Outcome.PARITY,
        expected=seen.n_expected,
        compared=len(seen),
        worst=0.0,
        limit=0.0,
        unit="rows",
        worst_where="llama.cpp on the file against its F32 twin",
        source="equal to the F32 twin at every position",
        note="; ".join([*_lost_words(seen), *causes, OWN_TWIN]),
    )


def _lost_words(seen: Aligned) -> list[str]:
    """Return how many rows are not finite on each side, in words; "" if all are finite."""
    counts = (("llama.cpp", seen.pair.reference), ("burn", seen.pair.candidate))
    found = [f"{int((trace.n_nonfinite > 0).sum())} rows of {name} are not finite" for name, trace in counts]
    return [] if seen.finite.all() else found


def _told(basis: Basis, observed: dict[str, float], spread: SelfSpread, pin: SpreadPin | None) -> Spread:
    """Return what the verdict holds of the self-spread."""
    ratios = {
        metric: Ratio(
            observed=value,
            self_spread=basis.base.metric(metric),
            ratio=_over(value, basis.base.metric(metric)),
            limit=basis.limit[metric],
            twin_ratio=basis.ratio[metric],
            unit=UNITS[metric],
        )
        for metric, value in observed.items()
    }
    return Spread(
        provisional=not basis.own_class,
        machine_class=spread.machine_class,
        pooled_over=tuple(basis.names),
        pooled=basis.base,
        ratios=ratios,
        variants={v.name: _variant(v) for v in (*spread.variants, spread.twin) if len(v)},
        absent=spread.absent,
        pinned=None if pin is None else PinnedNumbers(pin.machine_class, *(getattr(pin, name) for name in PINNED)),
        near=NEAR,
        source=basis.source,
    )


def _variant(variant: Variant) -> VariantNumbers:
    pooled: dict[str, Any] = asdict(numbers_of(variant))
    return VariantNumbers(**pooled, against=variant.against, same_as=variant.same_as, run=variant.run)


def _over(value: float, base: float) -> float:
    return value / base if base > 0 else float("nan")


def _place(d: Divergence) -> tuple[bool, int, int, int]:
    """Return a sort key: by position, then by kind; divergences without a position last."""
    return (d.prompt_idx is None, d.prompt_idx or 0, d.token_idx or 0, _ORDER.index(d.kind))
