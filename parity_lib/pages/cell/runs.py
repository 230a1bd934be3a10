"""Who ran: the run information of all sides next to each other, what differs from the reference in bold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity_lib.pages.kit.fragment import Column, Fragment, details, plain_table, table
from parity_lib.pages.kit.text import NONE, duration, escape, short, size
from parity_lib.records.traces import RunInfo
from parity_lib.records.verdicts import Verdict

_ORDER = ("reference", "reference-twin", "candidate")
_NESTED = ("build", "settings", "isa_evidence")
_ALWAYS = ("started_at", "seconds", "peak_rss_bytes")  # differ in every pair of runs: bold would say nothing
_SHORTENED = ("commit", "model_sha256", "lock_sha256")
_UNITS = {"seconds": lambda value: duration(float(value)), "peak_rss_bytes": lambda value: size(int(value))}
_LABELS = {
    "peak_rss_bytes": "peak memory",
    "seconds": "time",
    "n_threads": "threads",
    "isa_requested": "ISA requested",
    "isa_observed": "ISA observed",
    "isa_evidence": "ISA evidence",
    "kv_type": "KV type",
    "model_path": "model file",
    "model_sha256": "model SHA-256",
    "lock_sha256": "lock SHA-256",
}


def run_table(verdict: Verdict) -> Fragment:
    """Return the runs of a verdict side by side; the first column is the reference."""
    runs = dict(sorted(verdict.runs.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else 9))
    if not runs:
        text = "No engine ran: the cell ended before one was started."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    names = [name for name in RunInfo.__struct_fields__ if name not in _NESTED]
    values = [[_label(name), *(_value(run, name) for run in runs.values())] for name in names]
    html, plain = _compare(runs, values, [name in _ALWAYS for name in names])
    for name in _NESTED:
        flat = {side: _flat(getattr(run, name)) for side, run in runs.items()}
        keys = list(dict.fromkeys(key for values in flat.values() for key in values))
        if keys:
            rows = [[key, *(values.get(key, NONE) for values in flat.values())] for key in keys]
            html += details(f"{_label(name)}: {len(keys)} entries", _compare(runs, rows, [False] * len(rows))[0])
    return Fragment(html=html, plain=plain)


def _compare(runs: Mapping[str, RunInfo], rows: list[list[str]], plainly: Sequence[bool]) -> tuple[str, str]:
    """Return the rows as markup, with bold differences but where they say nothing, and as text."""
    heads = [f"{side} ({run.engine})" for side, run in runs.items()]
    columns = [Column("what"), *(Column(head, markup=True) for head in heads)]
    marked = [
        [row[0], escape(row[1]), *(escape(value) if plain else _marked(row[1], value) for value in row[2:])]
        for row, plain in zip(rows, plainly, strict=True)
    ]
    return table(columns, marked, css="runs"), plain_table(columns, rows)


def _marked(reference: str, value: str) -> str:
    # The engines write F32 and f32 for the same thing.
    return escape(value) if value.casefold() == reference.casefold() else f"<b>{escape(value)}</b>"


def _value(run: RunInfo, name: str) -> str:
    value = getattr(run, name)
    if name in _UNITS:
        return _UNITS[name](value)
    if value is None or value == "":
        return NONE
    return short(value) if name in _SHORTENED else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested values as ``key.inner`` to text, lists joined."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat[prefix + key] = " ".join(map(str, value)) or NONE
        else:
            flat[prefix + key] = NONE if value is None or value == "" else str(value)
    return flat


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " "))
