"""A nightly run on one page: headline, gaps with their reasons, traces, lines, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from parity_lib.base.names import Outcome
from parity_lib.pages.cell.steps import step_seconds
from parity_lib.pages.kit.box import box
from parity_lib.pages.kit.fragment import EMPTY, Fragment, paragraph
from parity_lib.pages.kit.outcomes import badge, severity, style_of
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, code_markup, count, duration, short, size
from parity_lib.pages.night.find import cell_verdicts, night_folder
from parity_lib.pages.night.matrix import brief, label_of, ratio_of, style_of_cell, usual, word_of
from parity_lib.records.night_record import CellRecord, Night
from parity_lib.records.verdicts import Verdict

_FILES = {"junit.xml": "JUnit", "divergences.jsonl": "divergences.jsonl", "night.log": "log"}
NO_NIGHT = "No nightly run yet. Next: make nightly"


def night_header(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return the first lines of the page: outcome, counts, gaps, red control, what to do next."""
    if night is None:
        return box(style_of(Outcome.REPORTED), NO_NIGHT, tab="No nightly run")
    day = night.started_at[:10]
    sentences = [_counts(night), *_gaps(night), _controls(night), _next(night)]
    marks = [night.headline, f"plan {night.plan}", night.machine_class, f"exit status {night.exit_status}"]
    marks = [*_breaks(night), *marks[:1], *_caught(night), *marks[1:]]
    start = f"{night.started_at[:16].replace('T', ' ')} UTC"
    return box(
        style_of(night.outcome),
        f"Nightly run {day}: {night.outcome}",
        name=night.title,
        about=f"{start}, {duration(night.seconds)} on {night.host}",
        links={**_pages(night), **_files(night, run_dir)},
        marks=[(mark, "") for mark in marks],
        sentences=[sentence for sentence in sentences if sentence],
        tab=f"{night.outcome} · nightly run {day}",
    )


def _caught(night: Night) -> list[str]:
    """Return the mark with the number of red controls caught; no mark for a run without red controls."""
    controls = [record for record in night.cells if record.control]
    return [f"red control {sum(r.good for r in controls)}/{len(controls)} caught"] if controls else []


def _breaks(night: Night) -> list[str]:
    """Return the marks of a run that was interrupted or resumed."""
    marks = ["interrupted"] if night.interrupted else []
    if night.resumed:
        kept = sum(record.kept for record in night.cells)
        at = ", ".join(time[11:16] for time in night.resumed)
        marks.append(f"resumed at {at} UTC, {count(kept)} cell{'' if kept == 1 else 's'} kept from before")
    return marks


def gap_table(night: Night | None) -> Fragment:
    """Return every cell and page that was not compared, or did not come out as planned, each with its reasons."""
    if night is None:
        return EMPTY
    records = _worst([record for record in night.cells if record.causes or not record.good])
    home = usual(night)
    rows = [[label_of(r, home), badge(style_of_cell(r), word_of(r)), short(_why(r))] for r in records]
    pages = [page for page in night.pages if page.causes]
    rows += [[page.name, badge(style_of(page.outcome)), "; ".join(page.causes)] for page in pages]
    if not rows:
        return paragraph("Every cell of the plan was compared and came out as planned.")
    marks = [*(style_of_cell(r).css for r in records), *(style_of(page.outcome).css for page in pages)]
    return table((Column("cell"), Column("outcome"), Column("why")), rows, marks=marks, css="gaps")


def _why(record: CellRecord) -> str:
    parts = list(record.causes)
    if record.lowest_broken:
        parts.insert(0, f"lowest broken rung {record.lowest_broken}{ratio_of(record)}; its lines are below")
    return "; ".join(parts) or record.reason or NONE


def night_traces(night: Night | None) -> Fragment:
    """Return what the traces of the first divergences say, each with its page."""
    traced = [record for record in night.cells if record.traced] if night is not None else []
    if not traced or night is None:
        return paragraph("No first divergence was traced.")
    columns = (Column("cell"), Column("what the trace of its first divergence shows"))
    rows = []
    for record in traced:
        label: str = label_of(record, usual(night))
        if record.trace:
            label = Markup('<a href="{}">{}</a>').format(record.trace, label)
        rows.append([label, code_markup(record.traced)])
    return table(columns, rows, css="traces")


