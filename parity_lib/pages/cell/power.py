"""How sure a cell is: the smallest share of wrong positions that it would have seen, and what its red control says."""

from __future__ import annotations

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.pages.kit.text import count, number, percent
from parity_lib.records.night_record import NUMERIC_RUNGS
from parity_lib.records.verdicts import Verdict

NO_POWER = "How small a share of wrong positions this would have seen is not in this record."
NO_GATE = "No gate stands end to end in this cell: a wrong position would have been reported, and not caught."
ELSEWHERE = "Red control: not part of this cell; the page of its night says whether one was caught."


def power_words(verdict: Verdict) -> str:
    """Return what the cell would have caught, in one sentence.

    A flip rate r hits none of n independent positions with probability (1 - r)^n; n counts text that repeats once.
    """
    found, twin = verdict.measured.power, verdict.rung(Rung.T4)
    if found is None:
        return NO_POWER
    if twin is not None and twin.outcome is Outcome.REPORTED:
        return NO_GATE
    return (
        f"These {count(found.positions)} effective positions would have caught a flip rate of "
        f"{share(found.detectable_flip_rate)} with probability {number(found.confidence)}."
    )


def control_words(verdict: Verdict) -> str:
    """Return what is known of a red control: whether this one was caught, or where the night's is told."""
    if not verdict.control:
        return ELSEWHERE
    candidate = verdict.runs.get("candidate")
    fault = f" ({candidate.fault})" if candidate is not None and candidate.fault else ""
    if verdict.outcome is Outcome.INCOMPLETE:
        return f"This is a red control{fault}: it could not be compared, so it shows nothing."
    found = [d for d in verdict.divergences if d.rung in NUMERIC_RUNGS and d.kind is not Kind.SPREAD]
    rungs = sorted({d.rung.value for d in found})
    if rungs:
        return f"This is a red control{fault}: caught, at {', '.join(rungs)}."
    return f"This is a red control{fault}: NOT caught by any numeric rung, so no green of its night counts."


def share(rate: float) -> str:
    """Return a small share in per cent, ``0.21 %``."""
    return percent(rate) if rate >= 0.01 else f"{number(rate * 100)} %"
