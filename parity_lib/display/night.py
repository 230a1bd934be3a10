"""The night on one page: headline, the matrix model x quant, gaps with their reasons, red controls, time and memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from parity_lib.display.outcomes import CAUGHT, EXPECTED, Look, badge, look, severity
from parity_lib.display.page import HEADLINE, Column, Fragment, plain_table, table
from parity_lib.display.text import NONE, count, duration, escape, margin, size
from parity_lib.names import Outcome
from parity_lib.night.record import FILE_NAME, CellRecord, Night, load_night

REPORTS = Path(__file__).resolve().parents[2] / "reports"
RUNS = REPORTS / "nightly"
NO_NIGHT = "There is no night yet. Next: make nightly"


def open_night(run_dir: str | Path = "") -> Night | None:
    """Return the night of a folder; without one the newest of ``reports/nightly``, or None where there is none.

    Raises:
        RecordError: the folder was named and holds no readable night.
    """
    if run_dir:
        return load_night(run_dir)
    folders = sorted(path.parent for path in RUNS.glob(f"*/{FILE_NAME}"))
    return load_night(folders[-1]) if folders else None


def night_header(night: Night | None) -> Fragment:
    """Return the first lines of the page: outcome, counts, gaps, red control, what to do next."""
    if night is None:
        html = f'<section class="verdict plain"><p class="word">{NO_NIGHT}</p></section>'
        return Fragment(html=html, plain=NO_NIGHT, role=HEADLINE, title="No night")
    shown, day = look(night.outcome), night.started_at[:10]
    title = f"Night {day}: {night.outcome}"
    sentences = [_counts(night), *_gaps(night), _controls(night), _next(night)]
    marks = [night.headline, f"plan {night.plan}", night.machine_class, f"exit status {night.exit_status}"]
    if night.interrupted:
        marks.insert(0, "interrupted")
    chips = "".join(f"<li>{escape(mark)}</li>" for mark in marks)
    start = f"{night.started_at[:16].replace('T', ' ')} UTC"
    html = (
        f'<p class="cell-id"><strong>{escape(night.title)}</strong> <span>{start}, {duration(night.seconds)} on '
        f"{escape(night.host)}</span>{_pages(night)}</p>"
        f'<section class="verdict {shown.css}" aria-label="verdict"><p class="word">'
        f'<span class="sign" aria-hidden="true">{shown.sign}</span> {escape(title)}</p><ul class="marks">{chips}</ul>'
        f"{''.join(f'<p>{_linked(sentence, night)}</p>' for sentence in sentences if sentence)}</section>"
    )
    plain = "\n".join([title, " · ".join(marks), *filter(None, sentences)])
    return Fragment(html=html, plain=plain, role=HEADLINE, title=f"{night.outcome} · night {day}")


def night_matrix(night: Night | None) -> Fragment:
    """Return models against quants: verdict word, worst margin, link to the cell's page; red controls stand apart."""
    if night is None:
        return Fragment(html="", plain="")
    cells = [record for record in night.cells if not record.control]
    models = list(dict.fromkeys(record.cell.model for record in cells))
    quants = sorted({record.cell.quant for record in cells}, key=_by_bits)
    home = _usual(cells)
    columns = [Column("model"), *(Column(quant, markup=True) for quant in quants)]
    rows = []
    texts = []
    for model in models:
        own = [[r for r in cells if (r.cell.model, r.cell.quant) == (model, quant)] for quant in quants]
        rows.append([model, *("<br>".join(_square(r, home) for r in group) or NONE for group in own)])
        texts.append([model, *(" | ".join(_square_text(r, home) for r in group) or NONE for group in own)])
    caption = f"Leg {home[0]}, stack {home[1]}, compute {home[2]}, where a square says nothing else." if home else ""
    html = table(columns, rows, caption=caption, css="matrix")
    controls = [record for record in night.cells if record.control]
    if controls:
        squares = ", ".join(f"{escape(_label(r))}: {_square(r, None)}" for r in controls)
        html += f"<p>Red controls, faults seeded on purpose: {squares}</p>"
        texts += [[f"control {_label(r)}", _square_text(r, None), *[""] * (len(quants) - 1)] for r in controls]
    return Fragment(html=html, plain=plain_table(columns, texts))


def _by_bits(quant: str) -> tuple[int, str]:
    """Return a sort key that puts file types by their bits a weight: Q4_K_M, Q8_0, BF16."""
    digits = re.search(r"\d+", quant)
    return int(digits.group()) if digits else 99, quant


def gap_table(night: Night | None) -> Fragment:
    """Return every cell and page that was not compared, or did not come out as planned, each with its reasons."""
    if night is None:
        return Fragment(html="", plain="")
    records = _worst([record for record in night.cells if record.causes or not record.good])
    rows = [[_label(r), badge(_look(r), _word(r)), escape(_why(r))] for r in records]
    pages = [page for page in night.pages if page.causes]
    rows += [[page.name, badge(look(page.outcome)), escape("; ".join(page.causes))] for page in pages]
    if not rows:
        text = "No gap: every cell of the plan was compared and came out as planned."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    columns = (Column("cell"), Column("outcome", markup=True), Column("why", markup=True))
    css = [*(_look(r).css for r in records), *(look(page.outcome).css for page in pages)]
    html = table(columns, rows, row_attributes=[f'class="{word}"' for word in css], css="gaps")
    texts = [[_label(r), _word(r), _why(r)] for r in records]
    texts += [[page.name, str(page.outcome), "; ".join(page.causes)] for page in pages]
    return Fragment(html=html, plain=plain_table(columns, texts))


