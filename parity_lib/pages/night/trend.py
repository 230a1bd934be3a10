"""The last nightly runs of each cell: margin, KL, flips and minutes under one another, this run filled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from parity_lib.base.names import Outcome
from parity_lib.pages.kit.figures import Gallery, Palette, Picture, picture, plain_decades
from parity_lib.pages.kit.fragment import Fragment, paragraph
from parity_lib.pages.kit.text import number
from parity_lib.pages.night.find import RUNS
from parity_lib.records import store
from parity_lib.records.night_record import HISTORY, Night
from parity_lib.records.store import HistoryEntry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NIGHTS = 30
_INCHES = (3.75, 3.4)
_NOISE = {"margin": 1.1, "KL": 1.1, "minutes": 1.5}  # factors; a larger change is a step
_ROWS: tuple[tuple[str, Callable[[HistoryEntry], float | None]], ...] = (
    ("margin", lambda entry: entry.worst_margin),
    ("KL", lambda entry: entry.kl_mean),
    ("flips", lambda entry: float(entry.flips.top1 + entry.flips.top5_set)),
    ("minutes", lambda entry: entry.seconds / 60),
)


def trend(night: Night | None, run_dir: str | Path = "") -> Gallery | Fragment:
    """Return the trend of each cell of this run, or a sentence where no earlier run is kept.

    Args:
        night: this run; only runs of its machine class are comparable, and shown.
        run_dir: its folder; the history is beside it. Empty: that of ``reports/nightly``.

    Raises:
        RecordError: the history cannot be read.
    """
    path = (Path(run_dir).resolve().parent if run_dir else RUNS) / HISTORY
    entries = store.load_history(path) if path.is_file() else []
    groups = _by_cell(night, entries) if night is not None else []
    if not groups:
        return paragraph(f"No trend yet: {HISTORY} keeps no earlier nightly run of these cells on this machine class.")
    caption = (
        f"Up to {NIGHTS} nightly runs, oldest at the left, this run filled; all of machine class "
        f"{entries[-1].machine_class if night is None else night.machine_class}. Margin: limit over worst, "
        "above 1 is inside. KL: llama.cpp to burn, mean, nats. Flips: top-1 and top-5 set. Triangle: diverged. "
        "Dotted line: a step starts, which the next run keeps (margin or KL by a tenth, minutes by half, flips by one)."
    )
    return Gallery(tuple(_panel(group) for group in groups), caption)


def _by_cell(night: Night, entries: Sequence[HistoryEntry]) -> list[list[HistoryEntry]]:
    """Return the entries of each cell of this run, oldest first, where there is more than its own."""
    cells = {str(record.cell): record.cell for record in night.cells if not record.control}
    groups = []
    for cell in cells.values():
        own = [
            entry
            for entry in entries
            if entry.cell == cell
            and not entry.control
            and entry.machine_class == night.machine_class
            and entry.run_id <= night.run_id  # a run id starts with its UTC time
        ]
        if len(own) > 1:
            groups.append(own[-NIGHTS:])
    return groups


def _panel(group: Sequence[HistoryEntry]) -> Picture:
    cell, last = group[-1].cell, group[-1]

    def draw(figure: Figure, ink: Palette) -> None:
        axes = figure.subplots(len(_ROWS), 1, sharex=True)
        axes[0].set_title(f"{cell.model} {cell.quant}")
        for place, (label, read) in enumerate(_ROWS):
            _row(axes[place], label, [read(entry) for entry in group], group, ink)
        figure.align_ylabels()
        axes[-1].set_xticks([0, len(group) - 1], [group[0].created_at[5:10], last.created_at[5:10]])

    margin = last.worst_margin
    alt = (
        f"{cell.model} {cell.quant} over {len(group)} nightly runs: {sum(_red(entry) for entry in group)} diverged; "
        f"this run {last.outcome}, margin {number(margin) if margin is not None else 'without a number'}."
        + _step_words(group)
    )
    return picture(draw, inches=_INCHES, alt=alt)


def _step_words(group: Sequence[HistoryEntry]) -> str:
    days = [
        f"{label} from {group[i].created_at[5:10]}"
        for label, read in _ROWS
        for i in _steps(label, [read(entry) for entry in group])
    ]
    return f" Steps: {', '.join(days)}." if days else ""


def _row(axes: Axes, label: str, values: Sequence[float | None], group: Sequence[HistoryEntry], ink: Palette) -> None:
    points = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    high = max((v for _, v in points), default=1.0)
    if label == "margin":
        points = [(i, v) for i, v in points if v > 0]
        axes.set_yscale("log")
        axes.set_ylim(min([0.5, *(v / 2 for _, v in points)]), max([2.0, *(v * 2 for _, v in points)]))
        plain_decades(axes)
        axes.axhline(1.0, color=ink.soft, linewidth=0.9, linestyle=(0, (4, 2)))
    else:
        axes.set_ylim(0, high * 1.25 or 1.0)
    axes.set_xlim(-0.5, len(group) - 0.5)
    axes.plot([i for i, _ in points], [v for _, v in points], color=ink.soft, linewidth=0.7)
    for i, value in points:
        red = _red(group[i])
        colour = ink.orange if red else ink.blue
        fill = colour if i == len(group) - 1 else ink.face
        axes.plot(i, value, "v" if red else "o", color=colour, markerfacecolor=fill, markersize=5, clip_on=False)
    for i in _steps(label, values):
        axes.axvline(i - 0.5, color=ink.ink, linewidth=0.9, linestyle=(0, (1, 1.5)))
    axes.set_ylabel(label)
    axes.minorticks_off()


def _steps(label: str, values: Sequence[float | None]) -> list[int]:
    """Return the nights from which on a number is another one: beyond its own noise, and not back the night after.

    The engines are deterministic: margin and KL of equal pins repeat to the digit, so a tenth is news; time is not.
    The newest night counts at once, because the next run is not known yet.
    """
    known = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
    found: list[int] = []
    level = known[0][1] if known else 0.0
    for place, (i, value) in enumerate(known):
        after = known[place + 1][1] if place + 1 < len(known) else value
        if _differs(label, level, value) and _differs(label, level, after):
            found.append(i)
            level = value
    return found


def _differs(label: str, before: float, value: float) -> bool:
    if label == "flips" or min(before, value) <= 0:
        return before != value
    return max(before, value) / min(before, value) > _NOISE[label]


def _red(entry: HistoryEntry) -> bool:
    return entry.outcome is Outcome.DIVERGED
