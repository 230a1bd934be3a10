"""The candidate's BF16 arithmetic end to end: three distances to llama.cpp on the BF16 twin, reported and not gated."""

from __future__ import annotations

from parity_lib.base.names import Compute
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.cell.t5_spread import Json, reader
from parity_lib.pages.kit.fragment import EMPTY, Fragment, heading, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number, percent
from parity_lib.records.verdicts import Verdict

_ROWS = {
    "band": "llama.cpp on the F32 twin: the BF16 band",
    "candidate": "burn, bf16",
    "plain_f32": "burn, f32",
}
_SCOPES = {"all": "all positions", "generated": "generated tokens"}
_NOTE = (
    "One rounding that falls the other way moves the next layer by a BF16 step: a plain f32 engine is as near as a "
    "correct bf16 one, so no number here tells the two apart. Single ops do (rung T3); nothing here is gated."
)


def bf16_table(verdict: Verdict) -> Fragment:
    """Return the distances of a cell with ``compute="bf16"``; nothing for a cell of another arithmetic."""
    found = verdict.literal.get("bf16")
    if verdict.cell.compute != Compute.BF16:
        return EMPTY
    if not isinstance(found, dict) or not found:
        return paragraph(f"The distances of BF16 arithmetic to llama.cpp on the BF16 twin: {ABSENT}.")
    rows = [_row(label, found[name], scope) for name, label in _ROWS.items() if name in found for scope in _SCOPES]
    columns = (
        Column("from llama.cpp on the BF16 twin to"),
        Column("over"),
        Column("positions", numeric=True),
        Column("rms over the rows' std", numeric=True),
        Column("largest |delta| of any logit", numeric=True),
        Column("KL, mean, nats", numeric=True),
        Column("top-1 equal", numeric=True),
        Column("top-5 set equal", numeric=True),
    )
    return heading("BF16 arithmetic, end to end") + table(columns, rows, css="native") + note(_NOTE)


def _row(label: str, values: Json, scope: str) -> list[str]:
    numbers = values.get(scope) if isinstance(values, dict) else None
    get = reader(numbers)
    mean = reader(numbers.get("kl_ref_cand") if isinstance(numbers, dict) else None)("mean")
    positions = get("positions")
    return [
        label,
        _SCOPES[scope],
        NONE if positions is None else count(int(positions)),
        number(get("rms_over_row_std"), 3),
        number(get("max_abs"), 3),
        number(mean, 3),
        percent(get("top1_share")),
        percent(get("top5_set_share")),
    ]


def bf16_words(verdict: Verdict) -> str:
    """Return the three distances in one sentence; empty where the record has not all of them."""
    found = verdict.literal.get("bf16")
    if verdict.cell.compute != Compute.BF16 or not isinstance(found, dict):
        return ""
    own = [found[name].get("all") if isinstance(found.get(name), dict) else None for name in _ROWS]
    band, candidate, plain = (reader(values)("rms_over_row_std") for values in own)
    if band is None or candidate is None or plain is None:
        return ""
    return (
        f"From llama.cpp on the BF16 twin, rms over the rows' std: burn {number(candidate, 3)}; the BF16 band "
        f"{number(band, 3)}; burn in f32 {number(plain, 3)}. Reported: end to end no number tells the two apart."
    )
