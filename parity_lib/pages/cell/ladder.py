"""The rung table: what was asked, how much was compared, the worst case against its limit; failing rows first."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from markupsafe import Markup, escape

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.cell.power import control_words, power_words
from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.outcomes import badge, severity, style_of
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, margin, number, percent
from parity_lib.records.verdicts import RungResult, Verdict

SECTIONS = {
    Rung.T0: "#ran",
    Rung.T1: "#tokens",
    Rung.T2: "#weights",
    Rung.T3: "#ops",
    Rung.T4: "#positions",
    Rung.T5: "#literal",
    Rung.T6: "#self",
    Rung.T7: "#isa",
}
"""Where the details of each rung stand on a cell's page."""

_NOUN = {
    Rung.T0: "pins",
    Rung.T1: "texts",
    Rung.T2: "tensors",
    Rung.T3: "ops",
    Rung.T4: "positions",
    Rung.T5: "positions",
    Rung.T6: "rows",
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

_BANDED = (Rung.T3, Rung.T4, Rung.T5)  # their limits are measured; without one the rung was not judged
_COUNTED = ("texts", "rows")
_LONG, _NOTE_OF_A_GREEN = 90, 60  # characters of a source, of a note of a rung that holds

_COLUMNS = (
    Column("rung"),
    Column("expected", numeric=True),
    Column("compared", numeric=True),
    Column("worst", numeric=True),
    Column("limit", numeric=True),
    Column("margin", numeric=True),
    Column("verdict"),
    Column("notes"),
)


def noun(rung: Rung) -> str:
    """Return what a rung counts: positions, tensors, pins."""
    return _NOUN[rung]


def rung_table(verdict: Verdict, links: Mapping[str, str] | None = None) -> Fragment:
    """Return the ladder of a cell, failing rungs first.

    Args:
        verdict: the record of the cell.
        links: rung to an anchor on the page where its details stand; SECTIONS on a cell's page.
    """
    rungs = sorted(verdict.rungs, key=lambda r: (severity(r.outcome), r.rung.value))
    rows = [_row(result, verdict, (links or {}).get(result.rung)) for result in rungs]
    marks = [style_of(result.outcome).css for result in rungs]
    absent = [rung.title for rung in Rung if verdict.rung(rung) is None]
    return (
        table(_COLUMNS, rows, marks=marks, css="rungs")
        + paragraph(f"{power_words(verdict)} {control_words(verdict)}")
        + note(f"Not part of this cell: {', '.join(absent)}." if absent else "")
    )


def _row(result: RungResult, verdict: Verdict, link: str | None) -> list[str]:
    reported = result.outcome is Outcome.REPORTED
    return [
        _name(result, link),
        count(result.expected),
        count(result.compared),
        _with_unit(result.worst, result.unit) if result.worst is not None else NONE,
        _limit(result),
        NONE if reported else margin(result.worst, result.limit),
        badge(style_of(result.outcome)),
        _remarks(result, _literally(verdict) if result.rung is Rung.T5 else ""),
    ]


def _name(result: RungResult, link: str | None) -> Markup:
    title = Markup('<abbr title="{}">{}</abbr>').format(_QUESTION[result.rung], result.rung.title)
    return Markup('<a href="{}">{}</a>').format(link, title) if link else title


def _literally(verdict: Verdict) -> str:
    """Return what the deployed file did, literally: the gate stands on the spread, the reader asks for this."""
    found = verdict.measured.native.generated if verdict.measured.native else None
    if found is None:
        return ""
    return f"literally, generated tokens: top-1 {percent(found.top1_share)}, top-5 set {percent(found.top5_set_share)}"


def _remarks(result: RungResult, literally: str) -> Markup:
    """Return place and note; a long source is folded, and of a rung that holds a long note, too."""
    # A source may say the same of several limits: once is enough.
    source = "; ".join(dict.fromkeys(result.source.split("; ")))
    holds = result.outcome in (Outcome.PARITY, Outcome.REPORTED)
    long = [(result.note, "how", _NOTE_OF_A_GREEN if holds else sys.maxsize), (source, "source of the limit", _LONG)]
    parts: list[str] = [part for part in (literally, result.worst_where) if part]
    for text, summary, most in long:
        parts += [details(summary, Fragment(escape(text), text)).html if len(text) > most else text] if text else []
    return Markup("<br>").join(parts or [NONE])


def _limit(result: RungResult) -> str:
    if result.outcome is Outcome.REPORTED:
        return "no gate"
    if result.limit is None:
        return NONE if result.rung in _BANDED else "exact"
    return _with_unit(result.limit, result.unit)


def _with_unit(value: float, unit: str) -> str:
    if unit in _COUNTED and value == int(value):
        return f"{count(int(value))} {unit}"
    text = number(value, 3 if unit == "of self-spread" else 2)  # two digits are too few for a ratio near 1
    return f"{text} {unit}" if unit else text
