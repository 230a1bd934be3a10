"""Rung T3 on the page: each kind of op, how many of them were replayed, and the worst of them against its limits."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parity_lib.base.names import Rung
from parity_lib.numerics.op_error import CHANNEL_LIMIT, EXACT_OPS, POSITION_LIMIT, TENSOR_LIMIT
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.op_names import op_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import count, number, percent
from parity_lib.records.measured import OpKind, ReplayedRows
from parity_lib.records.verdicts import Verdict

_SHOWN = 12  # rows that are not folded; what is over a limit never is
_COLUMNS = (
    Column("op"),
    Column("pass"),
    Column("ops", numeric=True),
    Column("over a limit", numeric=True),
    Column("worst"),
    Column("of its limit", numeric=True),
    Column("NMSE", numeric=True),
    Column("worst position", numeric=True),
    Column("worst channel", numeric=True),
)


def op_kinds(verdict: Verdict) -> Fragment:
    """Return the kinds of ops of rung T3, those over a limit first, and which rows were replayed."""
    found = verdict.measured.ops
    if found is None or not found.kinds:
        rung = verdict.rung(Rung.T3)
        why = f" {rung.note}" if rung is not None and rung.note else ""
        return paragraph(f"Each op on llama.cpp's own inputs: {ABSENT}.{why}")
    ranked = sorted(found.kinds.items(), key=lambda item: -_share(item[1]))
    rows = [_row(name, values) for name, values in ranked]
    marks = ["" if _share(values) <= 1 else "bad" for _, values in ranked]
    limits = (
        f"Limits: NMSE {number(TENSOR_LIMIT)} over the tensor, {number(POSITION_LIMIT)} for the worst position, "
        f"{number(CHANNEL_LIMIT)} for the worst channel of a prefill; {', '.join(sorted(EXACT_OPS))} to the bit."
    )
    top = max(_SHOWN, sum(1 for mark in marks if mark))
    shown = paragraph(_scope(found.sequences)) + table(_COLUMNS, rows[:top], marks=marks[:top], css="ops")
    if rows[top:]:
        shown += details(f"{len(rows[top:])} more kinds of ops", table(_COLUMNS, rows[top:], css="ops"))
    return shown + note(limits)


def _share(kind: OpKind) -> float:
    return math.inf if math.isnan(kind.share) else kind.share


def _row(name: str, kind: OpKind) -> list[str]:
    _, phase, settings = name.rsplit(" ", 2)
    share = _share(kind)
    told = (kind.nmse, kind.position_nmse, kind.channel_nmse)
    return [
        kind.op,
        phase if settings == "strict" else f"{phase}, {settings}",
        count(kind.ops),
        count(kind.over),
        op_words(kind.site).replace("`", ""),
        "over" if share == math.inf else percent(share) if share <= 1 else f"{number(share)}x",
        *(number(value) if math.isfinite(value) else "not finite" for value in told),
    ]


def _scope(sequences: Sequence[ReplayedRows]) -> str:
    """Return which rows of which prompts were replayed, under which settings, and where the weights lay."""
    parts = []
    for one in sequences:
        decoded = sum(1 for rows in one.passes if rows == 1)
        lay = ", ".join(f"{count(n)} from {name}" for name, n in one.weights_in.items())
        parts.append(
            f"prompt {one.prompt_idx} ({one.settings}): {count(sum(one.passes) - decoded)} rows prefilled, "
            f"{count(decoded)} decoded{f'; weights of products: {lay}' if lay else ''}"
        )
    return f"Every node of llama.cpp's graph on its own inputs. {'. '.join(parts)}."