def _why(record: CellRecord) -> str:
    parts = list(record.causes)
    if record.lowest_broken:
        parts.insert(0, f"lowest broken rung {record.lowest_broken}{_ratio(record)}; the lines stand below")
    return "; ".join(parts) or record.reason or NONE


def cost_table(night: Night | None) -> Fragment:
    """Return time and peak memory of each cell, longest first, and the night's total."""
    if night is None:
        return Fragment(html="", plain="")
    ran = sorted((record for record in night.cells if record.seconds > 0), key=lambda r: -r.seconds)
    columns = (
        Column("cell"),
        Column("time", numeric=True),
        Column("share of the night", numeric=True),
        Column("peak memory of an engine", numeric=True),
    )
    total = max(night.seconds, 1e-9)
    rows = [
        [
            _label(record),
            duration(record.seconds),
            f"{record.seconds / total:.0%}",
            size(record.peak_rss_bytes) if record.peak_rss_bytes else NONE,
        ]
        for record in ran
    ]
    rest = night.seconds - sum(record.seconds for record in ran)
    rows.append(["models, pages, start-up", duration(max(rest, 0.0)), f"{max(rest, 0.0) / total:.0%}", NONE])
    rows.append(["the whole night", duration(night.seconds), "100%", NONE])
    return Fragment(html=table(columns, rows, css="costs"), plain=plain_table(columns, rows))


def night_lines(night: Night | None) -> Sequence[str]:
    """Return the greppable lines of the whole night, in the order of the plan."""
    return [] if night is None else [line for record in night.cells for line in record.lines]


def _usual(cells: Sequence[CellRecord]) -> tuple[str, str, str] | None:
    """Return the (isa, stack, compute) that most cells have; squares name only what differs from it."""
    kinds = [(r.cell.isa, r.cell.stack, r.cell.compute) for r in cells]
    return max(kinds, key=kinds.count, default=None)


def _other(record: CellRecord, home: tuple[str, str, str] | None) -> str:
    own = (record.cell.isa, record.cell.stack, record.cell.compute)
    words = [a for a, b in zip(own, home or own, strict=True) if a != b]
    return " · ".join([*words, *([f"fault {record.fault}"] if record.fault and not record.control else [])])


def _square(record: CellRecord, home: tuple[str, str, str] | None) -> str:
    text = _square_text(record, home)
    why = record.causes[0].split(";")[0] if record.causes and record.outcome is not Outcome.DIVERGED else ""
    reason = f"<br><small>{escape(why)}</small>" if why else ""
    return badge(_look(record), text, record.html) + reason


def _square_text(record: CellRecord, home: tuple[str, str, str] | None) -> str:
    text = _word(record) + (_ratio(record) if record.outcome in (Outcome.PARITY, Outcome.DIVERGED) else "")
    if record.lowest_broken and record.outcome is Outcome.DIVERGED:
        text += f" at {record.lowest_broken}"
    other = _other(record, home)
    return text + (f" ({other})" if other else "")


def _ratio(record: CellRecord) -> str:
    if record.worst_margin is None:
        return ""
    return " " + margin(1.0, record.worst_margin).removesuffix(" inside")


def _word(record: CellRecord) -> str:
    """Return the word of a cell; what the plan expected and lost is said too."""
    if record.expect == "diverged" and not record.good:
        return f"{look(record.outcome).word}, a divergence was expected"
    return _look(record).word


def _look(record: CellRecord) -> Look:
    if record.good and record.control:
        return CAUGHT
    return EXPECTED if record.good and record.expect == "diverged" else look(record.outcome)


def _label(record: CellRecord) -> str:
    parts = [str(record.cell)] + (["control"] if record.control else []) + ([record.fault] if record.fault else [])
    return " · ".join(parts)


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
        word = "holes" if outcome is Outcome.HOLE and len(own) > 1 else look(outcome).word
        parts.append(f"{count(len(own))} {word}" + (f" ({expected} as expected)" if expected else ""))
    return f"{count(len(cells))} cell{'' if len(cells) == 1 else 's'}: {', '.join(parts)}."


def _gaps(night: Night) -> list[str]:
    """Return one sentence a kind of gap, so that the headline says what was not compared."""
    sentences = []
    for outcome, word in ((Outcome.HOLE, "Holes"), (Outcome.INCOMPLETE, "Incomplete")):
        records = [r for r in night.cells if r.outcome is outcome]
        if records:
            names = [f"{r.cell.model} {r.cell.quant}" for r in records[:4]]
            more = f" and {len(records) - 4} more" if len(records) > 4 else ""
            cause = f" ({records[0].causes[0]})" if records[0].causes else ""
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
