"""The rules that turn a cell of a plan and its verdict into an outcome of the nightly run."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.base.names import Kind, Outcome
from parity_lib.night.plan import DIVERGED, EXPECTED, PlanCell
from parity_lib.records.night_record import NUMERIC_RUNGS
from parity_lib.records.verdicts import Verdict


def decide(
    cell: PlanCell, verdict: Verdict | None, causes: Sequence[str], *, asserted: bool
) -> tuple[Outcome, bool, tuple[str, ...]]:
    """Return (outcome, as the plan expects, causes) of a cell that ran.

    Args:
        cell: what the plan says of it.
        verdict: its record, or None if there is no sound one.
        causes: what is wrong with the run of its notebook.
        asserted: the assert cell raised.
    """
    why = list(causes)
    if verdict is None:
        outcome = Outcome.INCOMPLETE
    elif verdict.outcome is Outcome.PARITY:
        if asserted:
            why.append("the assert cell raised, but the record says PARITY")
        outcome = Outcome.INCOMPLETE if why else Outcome.PARITY
    else:
        why += verdict.causes
        outcome = verdict.outcome if verdict.outcome is Outcome.DIVERGED else Outcome.INCOMPLETE
    if cell.control:
        return _control(cell, verdict, outcome, why)
    if cell.expect != DIVERGED:
        return outcome, outcome is Outcome.PARITY, tuple(why)
    lowest = verdict.lowest_broken if verdict is not None else None
    found = lowest.rung.value if lowest is not None else ""
    if outcome is Outcome.PARITY:
        why.append(f"{EXPECTED} and is gone: {cell.reason}")
    elif outcome is Outcome.DIVERGED and found != cell.at:
        why.append(f"{EXPECTED} at {cell.at} and not below, found at {found or 'no rung'}: {cell.reason}")
    return outcome, outcome is Outcome.DIVERGED and found == cell.at, tuple(why)


def _control(
    cell: PlanCell, verdict: Verdict | None, outcome: Outcome, why: list[str]
) -> tuple[Outcome, bool, tuple[str, ...]]:
    """Decide a red control: good if a numeric rung caught it, INVALID if the comparison was made and no rung did."""
    found = () if verdict is None else verdict.divergences
    caught = any(d.rung in NUMERIC_RUNGS and d.kind is not Kind.SPREAD for d in found)
    if outcome is Outcome.DIVERGED and caught:
        return outcome, True, tuple(why)
    if outcome is Outcome.INCOMPLETE:
        return outcome, False, tuple(why)
    why.append(f"the red control was not caught: {cell.fault}")
    return Outcome.INVALID, False, tuple(why)


def without_run(cell: PlanCell, reason: str, *, require_all: bool) -> tuple[Outcome, bool, tuple[str, ...]]:
    """Return (outcome, as expected, causes) of a cell that cannot run on this machine, for the given reason."""
    if cell.required or require_all:
        return Outcome.INCOMPLETE, False, (reason,)
    return Outcome.NOT_RUN, True, (reason,)


def worst_margin(verdict: Verdict | None) -> float | None:
    """Return the smallest margin of the verdict's gated rungs, or None without a number."""
    rungs = [] if verdict is None else [r for r in verdict.rungs if r.outcome is not Outcome.REPORTED]
    return min((r.margin for r in rungs if r.margin is not None), default=None)
