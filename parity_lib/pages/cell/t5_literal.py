"""Rung T5 in numbers: what the deployed file does, literally, beside what a sound run of that file is known to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.pages.kit.fragment import Fragment, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, number, percent
from parity_lib.records.row_numbers import FirstFlip, PairNumbers
from parity_lib.records.verdicts import Verdict

SCHEMA = "parity/expectations/1"
_PAIRS = ("exact", "self")
_NUMBERS = ("rms_over_std", "max_abs", "top1_share", "top5_set_share", "kl_mean", "kl_p99")

# Label, path in the verdict's literal numbers, key of an expectation, how it is written.
_ROWS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("top-1 equal", "top1_share", "top1_share", percent),
    ("top-5 set equal", "top5_set_share", "top5_set_share", percent),
    ("rms over std, pooled", "rms_over_std", "rms_over_std", number),
    ("largest |delta| of any logit", "max_abs", "max_abs", number),
    ("|delta| at delta_id, p50, logits", "delta.p50", "", number),
    ("|delta| at delta_id, p99, logits", "delta.p99", "", number),
    ("KL llama.cpp to burn, mean, nats", "kl_ref_cand.mean", "kl_mean", number),
    ("KL llama.cpp to burn, p99, nats", "kl_ref_cand.p99", "kl_p99", number),
    ("KL burn to llama.cpp, mean, nats", "kl_cand_ref.mean", "", number),
    ("JSD, mean, nats", "jsd.mean", "", number),
)
_COLUMNS = (
    Column("number"),
    Column("this run, generated tokens", numeric=True),
    Column("this run, all positions", numeric=True),
    Column("expected: exact product", numeric=True),
    Column("llama.cpp against itself", numeric=True),
)
_UNKNOWN = 2  # columns that stand only where something is expected


def load_expectations(path: Path | None = None) -> tuple[Mapping[tuple[str, str, str], Mapping[str, float]], str]:
    """Return (model, quant, pair) to its numbers, and where they come from; pair is ``exact`` or ``self``.

    Raises:
        FixtureError: unreadable, another version, an unknown or missing key.
    """
    table_, _ = read_toml(fixture_path("expectations.toml") if path is None else path)
    table_.schema(SCHEMA)
    source = table_.text("source")
    found = dict(_expectation(entry) for entry in table_.tables("expectation"))
    table_.done()
    return found, source


def literal_table(verdict: Verdict) -> Fragment:
    """Return the literal numbers of a verdict; what is not known is left open, never guessed."""
    native = verdict.measured.native
    if native is None or native.all is None:
        return paragraph("No literal numbers: the deployed file was not compared.")
    known, source = load_expectations()
    own = [known.get((verdict.cell.model, verdict.cell.quant, pair), {}) for pair in _PAIRS]
    rows = [["positions", *map(_positions, (native.generated, native.all)), NONE, NONE]]
    for label, place, key, write in _ROWS:
        measured = [_number(numbers, place, write) for numbers in (native.generated, native.all)]
        rows.append([label, *measured, *(write(numbers[key]) if key in numbers else NONE for numbers in own)])
    columns: tuple[Column, ...] = _COLUMNS
    says = f"Expected: {source}."
    if not any(own):
        says = "No expectation is recorded for this model and quant."
        columns, rows = columns[:-_UNKNOWN], [row[:-_UNKNOWN] for row in rows]
    says += " Reported, not gated: llama.cpp does not agree with itself better than this."
    return table(columns, rows, css="literal") + note(says) + note(_flips(native.first_top1_flips))


def _flips(flips: Sequence[FirstFlip]) -> str:
    """Return where free-running greedy texts would first differ, one clause for each prompt."""
    if not flips:
        return "Free-running greedy texts would be equal: every generated token has the same top-1."
    places = ", ".join(f"prompt {flip.prompt_idx} at token {flip.token_idx}" for flip in flips)
    return f"Free-running greedy texts would first differ at: {places}."


def _expectation(entry: Table) -> tuple[tuple[str, str, str], Mapping[str, float]]:
    key = entry.text("model"), entry.text("quant"), entry.one_of("pair", _PAIRS)
    numbers = {name: entry.number(name) for name in _NUMBERS}
    entry.done()
    return key, numbers


def _positions(numbers: PairNumbers | None) -> str:
    return NONE if numbers is None else count(numbers.positions)


def _number(numbers: PairNumbers | None, place: str, write: Callable[[float], str]) -> str:
    """Return one measured number as text; NONE where there is no position."""
    return NONE if numbers is None else write(attrgetter(place)(numbers))
