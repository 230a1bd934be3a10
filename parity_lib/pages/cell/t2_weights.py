"""Rung T2 on the page: how many tensors, and those whose numbers are not gguf's own."""

from __future__ import annotations

from parity_lib.base.names import Rung
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, details, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, signed
from parity_lib.records.verdicts import Verdict

_SHOWN = 20
_COLUMNS = (Column("tensor"), Column("worst, ULP", numeric=True), Column("what"))


def weight_table(verdict: Verdict) -> Fragment:
    """Return what rung T2 found, each tensor that differs with its worst element."""
    rung = verdict.rung(Rung.T2)
    if rung is None:
        return paragraph(f"Whether every tensor holds the numbers of gguf.dequantize: {ABSENT}.")
    found = [d for d in verdict.divergences if d.rung is Rung.T2]
    share = f"{count(rung.compared)} of {count(rung.expected)} tensors compared"
    rest = "; ".join(part for part in (rung.source, rung.note) if part)
    text = f"{share}, {count(len({d.where for d in found}))} of them differ{': ' if rest else ''}{rest}."
    rows = [[d.where or NONE, signed(d.delta), d.note or NONE] for d in found]
    shown = paragraph(text)
    if rows:
        shown += table(_COLUMNS, rows[:_SHOWN], marks=["bad"] * len(rows[:_SHOWN]), css="weights")
    if len(rows) > _SHOWN:
        shown += details(f"{count(len(rows) - _SHOWN)} more tensors", table(_COLUMNS, rows[_SHOWN:], css="weights"))
    return shown
