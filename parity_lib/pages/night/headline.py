"""The night on one page: headline, the matrix model x quant, gaps with their reasons, red controls, time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity_lib.base.names import Outcome
from parity_lib.pages.cell.steps import step_seconds
from parity_lib.pages.kit.fragment import HEADLINE, Column, Fragment, plain_table, table
from parity_lib.pages.kit.outcomes import badge, look, severity
from parity_lib.pages.kit.text import NONE, code_markup, count, duration, escape, short, size
from parity_lib.pages.night.find import cell_verdicts, night_folder
from parity_lib.pages.night.matrix import brief, label_of, look_of, ratio_of, usual, word_of
from parity_lib.records.night_record import CellRecord, Night
from parity_lib.records.verdicts import Verdict

_FILES = {"junit.xml": "JUnit", "divergences.jsonl": "divergences.jsonl", "night.log": "log"}
NO_NIGHT = "There is no night yet. Next: make nightly"


def night_header(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return the first lines of the page: outcome, counts, gaps, red control, what to do next."""
    if night is None:
        html = f'<section class="verdict plain"><p class="word">{NO_NIGHT}</p></section>'
        return Fragment(html=html, plain=NO_NIGHT, role=HEADLINE, title="No night")
    shown, day = look(night.outcome), night.started_at[:10]
    title = f"Night {day}: {night.outcome}"
    sentences = [_counts(night), *_gaps(night), _controls(night), _next(night)]
    marks = [night.headline, f"plan {night.plan}", night.machine_class, f"exit status {night.exit_status}"]
    marks = [*_breaks(night), *marks[:1], *_caught(night), *marks[1:]]
    chips = "".join(f"<li>{escape(mark)}</li>" for mark in marks)
    start = f"{night.started_at[:16].replace('T', ' ')} UTC"
    html = (
        f'<p class="cell-id"><strong>{escape(night.title)}</strong> <span>{start}, {duration(night.seconds)} on '
        f"{escape(night.host)}</span>{_pages(night)}{_files(night, run_dir)}</p>"
        f'<section class="verdict {shown.css}" aria-label="verdict"><p class="word">'
        f'<span class="sign" aria-hidden="true">{shown.sign}</span> {escape(title)}</p><ul class="marks">{chips}</ul>'
        f"{''.join(f'<p>{_linked(sentence, night)}</p>' for sentence in sentences if sentence)}</section>"
    )
    plain = "\n".join([title, " · ".join(marks), *filter(None, sentences)])
    return Fragment(html=html, plain=plain, role=HEADLINE, title=f"{night.outcome} · night {day}")


def _caught(night: Night) -> list[str]:
    """Return the mark that says how many red controls were caught; a night without one says nothing here."""
    controls = [record for record in night.cells if record.control]
    return [f"red control {sum(r.good for r in controls)}/{len(controls)} caught"] if controls else []


def _breaks(night: Night) -> list[str]:
    """Return whether the night was broken off or gone on with: a reader must know that it is not of one piece."""
    marks = ["interrupted"] if night.interrupted else []
    if night.resumed:
        kept = sum(record.kept for record in night.cells)
        at = ", ".join(time[11:16] for time in night.resumed)
        marks.append(f"resumed at {at} UTC, {count(kept)} cells kept from before")
    return marks


def gap_table(night: Night | None) -> Fragment:
    """Return every cell and page that was not compared, or did not come out as planned, each with its reasons."""
    if night is None:
        return Fragment(html="", plain="")
    records = _worst([record for record in night.cells if record.causes or not record.good])
    home = usual(night)
    rows = [[label_of(r, home), badge(look_of(r), word_of(r)), escape(short(_why(r)))] for r in records]
    pages = [page for page in night.pages if page.causes]
    rows += [[page.name, badge(look(page.outcome)), escape("; ".join(page.causes))] for page in pages]
    if not rows:
        text = "No gap: every cell of the plan was compared and came out as planned."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    columns = (Column("cell"), Column("outcome", markup=True), Column("why", markup=True))
    css = [*(look_of(r).css for r in records), *(look(page.outcome).css for page in pages)]
    html = table(columns, rows, row_attributes=[f'class="{word}"' for word in css], css="gaps")
    texts = [[label_of(r, home), word_of(r), _why(r)] for r in records]
    texts += [[page.name, str(page.outcome), "; ".join(page.causes)] for page in pages]
    return Fragment(html=html, plain=plain_table(columns, texts))


