"""Rung T3 on the page: each kind of op, how many of them were replayed, and the worst of them against its limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity_lib.base.names import Rung
from parity_lib.numerics.op_error import CHANNEL_LIMIT, EXACT_OPS, POSITION_LIMIT, TENSOR_LIMIT
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.op_names import op_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number, percent
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
    found = verdict.literal.get("ops")
    kinds = found.get("kinds") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(kinds, Mapping) or not kinds:
        rung = verdict.rung(Rung.T3)
        why = f" {rung.note}" if rung is not None and rung.note else ""
        return paragraph(f"Each op on llama.cpp's own inputs: {ABSENT}.{why}")
    ranked = sorted(kinds.items(), key=lambda item: -_share(item[1]))
    rows = [_row(str(name), values) for name, values in ranked]
    marks = ["" if _share(values) <= 1 else "bad" for _, values in ranked]
    limits = (
        f"Limits: NMSE {number(TENSOR_LIMIT)} over the tensor, {number(POSITION_LIMIT)} for the worst position, "
        f"{number(CHANNEL_LIMIT)} for the worst channel of a prefill; {', '.join(sorted(EXACT_OPS))} to the bit."
    )
    top = max(_SHOWN, sum(1 for mark in marks if mark))
    shown = paragraph(_scope(found.get("sequences"))) + table(_COLUMNS, rows[:top], marks=marks[:top], css="ops")
    if rows[top:]:
        shown += details(f"{len(rows[top:])} more kinds of ops", table(_COLUMNS, rows[top:], css="ops"))
    return shown + note(limits)


def _share(values: Any) -> float:  # noqa: ANN401 - JSON
    share = values.get("share") if isinstance(values, Mapping) else None
    return float(share) if isinstance(share, int | float) else float("inf")  # {"nonfinite": "inf"} in a stored record


def _row(name: str, values: Any) -> list[str]:  # noqa: ANN401 - JSON
    _, phase, settings = name.rsplit(" ", 2)
    share = _share(values)
    told = [values.get(key) for key in ("nmse", "position_nmse", "channel_nmse")]
    return [
        str(values.get("op", NONE)),
        phase if settings == "strict" else f"{phase}, {settings}",
        count(values.get("ops", 0)),
        count(values.get("over", 0)),
        op_words(str(values["site"])).replace("`", "") if "site" in values else NONE,
        "over" if share == float("inf") else percent(share) if share <= 1 else f"{number(share)}x",
        *(number(value) if isinstance(value, int | float) else "not finite" for value in told),
    ]


def _scope(sequences: Any) -> str:  # noqa: ANN401 - JSON
    """Return which rows of which prompts were replayed, under which settings, and where the weights lay."""
    known = [one for one in sequences if isinstance(one, Mapping)] if isinstance(sequences, Sequence) else []
    parts = []
    for one in known:
        passes = list(one.get("passes", ()))
        decoded = sum(1 for rows in passes if rows == 1)
        lay = ", ".join(f"{count(n)} from {name}" for name, n in one.get("weights_in", {}).items())
        parts.append(
            f"prompt {one.get('prompt_idx')} ({one.get('settings')}): {count(sum(passes) - decoded)} rows prefilled, "
            f"{count(decoded)} decoded{f'; weights of products: {lay}' if lay else ''}"
        )
    return f"Every node of llama.cpp's graph on its own inputs. {'. '.join(parts)}."
