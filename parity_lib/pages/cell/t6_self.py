"""Rung T6 on the page: every way to make the candidate's rows again and what came out; llama.cpp's own beside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parity_lib.base.names import Rung
from parity_lib.judge.t6_self import RELATIONS
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, percent
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
    found = verdict.literal.get("self")
    relations = found.get("relations") if isinstance(found, Mapping) else None
    rung = verdict.rung(Rung.T6)
    if not isinstance(found, Mapping) or not isinstance(relations, Mapping) or not relations:
        why = f" {rung.note}" if rung is not None and rung.note else ""
        return paragraph(f"Whether burn agrees with itself on other ways to the same rows: {ABSENT}.{why}")
    rows = [_row(str(name), counts) for name, counts in relations.items()]
    known = list(RELATIONS)  # a stored record has its keys sorted
    rows.sort(key=lambda row: (row[5] == "bit-equal", known.index(row[0]) if row[0] in known else len(known)))
    marks = ["" if row[5] == "bit-equal" else "bad" for row in rows]
    shown = table(_COLUMNS, rows, marks=marks, css="self") + note(_scope(found))
    return shown + _reference(found.get("reference"))


def _row(name: str, counts: Any) -> list[str]:  # noqa: ANN401 - JSON
    known = counts if isinstance(counts, Mapping) else {}
    expected, compared, equal = (known.get(key) for key in ("expected", "compared", "equal"))
    if not (isinstance(expected, int) and isinstance(compared, int) and isinstance(equal, int)):
        return [name, str(known.get("what", NONE)), NONE, NONE, NONE, ABSENT]
    differ = compared - equal
    word = "✗ differs" if differ else "bit-equal" if compared == expected and expected else "! not complete"
    return [name, str(known.get("what") or NONE), count(expected), count(compared), count(differ), word]


def _scope(found: Mapping[str, Any]) -> str:
    """Return how much was made again, and with how many threads."""
    rows, threads = found.get("rows"), found.get("threads")
    parts = [f"teacher-forced pass over {count(rows)} rows" if isinstance(rows, int) else ""]
    parts += ["every row made again" if found.get("full") else "a part of them made again on each way"]
    parts += [f"threads {threads}" if threads else ""]
    text = ", ".join(part for part in parts if part)
    return f"{text[:1].upper()}{text[1:]}. A row is equal when the SHA-256 of its bits is."


def _reference(found: Any) -> Fragment:  # noqa: ANN401 - JSON
    """Return the same relations of llama.cpp, measured and not gated; nothing where they were not measured."""
    if not isinstance(found, Mapping) or not found:
        return note(f"The same relations of llama.cpp: {ABSENT}.")
    columns = (
        Column("llama.cpp, measured, not gated"),
        Column("compared, rows", numeric=True),
        Column("differing, rows", numeric=True),
        Column("what it shows"),
    )
    rows = [_measured(str(name), values) for name, values in found.items() if isinstance(values, Mapping)]
    return table(columns, rows, css="self")


def _measured(name: str, values: Mapping[str, Any]) -> list[str]:
    compared, equal = values.get("compared"), values.get("equal")
    if not (isinstance(compared, int) and isinstance(equal, int)):
        return [name, NONE, NONE, ABSENT]
    word = (
        "bit-equal"
        if compared and equal == compared
        else f"{percent(equal / compared)} bit-equal"
        if compared
        else NONE
    )
    return [name, count(compared), count(compared - equal), word]
