"""How sure a nightly run is: what each cell would have caught, what was run twice, which faults were caught."""

from __future__ import annotations

from pathlib import Path

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.cell.power import share
from parity_lib.pages.kit.fragment import EMPTY, Fragment, joined, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number
from parity_lib.pages.night.find import cell_verdicts
from parity_lib.pages.night.matrix import label_of, usual
from parity_lib.records.night_record import Night
from parity_lib.records.verdicts import Verdict

_COLUMNS = (
    Column("cell"),
    Column("positions", numeric=True),
    Column("of them effective", numeric=True),
    Column("flip rate it would have caught", numeric=True),
    Column("with probability", numeric=True),
    Column("reference, run twice"),
    Column("candidate against itself"),
    Column("instructions observed"),
)
_NOT_MEASURED = (
    "Not measured by a nightly run: the false-positive rate, the share of seeded faults that the ladder catches "
    "(parity faults MODEL QUANT), the smallest fault that it detects."
)


def sure_table(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return what is known of the run's own reliability, and a sentence on what is not."""
    if night is None:
        return EMPTY
    verdicts = cell_verdicts(night, run_dir)
    cells = [r for r in night.cells if not r.control and r.outcome in (Outcome.PARITY, Outcome.DIVERGED)]
    home = usual(night)
    rows = [[label_of(record, home), *_row(verdicts.get(record.key))] for record in cells]
    shown = table(_COLUMNS, rows, css="sure") if rows else EMPTY
    return shown + joined(map(paragraph, [*_controls(night), _NOT_MEASURED]))


def _row(verdict: Verdict | None) -> list[str]:
    if verdict is None:
        return [NONE, NONE, NONE, NONE, "the record cannot be read", NONE, NONE]
    twin = verdict.rung(Rung.T4)
    gated = twin is not None and twin.outcome is not Outcome.REPORTED
    known = verdict.measured.power if gated else None
    return [
        NONE if twin is None else count(twin.compared),
        NONE if known is None else count(known.positions),
        NONE if known is None else share(known.detectable_flip_rate),
        NONE if known is None else number(known.confidence),
        _reference(verdict),
        _candidate(verdict),
        _instructions(verdict),
    ]


def _reference(verdict: Verdict) -> str:
    """Return whether llama.cpp was run a second time on the same input, and what came out."""
    found = verdict.measured.cache
    word = "" if found is None else found.parts.get("reference", "")
    return word if "again" in word else "not in this run" if word else NONE


def _candidate(verdict: Verdict) -> str:
    """Return how many rows of rung T6 held to the bit."""
    rung = verdict.rung(Rung.T6)
    if rung is None:
        return NONE
    if rung.outcome is Outcome.PARITY:
        return f"bit-equal, {count(rung.compared)} rows"
    return f"{rung.outcome}: {rung.note or rung.worst_where}"


def _instructions(verdict: Verdict) -> str:
    """Return which ISA target rung T7 saw beside the one that was asked for."""
    rung = verdict.rung(Rung.T7)
    if rung is None:
        return NONE
    if rung.outcome is Outcome.PARITY:
        return f"{verdict.cell.isa}, proven"
    words = {Outcome.DIVERGED: "refused", Outcome.REPORTED: "not on both sides"}
    return f"{verdict.cell.isa} {words.get(rung.outcome, 'unproven')}: {rung.note.partition(';')[0]}"


def _controls(night: Night) -> list[str]:
    controls = [record for record in night.cells if record.control]
    if not controls:
        return ["Red controls: not part of this plan; this run has no evidence that it would catch a fault."]
    parts = []
    for record in controls:
        where = f" at {record.lowest_broken}" if record.good and record.lowest_broken else ""
        word = (
            f"caught{where}" if record.good else "not compared" if record.outcome is not Outcome.INVALID else "MISSED"
        )
        parts.append(f"{record.cell.model} {record.cell.quant} with {record.fault}: {word}")
    caught = sum(record.good for record in controls)
    return [f"Red controls: {caught} of {len(controls)} caught. {'; '.join(parts)}."]
