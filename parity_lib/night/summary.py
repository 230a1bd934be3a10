"""The nightly run in a few lines: headline, last line, and a summary for the CI's job page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity_lib.base.files import write_atomic
from parity_lib.base.names import Outcome
from parity_lib.night.plan import Plan
from parity_lib.records.night_record import CellRecord, Night
from parity_lib.records.pins import PRODUCTION, Pins
from parity_lib.records.verdicts import margin_words

FILE_NAME = "summary.md"
MAX_BYTES = 900_000  # a step summary over 1 MiB is not shown at all
LINES_SHOWN = 100
_ORDER = (Outcome.INVALID, Outcome.DIVERGED, Outcome.INCOMPLETE, Outcome.NOT_RUN, Outcome.PARITY)


def headline(plan: Plan, records: Sequence[CellRecord], pins: Pins) -> str:
    """Return the headline: the plan's words, which stack ran, and which production models ran."""
    compared = [r for r in records if not r.control and r.outcome in (Outcome.PARITY, Outcome.DIVERGED)]
    stacks = sorted({record.cell.stack for record in compared})
    production = {(pin.id, pin.quant) for pin in pins.models if pin.role == PRODUCTION}
    ran = sorted({(r.cell.model, r.cell.quant) for r in compared} & production)
    parts = [plan.headline, f"ran on stack {', '.join(stacks)}" if stacks else "no cell was compared"]
    names = ", ".join(f"{model} {quant}" for model, quant in ran)
    wanted = {(cell.model, cell.quant) for cell in plan.cells if not cell.control} & production
    if not ran:
        parts.append("production models did not run")
    elif len(ran) < len(wanted):
        parts.append(f"of the production models only {names} ran")
    else:
        parts.append(f"production models ran: {names}")
    return "; ".join(parts)


def last_line(night: Night) -> str:
    """Return outcome, counts, controls, time and exit status in one line."""
    counts = ", ".join(f"{n} {word.lower()}{_expected(night, word)}" for word, n in sorted(night.counts().items()))
    kept = sum(record.kept for record in night.cells)
    resumed = f"; resumed, {kept} cells kept" if night.resumed else ""
    interrupted = "; interrupted" if night.interrupted else ""
    return (
        f"{night.outcome}: {counts}{_controls(night)}{resumed}{interrupted}; "
        f"{night.seconds:.0f} s; exit status {night.exit_status}"
    )


def _expected(night: Night, word: str) -> str:
    """Return how many of the diverged cells were expected to."""
    known = sum(r.good for r in night.cells if r.outcome is Outcome.DIVERGED and not r.control)
    return f" ({known} as expected)" if word == Outcome.DIVERGED.value and known else ""


def _controls(night: Night) -> str:
    controls = [record for record in night.cells if record.control]
    caught = sum(record.good for record in controls)
    return f"; red control {caught}/{len(controls)} caught" if controls else ""


def write_summary(night: Night, folder: Path) -> Path:
    """Write ``summary.md`` (GitHub's Markdown, under 1 MiB), whole or not at all.

    Raises:
        RecordError: it cannot be written.
    """
    path = folder / FILE_NAME
    write_atomic(path, _fitting(_text(night), MAX_BYTES))
    return path


def _text(night: Night) -> str:
    rows = ["| cell | outcome | margin | time | why |", "| --- | --- | ---: | ---: | --- |"]
    worst = sorted(night.cells, key=lambda r: (r.good, _ORDER.index(r.outcome)))
    for record in worst:
        word = "control caught" if record.control and record.good else record.outcome.value
        word += ", as expected" if record.outcome is Outcome.DIVERGED and record.good and not record.control else ""
        margin = "" if record.worst_margin is None else margin_words(record.worst_margin)
        name = f"{record.cell}{' · ' + record.fault if record.fault else ''}"
        why = "; ".join(
            [*([f"lowest broken rung {record.lowest_broken}"] if record.lowest_broken else []), *record.causes]
        )
        rows.append(f"| {_cell(name)} | {word} | {margin} | {record.seconds:.0f} s | {_cell(why)[:500]} |")
    lines = [line for record in worst if not record.good for line in record.lines]
    parts = [f"## {night.title}", "", f"**{last_line(night)}**", "", _cell(night.headline), "", *rows, ""]
    if lines:
        more = [f"... and {len(lines) - LINES_SHOWN} more in divergences.jsonl"] if len(lines) > LINES_SHOWN else []
        parts += ["```", *(line.replace("```", "` ` `") for line in lines[:LINES_SHOWN]), *more, "```", ""]
    parts += [f"INCOMPLETE page {p.name}: {_cell('; '.join(p.causes))}\n" for p in night.pages if p.causes]
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Return a text for one square of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fitting(text: str, limit: int) -> bytes:
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data
    end = b"\n```\n\ncut short; the whole record is night.json\n"
    return data[: limit - len(end)].decode("utf-8", "ignore").encode() + end
