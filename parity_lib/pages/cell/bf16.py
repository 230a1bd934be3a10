"""The candidate's BF16 arithmetic end to end: three distances to llama.cpp on the BF16 twin, reported and not gated."""

from __future__ import annotations

from parity_lib.base.names import Compute
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import EMPTY, Fragment, heading, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number, percent
from parity_lib.records.row_numbers import PairNumbers, PairReport
from parity_lib.records.verdicts import Verdict

_ROWS = {
    "band": "llama.cpp on the F32 twin: the BF16 band",
    "candidate": "burn, bf16",
    "plain_f32": "burn, f32",
}
_SCOPES = {"all": "all positions", "generated": "generated tokens"}
_NOTE = (
    "One rounding that falls the other way moves the next layer by a BF16 step: a plain f32 engine is as near as a "
    "correct bf16 one, and these numbers do not separate the two; rung T3 does, op by op. Reported, not gated."
)


def bf16_table(verdict: Verdict) -> Fragment:
    """Return the distances of a cell with ``compute="bf16"``; empty for a cell of another arithmetic."""
    found = verdict.measured.bf16
    if verdict.cell.compute != Compute.BF16:
        return EMPTY
    if found is None:
        return paragraph(f"The distances of BF16 arithmetic to llama.cpp on the BF16 twin: {ABSENT}.")
    rows = [_row(label, getattr(found, name), scope) for name, label in _ROWS.items() for scope in _SCOPES]
    columns = (
        Column("from llama.cpp on the BF16 twin to"),
        Column("over"),
        Column("positions", numeric=True),
        Column("rms over the rows' std", numeric=True),
        Column("largest |delta| of any logit", numeric=True),
        Column("KL from the BF16 twin, mean, nats", numeric=True),
        Column("top-1 equal", numeric=True),
        Column("top-5 set equal", numeric=True),
    )
    return heading("BF16 arithmetic, end to end") + table(columns, rows, css="native") + note(_NOTE)


def _row(label: str, report: PairReport, scope: str) -> list[str]:
    numbers: PairNumbers | None = getattr(report, scope)
    if numbers is None:
        return [label, _SCOPES[scope], *[NONE] * 6]
    return [
        label,
        _SCOPES[scope],
        count(numbers.positions),
        number(numbers.rms_over_row_std, 3),
        number(numbers.max_abs, 3),
        number(numbers.kl_ref_cand.mean, 3),
        percent(numbers.top1_share),
        percent(numbers.top5_set_share),
    ]


def bf16_words(verdict: Verdict) -> str:
    """Return the three distances in one sentence; empty where one of them was not measured."""
    found = verdict.measured.bf16
    if verdict.cell.compute != Compute.BF16 or found is None:
        return ""
    reports = (found.band.all, found.candidate.all, found.plain_f32.all)
    own = [numbers.rms_over_row_std for numbers in reports if numbers is not None]
    if len(own) != len(reports):
        return ""
    band, candidate, plain = own
    return (
        f"From llama.cpp on the BF16 twin, rms over the rows' std: burn {number(candidate, 3)}; the BF16 band "
        f"{number(band, 3)}; burn in f32 {number(plain, 3)}. Reported, not gated: they do not separate the two."
    )
