"""The rung table: what was asked, how much was compared, the worst case against its limit; failing rows first."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.display.outcomes import badge, look, severity
from parity_lib.display.page import Column, Fragment, details, plain_table, table
from parity_lib.display.text import NONE, count, escape, margin, number
from parity_lib.names import Outcome, Rung
from parity_lib.verdicts import RungResult, Verdict

_NOUN = {
    Rung.T0: "pins",
    Rung.T1: "prompts",
    Rung.T2: "tensors",
    Rung.T3: "ops",
    Rung.T4: "positions",
    Rung.T5: "positions",
    Rung.T6: "relations",
    Rung.T7: "proofs",
}

_QUESTION = {
    Rung.T0: "same files, same engines?",
    Rung.T1: "same token ids?",
    Rung.T2: "same numbers in the tensors?",
    Rung.T3: "is every op right, on its own?",
    Rung.T4: "is the whole model right, on the F32 twin?",
    Rung.T5: "what does the deployed file do, literally?",
    Rung.T6: "is the candidate itself consistent?",
    Rung.T7: "did the instructions asked for really run?",
}

_BANDED = (Rung.T3, Rung.T4, Rung.T5)  # their limits are measured; without one nothing was judged
_LONG = 90  # characters

_COLUMNS = (
    Column("rung", markup=True),
    Column("expected", numeric=True),
    Column("compared", numeric=True),
    Column("worst", numeric=True),
    Column("limit", numeric=True),
    Column("margin", numeric=True),
    Column("verdict", markup=True),
    Column("worst at, notes, where the limit comes from", markup=True),
)


def noun(rung: Rung) -> str:
    """Return what a rung counts: positions, tensors, pins."""
    return _NOUN[rung]


def rung_table(verdict: Verdict, links: Mapping[str, str] | None = None) -> Fragment:
    """Return the ladder of a cell, failing rungs first.

    Args:
        verdict: the record of the cell.
        links: rung to an anchor on the page where its details stand.
    """
    rungs = sorted(verdict.rungs, key=lambda r: (severity(r.outcome), r.rung.value))
    texts = [_texts(result) for result in rungs]
    rows = [
        [_name(result, (links or {}).get(result.rung)), *text[1:6], badge(look(result.outcome)), _remarks(result)]
        for result, text in zip(rungs, texts, strict=True)
    ]
    attributes = [f'class="{look(result.outcome).css}"' for result in rungs]
    absent = [rung.title for rung in Rung if verdict.rung(rung) is None]
    note = f"<p class=note>Not part of this cell: {escape(', '.join(absent))}.</p>" if absent else ""
    html = table(_COLUMNS, rows, row_attributes=attributes, css="rungs") + note
    return Fragment(html=html, plain=plain_table(_COLUMNS, texts))


def _name(result: RungResult, link: str | None) -> str:
    title = f'<abbr title="{escape(_QUESTION[result.rung])}">{escape(result.rung.title)}</abbr>'
    return f'<a href="{escape(link)}">{title}</a>' if link else title


def _remarks(result: RungResult) -> str:
    """Return place and note; a long source is folded, because it has to be enough to derive the limit again."""
    parts = [escape(part) for part in (result.worst_where, result.note) if part]
    if len(result.source) > _LONG:
        return "<br>".join([*parts, details("limit from", escape(result.source))])
    return "<br>".join([*parts, *([escape(result.source)] if result.source else [])]) or NONE


def _texts(result: RungResult) -> list[str]:
    ratio = margin(result.worst, result.limit)
    if result.outcome is Outcome.REPORTED:
        ratio = NONE
    return [
        result.rung.title,
        count(result.expected),
        count(result.compared),
        _with_unit(result.worst, result.unit) if result.worst is not None else NONE,
        _limit(result),
        ratio,
        f"{look(result.outcome).sign} {look(result.outcome).word}",
        " · ".join(part for part in (result.worst_where, result.source, result.note) if part) or NONE,
    ]


def _limit(result: RungResult) -> str:
    if result.outcome is Outcome.REPORTED:
        return "no gate"
    if result.limit is None:
        return NONE if result.rung in _BANDED else "exact"
    return _with_unit(result.limit, result.unit)


def _with_unit(value: float, unit: str) -> str:
    text = number(value)
    return f"{text} {unit}" if unit else text
