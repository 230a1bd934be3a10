"""llama.cpp's own spread on the page: the gate's ratios, each variant of it, and whether it is still the pinned one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, heading, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, margin, number, percent, short

Json = Any  # a value of ``verdict.literal``, which an older or newer record may lack or shape otherwise
Rows = list[list[str]]

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


def spread_section(spread: Mapping[str, Json]) -> Fragment:
    """Return the gate of rung T5, what it stands on, and whether that is what it was.

    Args:
        spread: ``verdict.literal["spread"]``.
    """
    return _ratios(spread) + _variants(spread) + _pinned(spread)


def _ratios(spread: Mapping[str, Json]) -> Fragment:
    """Return the gate: burn's distance to the deployed file over llama.cpp's distance to itself."""
    found = spread.get("ratios")
    rows: Rows = []
    marks: list[str] = []
    for name, values in _in_order(found, _METRIC):
        get = reader(values)
        ratio, limit = get("ratio"), get("limit")
        over = ratio is not None and limit is not None and not ratio <= limit
        marks.append("bad" if over else "")
        rows.append(
            [
                _METRIC.get(name, name),
                number(get("observed"), 3),
                number(get("self_spread"), 3),
                number(ratio, 3),
                number(limit, 3),
                margin(ratio, limit),
                number(get("twin_ratio"), 3),
            ]
        )
    if not rows:
        return paragraph(f"The ratios to llama.cpp's own spread: {ABSENT}.")
    columns = (
        Column("gate"),
        Column("burn to llama.cpp", numeric=True),
        Column("llama.cpp to itself", numeric=True),
        Column("ratio", numeric=True),
        Column("limit of the ratio", numeric=True),
        Column("margin", numeric=True),
        Column("ratio of llama.cpp's own F32 twin", numeric=True),
    )
    source = f"Limits from {short(str(spread['source']))}." if spread.get("source") else ""
    gate = table(columns, rows, marks=marks, css="native")
    return heading("Gate: distance over llama.cpp's own spread") + gate + note(source)


def _variants(spread: Mapping[str, Json]) -> Fragment:
    """Return each pair of runs of llama.cpp on the same file and tokens, and why one was not run."""
    found, pooled = spread.get("variants"), spread.get("pooled_over")
    counted = [str(name) for name in pooled] if isinstance(pooled, Sequence) else []
    rows = [_variant(name, values, counted) for name, values in _in_order(found, _VARIANT)]
    if isinstance(spread.get("pooled"), Mapping):
        rows.insert(0, _variant("pooled", spread["pooled"], []))
    if not rows:
        return paragraph(f"llama.cpp's own variants: {ABSENT}.")
    absent = spread.get("absent")
    reasons = [f"{_name(str(n))}: {why}" for n, why in absent.items()] if isinstance(absent, Mapping) else []
    left = f"Not run: {'; '.join(reasons)}." if reasons else ""
    columns = (
        Column("llama.cpp, on the same tokens"),
        Column("against"),
        Column("positions", numeric=True),
        Column("rms over std", numeric=True),
        Column("p99 of |delta|, logits", numeric=True),
        Column("KL, mean, nats", numeric=True),
        Column("top-1 equal", numeric=True),
        Column("top-5 set equal", numeric=True),
        Column("counts"),
    )
    return heading("llama.cpp against itself") + table(columns, rows, css="native") + note(left)


def _variant(name: str, values: Json, counted: Sequence[str]) -> list[str]:
    get = reader(values)
    same = values.get("same_as") if isinstance(values, Mapping) else ""
    word = f"bit-equal to {_name(str(same))}" if same else "in the pool" if name in counted else NONE
    positions, against = get("positions"), values.get("against") if isinstance(values, Mapping) else None
    return [
        "all in the pool, root mean square" if name == "pooled" else _name(name),
        {"strict": "strict settings", "default": "the defaults"}.get(str(against), str(against or NONE)),
        NONE if positions is None else count(int(positions)),
        number(get("rms"), 3),
        number(get("p99"), 3),
        number(get("kl"), 3),
        percent(get("top1_share")),
        percent(get("top5_set_share")),
        word,
    ]


def _pinned(spread: Mapping[str, Json]) -> Fragment:
    """Return tonight's self-spread beside the pinned one: is the reference still what it was?"""
    pinned, tonight, near = spread.get("pinned"), reader(spread.get("pooled")), spread.get("near")
    machine = str(spread.get("machine_class", "this machine class"))
    if not isinstance(pinned, Mapping):
        return paragraph(f"No self-spread is pinned for {machine}: nothing earlier holds llama.cpp to what it was.")
    rows: Rows = []
    marks: list[str] = []
    for name, value in _in_order(pinned, _METRIC):
        now = tonight(name)
        if not isinstance(value, int | float) or now is None:
            continue
        change = now / value - 1 if value else float("inf")
        off = isinstance(near, int | float) and not abs(change) <= near and not spread.get("provisional")
        marks.append("bad" if off else "")
        rows.append([_METRIC.get(name, name), number(now, 3), number(value, 3), f"{change:+.1%}"])
    columns = (
        Column("llama.cpp's own spread"),
        Column("tonight", numeric=True),
        Column("pinned", numeric=True),
        Column("change", numeric=True),
    )
    allowed = f"within {near:.0%}" if isinstance(near, int | float) else "near"
    where = str(pinned.get("machine_class", "an unnamed machine class"))
    held = f"Pinned for {where}; it has to stay {allowed}."
    if spread.get("provisional"):
        held = f"Pinned for {where}, not for {machine}: shown, not held to it; the verdict is provisional."
    title = "Has llama.cpp's own variation changed since it was pinned?"
    return heading(title) + table(columns, rows, marks=marks, css="native") + note(held)


def _in_order(found: Json, known: Mapping[str, str]) -> list[tuple[str, Json]]:
    """Return the items of an object in the order of ``known``, then the rest: a stored record has its keys sorted."""
    names, order = ([str(name) for name in found] if isinstance(found, Mapping) else []), list(known)
    return [(name, found[name]) for name in sorted(names, key=lambda n: order.index(n) if n in order else len(order))]


def _name(variant: str) -> str:
    return _VARIANT.get(variant, variant.replace("_", " "))


def reader(values: Json) -> Callable[[str], float | None]:
    """Return a function that gives the number at a key, or None where there is none."""

    def get(key: str) -> float | None:
        value = values.get(key) if isinstance(values, Mapping) else None
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    return get
