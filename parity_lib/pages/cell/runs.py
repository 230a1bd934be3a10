"""Who ran: the run information of all sides next to each other, what differs from the reference in bold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from parity_lib.base.json_text import encode
from parity_lib.pages.kit.fragment import Fragment, details, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, duration, short, size
from parity_lib.records.runs import Run, RunInfo
from parity_lib.records.verdicts import Verdict

_ORDER = ("reference", "reference-twin", "candidate")
_NESTED = ("build", "settings", "isa_evidence")
_ALWAYS = ("started_at", "seconds", "peak_rss_bytes")  # differ in every pair of runs: bold would not inform
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
        return paragraph("No engine ran: the cell ended before one was started.")
    names = ["engine", *Run.__struct_fields__]
    shown = _compare(runs, [[_label(name), *(_value(run, name) for run in runs.values())] for name in names])
    for name in _NESTED:
        flat = {side: _flat(encode(getattr(run, name, {}))) for side, run in runs.items()}
        keys = list(dict.fromkeys(key for values in flat.values() for key in values))
        if keys:
            rows = [[key, *(values.get(key, NONE) for values in flat.values())] for key in keys]
            shown += details(f"{_label(name)}: {len(keys)} entries", _compare(runs, rows))
    return shown


def _compare(runs: Mapping[str, RunInfo], rows: list[list[str]]) -> Fragment:
    """Return the rows as a table, with bold differences, but where every run differs."""
    columns = [Column("what"), *(Column(f"{side} ({run.engine})") for side, run in runs.items())]
    plainly = [_label(name) for name in _ALWAYS]
    marked = [
        [what, first, *(value if what in plainly else _marked(first, value) for value in rest)]
        for what, first, *rest in rows
    ]
    return table(columns, marked, css="runs")


def _marked(reference: str, value: str) -> str:
    # The engines write F32 and f32 for the same thing.
    return value if value.casefold() == reference.casefold() else Markup("<b>{}</b>").format(value)


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
