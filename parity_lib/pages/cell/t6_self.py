"""Rung T6 on the page: every way to make the candidate's rows again and what came out; llama.cpp's own beside."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.base.names import Rung
from parity_lib.judge.t6_self import RELATIONS
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, percent
from parity_lib.records.measured import EqualRows, Itself, Relation
from parity_lib.records.verdicts import Verdict

_COLUMNS = (
    Column("relation"),
    Column("how the rows were made again"),
    Column("expected, rows", numeric=True),
    Column("compared, rows", numeric=True),
    Column("differing, rows", numeric=True),
    Column("verdict"),
)


def self_table(verdict: Verdict) -> Fragment:
    """Return the relations of rung T6, those that do not hold first, and what llama.cpp does in its own."""
    found, rung = verdict.measured.itself, verdict.rung(Rung.T6)
    if found is None or not found.relations:
        why = f" {rung.note}" if rung is not None and rung.note else ""
        return paragraph(f"Whether burn agrees with itself on other ways to the same rows: {ABSENT}.{why}")
    rows = [_row(name, counts) for name, counts in found.relations.items()]
    known = list(RELATIONS)  # a stored record has its keys sorted
    rows.sort(key=lambda row: (row[5] == "bit-equal", known.index(row[0]) if row[0] in known else len(known)))
    marks = ["" if row[5] == "bit-equal" else "bad" for row in rows]
    shown = table(_COLUMNS, rows, marks=marks, css="self") + note(_scope(found))
    return shown + _reference(found.reference)


def _row(name: str, counts: Relation) -> list[str]:
    expected, compared, differ = counts.expected, counts.compared, counts.compared - counts.equal
    word = "✗ differs" if differ else "bit-equal" if compared == expected and expected else "! not complete"
    return [name, counts.what or NONE, count(expected), count(compared), count(differ), word]


def _scope(found: Itself) -> str:
    """Return how much was made again, and with how many threads."""
    again = "every row made again" if found.full else "a part of them made again on each way"
    threads = f", threads {found.threads}" if found.threads else ""
    text = f"Teacher-forced pass over {count(found.rows)} rows, {again}{threads}"
    return f"{text}. A row is equal when the SHA-256 of its bits is."


def _reference(found: Mapping[str, EqualRows]) -> Fragment:
    """Return the same relations of llama.cpp, measured and not gated; a sentence where they were not measured."""
    if not found:
        return note(f"The same relations of llama.cpp: {ABSENT}.")
    columns = (
        Column("llama.cpp, measured, not gated"),
        Column("compared, rows", numeric=True),
        Column("differing, rows", numeric=True),
        Column("what it shows"),
    )
    rows = [_measured(name, rows) for name, rows in found.items()]
    return table(columns, rows, css="self")


def _measured(name: str, rows: EqualRows) -> list[str]:
    compared, equal = rows.compared, rows.equal
    share = f"{percent(equal / compared)} bit-equal" if compared else NONE
    return [name, count(compared), count(compared - equal), "bit-equal" if compared and equal == compared else share]
