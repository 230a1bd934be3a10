"""How sure a cell is: the smallest share of wrong positions that it detects, and whether its red control was caught."""

from __future__ import annotations

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.pages.kit.text import count, number, percent
from parity_lib.records.night_record import NUMERIC_RUNGS
from parity_lib.records.verdicts import Verdict

NO_POWER = "The smallest share of wrong positions that this cell detects is not in this record."
NO_GATE = "This cell has no end-to-end gate: a wrong position is reported, not caught."
ELSEWHERE = "Red control: not part of this cell; the page of its nightly run shows whether one was caught."


def power_words(verdict: Verdict) -> str:
    """Return what the cell would have caught, in one sentence.

    A flip rate r misses all of n independent positions with probability (1 - r)^n; repeated text counts once.
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
    """Return what is known of a red control: whether this one was caught, or which page shows it."""
    if not verdict.control:
        return ELSEWHERE
    candidate = verdict.runs.get("candidate")
    fault = f" ({candidate.fault})" if candidate is not None and candidate.fault else ""
    if verdict.outcome is Outcome.INCOMPLETE:
        return f"This is a red control{fault}: it could not be compared, so it is no evidence."
    found = [d for d in verdict.divergences if d.rung in NUMERIC_RUNGS and d.kind is not Kind.SPREAD]
    rungs = sorted({d.rung.value for d in found})
    if rungs:
        return f"This is a red control{fault}: caught, at {', '.join(rungs)}."
    return f"This is a red control{fault}: NOT caught by any numeric rung, so no PARITY of its nightly run counts."


def share(rate: float) -> str:
    """Return a small share in per cent, ``0.21 %``."""
    return percent(rate) if rate >= 0.01 else f"{number(rate * 100)} %"