def cost_table(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return time, longest step and peak memory of each cell, longest first, and what the run cost."""
    if night is None:
        return EMPTY
    ran = sorted((record for record in night.cells if record.seconds > 0), key=lambda r: -r.seconds)
    verdicts, total = cell_verdicts(night, run_dir), max(night.seconds, 1e-9)
    rows = [
        [
            label_of(record, usual(night)) + (" · kept from before" if record.kept else ""),
            duration(record.seconds),
            f"{record.seconds / total:.0%}",
            _longest(verdicts.get(record.key)),
            size(record.peak_rss_bytes) if record.peak_rss_bytes else NONE,
        ]
        for record in ran
    ]
    # Cells side by side take more seconds together than the run did.
    rest = night.seconds - sum(record.seconds for record in ran)
    if rest >= 0:
        rows.append(["models, pages, start-up", duration(rest), f"{rest / total:.0%}", NONE, NONE])
    peak = max((record.peak_rss_bytes for record in ran), default=0)
    rows.append(["the whole run", duration(night.seconds), "100%", NONE, size(peak) if peak else NONE])
    columns = (
        Column("cell"),
        Column("time", numeric=True),
        Column("share of the run", numeric=True),
        Column("longest step"),
        Column("peak memory of an engine", numeric=True),
    )
    return table(columns, rows, css="costs")


def _longest(verdict: Verdict | None) -> str:
    steps = step_seconds(verdict) if verdict is not None else {}
    if not steps:
        return NONE
    name = max(steps, key=steps.__getitem__)
    return f"{name}, {duration(steps[name])}"


def night_lines(night: Night | None) -> Sequence[str]:
    """Return the greppable lines of the whole night, in the order of the plan."""
    return [] if night is None else [line for record in night.cells for line in record.lines]


def _worst(records: Sequence[CellRecord]) -> list[CellRecord]:
    return sorted(records, key=lambda r: (r.good, severity(r.outcome)))


def _counts(night: Night) -> str:
    cells = [record for record in night.cells if not record.control]
    if not cells:
        return "No cell ran."
    parts = []
    for outcome in sorted({record.outcome for record in cells}, key=severity):
        own = [record for record in cells if record.outcome is outcome]
        expected = sum(record.expect == "diverged" for record in own if record.outcome is Outcome.DIVERGED)
        word = "not run" if outcome is Outcome.NOT_RUN and len(own) > 1 else style_of(outcome).word
        parts.append(f"{count(len(own))} {word}" + (f" ({expected} as expected)" if expected else ""))
    return f"{count(len(cells))} cell{'' if len(cells) == 1 else 's'}: {', '.join(parts)}."


def _gaps(night: Night) -> list[str]:
    """Return one sentence a kind of gap, so that the headline says what was not compared."""
    sentences = []
    for outcome, word in ((Outcome.NOT_RUN, "Not run"), (Outcome.INCOMPLETE, "Incomplete")):
        records = [r for r in night.cells if r.outcome is outcome]
        if records:
            names = [f"{r.cell.model} {r.cell.quant}" for r in records[:4]]
            more = f" and {len(records) - 4} more" if len(records) > 4 else ""
            causes = {brief(r.causes[0]) for r in records if r.causes}
            cause = f" ({causes.pop()})" if len(causes) == 1 else " (reasons below)" if causes else ""
            sentences.append(f"{word}: {', '.join(names)}{more}{cause}.")
    return sentences


def _controls(night: Night) -> str:
    controls = [record for record in night.cells if record.control]
    caught = sum(record.good for record in controls)
    return f"Red control: {caught} of {len(controls)} caught." if controls else "No red control in this plan."


def _next(night: Night) -> str:
    if night.outcome is Outcome.PARITY:
        return "Next: no action needed."
    if night.outcome is Outcome.INVALID:
        return (
            "Next: a seeded fault was not caught, so no PARITY of this run counts; read the red control's page first."
        )
    broken = _worst([record for record in night.cells if not record.good])
    if not broken:
        return "Next: read the pages listed below that did not finish."
    first = broken[0]
    if not first.html:
        return f"Next: {first.cell}, for the reason below."
    return Markup('Next: read the page of <a href="{}">{}</a>.').format(first.html, first.cell)


def _pages(night: Night) -> dict[str, str]:
    shown = [page for page in night.pages if page.html and page.html != "index.html"]
    return {_page_name(page.name): page.html for page in shown}


def _files(night: Night, run_dir: str | Path) -> dict[str, str]:
    """Return links to what programs read, where it lies beside the page."""
    folder = night_folder(night, run_dir)
    return {title: name for name, title in _FILES.items() if (folder / name).is_file()}


def _page_name(name: str) -> str:
    """Return ``00_machine_and_pins`` as ``machine and pins``."""
    return name.lstrip("0123456789_").replace("_", " ")
