"""The rung table: what was asked, how much was compared, the worst case against its limit; failing rows first."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.cell.power import control_words, power_words
from parity_lib.pages.kit.fragment import Column, Fragment, details, plain_table, table
from parity_lib.pages.kit.outcomes import badge, look, severity
from parity_lib.pages.kit.text import NONE, count, escape, margin, number, percent
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
    Column("notes", markup=True),
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
    texts = [_texts(result) for result in rungs]
    rows = [
        [
            _name(result, (links or {}).get(result.rung)),
            *text[1:6],
            badge(look(result.outcome)),
            _remarks(result, _literally(verdict) if result.rung is Rung.T5 else ""),
        ]
        for result, text in zip(rungs, texts, strict=True)
    ]
    attributes = [f'class="{look(result.outcome).css}"' for result in rungs]
    absent = [rung.title for rung in Rung if verdict.rung(rung) is None]
    sure = f"{power_words(verdict)} {control_words(verdict)}"
    note = f"<p class=note>Not part of this cell: {escape(', '.join(absent))}.</p>" if absent else ""
    html = table(_COLUMNS, rows, row_attributes=attributes, css="rungs") + f"<p>{escape(sure)}</p>" + note
    return Fragment(html=html, plain=f"{plain_table(_COLUMNS, texts)}\n{sure}")


def _name(result: RungResult, link: str | None) -> str:
    title = f'<abbr title="{escape(_QUESTION[result.rung])}">{escape(result.rung.title)}</abbr>'
    return f'<a href="{escape(link)}">{title}</a>' if link else title


def _literally(verdict: Verdict) -> str:
    """Return what the deployed file did, literally: the gate stands on the spread, the reader asks for this."""
    found = verdict.literal.get("generated")
    shares = [found.get(key) for key in ("top1_share", "top5_set_share")] if isinstance(found, Mapping) else []
    if not shares or not all(isinstance(share, int | float) for share in shares):
        return ""
    return f"literally, generated tokens: top-1 {percent(shares[0])}, top-5 set {percent(shares[1])}"


def _remarks(result: RungResult, literally: str) -> str:
    """Return place and note; a long source is folded, because it has to be enough to derive the limit again."""
    parts = [escape(part) for part in (literally, result.worst_where, result.note) if part]
    # A source names each band by itself, most of it in the same words: said once is enough.
    source = "; ".join(dict.fromkeys(result.source.split("; ")))
    if len(source) > _LONG:
        return "<br>".join([*parts, details("limit from", escape(source))])
    return "<br>".join([*parts, *([escape(source)] if source else [])]) or NONE


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
    text = number(value, 3 if unit == "of self-spread" else 2)  # a ratio near 1 says nothing in two digits
    return f"{text} {unit}" if unit else text
