"""Checks the record in one cell's folder, and returns its lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from parity_lib.base.errors import ParityError
from parity_lib.base.names import Outcome, Rung
from parity_lib.cell.steps import REQUIRED
from parity_lib.night.plan import EXPECTED, PlanCell
from parity_lib.records import store
from parity_lib.records.verdicts import CellId, Verdict, conclude


def sound_verdict(
    folder: Path, identity: CellId, cell: PlanCell, *, has_vocabulary: bool, require_isa: bool = False, since: datetime
) -> tuple[Verdict | None, list[str]]:
    """Return the verdict in a cell's folder if it is this cell's and follows from its rungs, else None and the causes.

    All that can be checked is checked: the outcome is concluded again from the rungs, with those that a cell
    must have climbed; cell, control, fault and time are compared with what the plan asked for, and when.

    Args:
        folder: the cell's.
        identity: the cell that must stand in the record.
        cell: what the plan says of it.
        has_vocabulary: whether its file has one; without, there is no tokenizer to compare (T1).
        require_isa: whether its ISA target has to be proven; then an unproven one is not excused as NOT_RUN (T7).
        since: when its notebook was started; an older record is one that was left in place.
    """
    try:
        verdict = store.load_verdict(folder)
    except ParityError as error:
        return None, [f"no verdict record: {error}"]
    wrong = verdict.contradictions()
    required = [rung for rung in REQUIRED if rung is not Rung.T1 or has_vocabulary]
    outcome, causes = conclude(verdict.rungs, required=required)
    if verdict.outcome is Outcome.PARITY and outcome is not Outcome.PARITY:
        wrong += causes
    proof = verdict.rung(Rung.T7)
    unproven = proof is not None and proof.outcome is not Outcome.PARITY
    if require_isa and proof is not None and unproven and verdict.outcome is Outcome.PARITY:
        wrong.append(f"the ISA target {identity.isa} is not proven, as the plan requires: {proof.note}")
    if verdict.cell != identity or verdict.control != cell.control:
        wrong.append(f"the verdict is of another cell: {verdict.cell}")
    if _written(verdict) < since.replace(microsecond=0):
        wrong.append(f"the verdict is older than this run: written {verdict.created_at}, started {since:%Y-%m-%dT%TZ}")
    if verdict.outcome is not Outcome.INCOMPLETE:
        candidate = verdict.runs.get("candidate")
        if candidate is None:  # without rows it may have diverged in a lower rung; with a fault that proves nothing
            if cell.fault or verdict.outcome is not Outcome.DIVERGED:
                wrong.append("the verdict does not name the candidate that ran")
        elif (candidate.fault or "") != cell.fault:
            wrong.append(f"the candidate ran with fault {candidate.fault!r}, the plan says {cell.fault!r}")
    return (None if wrong else verdict), wrong


def _written(verdict: Verdict) -> datetime:
    """Return when a record was written; the earliest time if it does not say."""
    try:
        when = datetime.fromisoformat(verdict.created_at)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def rename_inside(partial: Path, final: Path) -> None:
    """Replace the cell's working folder by its final one in the paths of its records."""
    for path in (*partial.glob("*.ipynb"), *partial.glob("*.log"), partial / store.VERDICT):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if str(partial) in text:
                path.write_text(text.replace(str(partial), str(final)), encoding="utf-8")


def cause_line(outcome: Outcome, cell: CellId, cause: str) -> str:
    """Return the greppable line of a cause; a divergence has lines of its own, so what comes with it is a gap."""
    word = {Outcome.DIVERGED: "INCOMPLETE", Outcome.PARITY: "UNEXPECTED"}.get(outcome, outcome.value)
    word = "UNEXPECTED" if cause.startswith(EXPECTED) else word
    return f"{word} {cell.fields()} cause={json.dumps(cause, ensure_ascii=False)}"
