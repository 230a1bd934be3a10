"""llama.cpp's self-spread on the page: the gate's ratios, each variant of it, and how far it is from the pinned one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from parity_lib.pages.kit.fragment import Fragment, heading, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, margin, number, percent, short
from parity_lib.records.row_numbers import Numbers, Spread, VariantNumbers

Rows = list[list[str]]
T = TypeVar("T")

_METRIC = {
    "rms": "rms over the rows' std, pooled",
    "p99": "99th percentile of |delta|, logits",
    "kl": "KL llama.cpp to the other, mean, nats",
    "pair_sigma": "spread of the difference of two top logits, logits",
}
_VARIANT = {
    "default": "defaults of this build",
    "flash_f16": "flash attention, F16 keys and values",
    "default_decode": "defaults, one token at a time",
    "other_build": "another CPU build",
    "twin": "the F32 twin: an exact product of the same weights",
}


def spread_section(spread: Spread) -> Fragment:
    """Return the gate of rung T5, the self-spread behind it, and how far that is from the pinned one."""
    return _ratios(spread) + _variants(spread) + _pinned(spread)


def _ratios(spread: Spread) -> Fragment:
    """Return the gate: burn's distance to the deployed file over llama.cpp's distance to itself."""
    rows: Rows = []
    marks: list[str] = []
    for name, values in _in_order(spread.ratios, _METRIC):
        marks.append("" if values.ratio <= values.limit else "bad")
        rows.append(
            [
                _METRIC.get(name, name),
                number(values.observed, 3),
                number(values.self_spread, 3),
                number(values.ratio, 3),
                number(values.limit, 3),
                margin(values.ratio, values.limit),
                number(values.twin_ratio, 3),
            ]
        )
    columns = (
        Column("metric"),
        Column("burn to llama.cpp", numeric=True),
        Column("llama.cpp to itself", numeric=True),
        Column("ratio", numeric=True),
        Column("limit of the ratio", numeric=True),
        Column("margin", numeric=True),
        Column("ratio of llama.cpp's own F32 twin", numeric=True),
    )
    source = f"Source of the limits: {short(spread.source)}." if spread.source else ""
    gate = table(columns, rows, marks=marks, css="native")
    return heading("Gate: distance over llama.cpp's self-spread") + gate + note(source)


def _variants(spread: Spread) -> Fragment:
    """Return each pair of runs of llama.cpp on the same file and tokens, and why one was not run."""
    rows = [_variant("pooled", spread.pooled, [])]
    rows += [_variant(name, values, spread.pooled_over) for name, values in _in_order(spread.variants, _VARIANT)]
    reasons = [f"{_name(name)}: {why}" for name, why in spread.absent.items()]
    left = f"Not run: {'; '.join(reasons)}." if reasons else ""
    columns = (
        Column("llama.cpp, on the same tokens"),
        Column("against"),
        Column("positions", numeric=True),
        Column("rms over the rows' std", numeric=True),
        Column("p99 of |delta|, logits", numeric=True),
        Column("KL to the other, mean, nats", numeric=True),
        Column("top-1 equal", numeric=True),
        Column("top-5 set equal", numeric=True),
        Column("role"),
    )
    return heading("llama.cpp against itself") + table(columns, rows, css="native") + note(left)


def _variant(name: str, values: Numbers, counted: Sequence[str]) -> list[str]:
    against, same = (values.against, values.same_as) if isinstance(values, VariantNumbers) else (NONE, "")
    word = f"bit-equal to {_name(same)}" if same else "in the pool" if name in counted else NONE
    return [
        "the pool: root mean square of its variants" if name == "pooled" else _name(name),
        {"strict": "strict settings", "default": "the defaults"}.get(against, against),
        count(values.positions),
        number(values.rms, 3),
        number(values.p99, 3),
        number(values.kl, 3),
        percent(values.top1_share),
        percent(values.top5_set_share),
        word,
    ]


def _pinned(spread: Spread) -> Fragment:
    """Return this run's self-spread beside the pinned one: has the reference's variation changed?"""
    pinned, machine = spread.pinned, spread.machine_class
    if pinned is None:
        return paragraph(f"No self-spread is pinned for {machine}: a change of its own variation cannot be seen here.")
    rows: Rows = []
    marks: list[str] = []
    for name, label in _METRIC.items():
        now, then = spread.pooled.metric(name), float(getattr(pinned, name))
        change = now / then - 1
        marks.append("" if abs(change) <= spread.near or spread.provisional else "bad")
        rows.append([label, number(now, 3), number(then, 3), f"{change:+.1%}"])
    columns = (
        Column("llama.cpp's self-spread"),
        Column("this run", numeric=True),
        Column("pinned", numeric=True),
        Column("change", numeric=True),
    )
    held = f"Pinned for {pinned.machine_class}; it has to stay within {spread.near:.0%}."
    if spread.provisional:
        held = f"Pinned for {pinned.machine_class}, not for {machine}: shown, not gated; the verdict is provisional."
    title = "Has llama.cpp's own variation changed since it was pinned?"
    return heading(title) + table(columns, rows, marks=marks, css="native") + note(held)


def _in_order(found: Mapping[str, T], known: Mapping[str, str]) -> list[tuple[str, T]]:
    """Return the items of an object in the order of ``known``, then the rest: a stored record has its keys sorted."""
    order = list(known)
    return [(n, found[n]) for n in sorted(found, key=lambda n: order.index(n) if n in order else len(order))]


def _name(variant: str) -> str:
    return _VARIANT.get(variant, variant.replace("_", " "))
