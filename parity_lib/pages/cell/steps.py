"""Where the time of a cell went, and whether llama.cpp computed its rows in this run or an earlier one did."""

from __future__ import annotations

from parity_lib.pages.kit.fragment import Fragment, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, duration
from parity_lib.records.verdicts import Verdict

_ORDER = (  # a stored record has its keys sorted
    "check_pins",
    "compare_tokens",
    "compare_weights",
    "capture_reference",
    "capture_twin",
    "derive_limits",
    "capture_spread",
    "capture_candidate",
    "replay_ops",
    "check_self",
    "prove_isa",
    "judge_f32_twin",
    "judge_deployed",
    "judge_engines",
)
_PART = {
    "reference": "generated text and its rows",
    "twin": "the F32 twin",
    "spread": "its own spread",
    "relations": "its own relations",
}
ABSENT = "not in this record"


def step_table(verdict: Verdict) -> Fragment:
    """Return the seconds of each step, in the order in which they ran, and where the reference's rows come from."""
    steps, source = step_seconds(verdict), cache_words(verdict)
    if not steps:
        return paragraph(f"Seconds of each step: {ABSENT}. {source}")
    whole = max(verdict.seconds, sum(steps.values()), 1e-9)
    rows = [[name, duration(seconds), f"{seconds / whole:.0%}"] for name, seconds in steps.items()]
    rows.append(["the whole cell", duration(verdict.seconds) if verdict.seconds else NONE, "100%"])
    columns = (Column("step"), Column("time", numeric=True), Column("share", numeric=True))
    return paragraph(source) + table(columns, rows, css="steps")


def step_seconds(verdict: Verdict) -> dict[str, float]:
    """Return step to seconds; empty where the record lacks them."""
    found = verdict.measured.seconds
    order = sorted(found, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    return {name.replace("_", " "): found[name] for name in order}


def cache_words(verdict: Verdict) -> str:
    """Return where llama.cpp's rows come from: computed in this run, kept from an earlier one, or both and equal."""
    found = verdict.measured.cache
    if found is None:
        return f"Whether llama.cpp's rows were computed in this run: {ABSENT}."
    parts = [f"{_PART.get(part, part)} {word}" for part, word in found.parts.items()]
    return " ".join([f"llama.cpp's rows: {'; '.join(parts) or ABSENT}.", *map(_sentence, found.notes)])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."
