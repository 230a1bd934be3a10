"""The squares of a night: models against quants, each with its word, its worst margin and the way to its page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from parity_lib.base.names import Compute, Outcome
from parity_lib.pages.kit.fragment import EMPTY, Fragment, words_of_markup
from parity_lib.pages.kit.outcomes import CAUGHT, EXPECTED, Style, badge, style_of
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, margin
from parity_lib.pages.night.find import cell_verdicts
from parity_lib.records.night_record import CellRecord, Night
from parity_lib.records.verdicts import Verdict

Home = tuple[str, str, str] | None  # isa, stack, compute
Nearest = Mapping[str, str]  # key of a cell -> the rung that is nearest to its limit
_PATH = re.compile(r"^/[^\s:]*: ")


def night_matrix(night: Night | None, run_dir: str | Path = "") -> Fragment:
    """Return models against quants: verdict word, worst margin, link to the cell's page.

    Cells of another arithmetic, ISA target or stack than most stand apart below, and so do red controls: a square must
    not mix what is judged by different references.
    """
    if night is None:
        return EMPTY
    nearest = {key: rung for key, v in cell_verdicts(night, run_dir).items() if (rung := _nearest(v))}
    cells = [record for record in night.cells if not record.control]
    home = _usual(cells)
    own = [record for record in cells if not _other(record, home)]
    caption = f"ISA target {home[0]}, stack {home[1]}, compute {home[2]}; margins: limit over worst." if home else ""
    shown = _grid(own, caption, nearest) if own else EMPTY
    other = [record for record in cells if _other(record, home)]
    if other:
        shown += _apart("Other ISA target, stack or compute policy", other, home, nearest)
    controls = [record for record in night.cells if record.control]
    if controls:
        shown += _apart("Red controls, faults seeded on purpose", controls, None, nearest)
    return shown


def _grid(cells: Sequence[CellRecord], caption: str, nearest: Nearest) -> Fragment:
    models = list(dict.fromkeys(record.cell.model for record in cells))
    quants = sorted({record.cell.quant for record in cells}, key=_by_bits)
    columns = [Column("model"), *(Column(quant) for quant in quants)]
    rows = []
    for model in models:
        own = [[r for r in cells if (r.cell.model, r.cell.quant) == (model, quant)] for quant in quants]
        squares = [Markup("<br>").join(_square(r, None, nearest) for r in group) or NONE for group in own]
        rows.append([model, *squares])
    return table(columns, rows, caption=caption, css="matrix")


def _apart(title: str, records: Sequence[CellRecord], home: Home, nearest: Nearest) -> Fragment:
    items = Markup().join(Markup("<li>{}: {}</li>").format(_apart_name(r), _square(r, home, nearest)) for r in records)
    html = Markup('<p>{}:</p><ul class="apart matrix">{}</ul>').format(title, items)
    plain = [f"{label_of(r)}: {words_of_markup(_square(r, home, nearest))}" for r in records]
    return Fragment(html, "\n".join([f"{title}:", *plain]))


def _apart_name(record: CellRecord) -> str:
    name = f"{record.cell.model} {record.cell.quant}"
    return Markup("{} · <code>{}</code>").format(name, record.fault) if record.fault else name


def _by_bits(quant: str) -> tuple[int, str]:
    """Return a sort key that puts file types by their bits a weight: Q4_K_M, Q8_0, BF16."""
    digits = re.search(r"\d+", quant)
    return int(digits.group()) if digits else 99, quant


def _usual(cells: Sequence[CellRecord]) -> Home:
    """Return the (isa, stack, compute) that most cells have; squares name only what differs from it."""
    kinds = [(r.cell.isa, r.cell.stack, r.cell.compute) for r in cells]
    return max(kinds, key=kinds.count, default=None)


def _other(record: CellRecord, home: Home) -> str:
    own = (record.cell.isa, record.cell.stack, record.cell.compute)
    words = [a for a, b in zip(own, home or own, strict=True) if a != b]
    return " · ".join([*words, *([f"fault {record.fault}"] if record.fault and not record.control else [])])


def _square(record: CellRecord, home: Home, nearest: Nearest) -> Markup:
    square = badge(style_of_cell(record), _square_text(record, home, nearest), record.html)
    why = brief(record.causes[0]) if record.causes and record.outcome is not Outcome.DIVERGED else ""
    return square + (Markup("<br><small>{}</small>").format(why) if why else "")


def brief(cause: str) -> str:
    """Return a cause without the path that it starts with and without what follows from it."""
    return _PATH.sub("", cause.partition(";")[0])


def _square_text(record: CellRecord, home: Home, nearest: Nearest) -> str:
    text = word_of(record) + (ratio_of(record) if record.outcome in (Outcome.PARITY, Outcome.DIVERGED) else "")
    if record.lowest_broken and record.outcome is Outcome.DIVERGED:
        text += f" at {record.lowest_broken}"
    if record.outcome is Outcome.PARITY and record.worst_margin is not None and record.key in nearest:
        text += f" at {nearest[record.key]}"
    if record.outcome is Outcome.PARITY and record.cell.compute != Compute.F32:
        text += ", logits reported, not gated"  # rungs T4 and T5 judge f32 only
    other = _other(record, home)
    return text + (f" ({other})" if other else "")


def _nearest(verdict: Verdict) -> str:
    """Return the rung that is nearest to its limit, or an empty text where no rung has a number."""
    gated = [r for r in verdict.rungs if r.margin is not None and r.outcome is not Outcome.REPORTED]
    return min(gated, key=lambda r: r.margin or 0.0).rung.value if gated else ""


def ratio_of(record: CellRecord) -> str:
    """Return the worst margin of a cell, ``4.5x`` or ``340x over``, with a space before it."""
    if record.worst_margin is None:
        return ""
    return " " + margin(1.0, record.worst_margin).removesuffix(" inside")


def word_of(record: CellRecord) -> str:
    """Return the word of a cell; what the plan expected and lost is said too."""
    if record.expect == "diverged" and not record.good:
        return f"{style_of(record.outcome).word}, a divergence was expected"
    return style_of_cell(record).word


def style_of_cell(record: CellRecord) -> Style:
    """Return how a cell is shown: what came out as the plan expects is no alarm."""
    if record.good and record.control:
        return CAUGHT
    return EXPECTED if record.good and record.expect == "diverged" else style_of(record.outcome)


def label_of(record: CellRecord, home: Home = None) -> str:
    """Return a cell's name, with what was seeded into it; of target, stack and compute only what is not the usual."""
    name = str(record.cell) if home is None else f"{record.cell.model} {record.cell.quant}"
    own = (record.cell.isa, record.cell.stack, record.cell.compute)
    words = [] if home is None else [a for a, b in zip(own, home, strict=True) if a != b]
    return " · ".join([name, *words, *(["control"] if record.control else []), *([record.fault] * bool(record.fault))])


def usual(night: Night) -> Home:
    """Return the (isa, stack, compute) that most cells of a night have; tables name only what differs from it."""
    return _usual([record for record in night.cells if not record.control])