def _why(record: CellRecord) -> str:
    parts = list(record.causes)
    if record.lowest_broken:
        parts.insert(0, f"lowest broken rung {record.lowest_broken}{ratio_of(record)}; the lines stand below")
    return "; ".join(parts) or record.reason or NONE


def night_traces(night: Night | None) -> Fragment:
    """Return what the traces of the first divergences say, each with its page."""
    traced = [record for record in night.cells if record.traced] if night is not None else []
    if not traced or night is None:
        text = "No cell diverged without being asked to."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    columns = (Column("cell", markup=True), Column("what the trace of its first divergence says", markup=True))
    rows = []
    for record in traced:
        label = escape(label_of(record, usual(night)))
        rows.append(
            [f'<a href="{escape(record.trace)}">{label}</a>' if record.trace else label, code_markup(record.traced)]
        )
    texts = [[label_of(record, usual(night)), f"{record.traced} {record.trace}".strip()] for record in traced]
    return Fragment(html=table(columns, rows, css="traces"), plain=plain_table(columns, texts))


def cost_table(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return time, longest step and peak memory of each cell, longest first, and what the night cost."""
    if night is None:
        return Fragment(html="", plain="")
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
    # Cells side by side take more seconds together than the night did.
    rest = night.seconds - sum(record.seconds for record in ran)
    if rest >= 0:
        rows.append(["models, pages, start-up", duration(rest), f"{rest / total:.0%}", NONE, NONE])
    peak = max((record.peak_rss_bytes for record in ran), default=0)
    rows.append(["the whole night", duration(night.seconds), "100%", NONE, size(peak) if peak else NONE])
    columns = (
        Column("cell"),
        Column("time", numeric=True),
        Column("share of the night", numeric=True),
        Column("longest step"),
        Column("peak memory of an engine", numeric=True),
    )
    return Fragment(html=table(columns, rows, css="costs"), plain=plain_table(columns, rows))


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
        word = "not run" if outcome is Outcome.NOT_RUN and len(own) > 1 else look(outcome).word
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
        return "Next: nothing to do."
    if night.outcome is Outcome.INVALID:
        return "Next: a seeded fault was not caught, so no green of this night counts; read the control's page first."
    broken = _worst([record for record in night.cells if not record.good])
    if not broken:
        return "Next: the pages below that did not run to their end."
    first = broken[0]
    return f"Next: read {first.cell}" + (f", {first.html}." if first.html else "; the reason stands below.")


def _pages(night: Night) -> str:
    shown = [page for page in night.pages if page.html and page.html != "index.html"]
    return "".join(f' <a href="{escape(page.html)}">{escape(_page_name(page.name))}</a>' for page in shown)


def _files(night: Night, run_dir: str | Path) -> str:
    """Return links to what programs read, where it lies beside the page."""
    folder = night_folder(night, run_dir)
    shown = [(name, title) for name, title in _FILES.items() if (folder / name).is_file()]
    return "".join(f' <a href="{name}">{title}</a>' for name, title in shown)


def _page_name(name: str) -> str:
    """Return ``00_machine_and_pins`` as ``machine and pins``."""
    return name.lstrip("0123456789_").replace("_", " ")


def _linked(sentence: str, night: Night) -> str:
    """Return a sentence as markup; the address of a cell's page in it becomes a link."""
    text = escape(sentence)
    for record in night.cells:
        if record.html and record.html in sentence:
            return text.replace(escape(record.html), f'<a href="{escape(record.html)}">its page</a>')
    return text
