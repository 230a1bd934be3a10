"""The one heat map: squares in lines, words under the pointer, links, outlines; inline SVG in JupyterLab and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parity_lib.pages.kit.fragment import Fragment, fill
from parity_lib.records.traces import F64

OVER, FAR, LOST = 4, 5, 6  # classes of a square after the four blue steps
_H = 15  # pitch of the lines, px
_LETTER = 7  # width of a letter of a label, px
_TICKS = 18  # room for the labels above the columns, px


@dataclass(frozen=True, slots=True)
class Square:
    """One square: its class, its words, where it leads to, and what marks it besides its colour."""

    step: int  # 0 to 3: blue steps; then OVER, FAR, LOST, which carry a second sign
    title: str
    href: str = ""
    flip: bool = False  # outlined
    starts: bool = False  # a black line at its left


@dataclass(frozen=True, slots=True)
class Line:
    """One line of squares with its label."""

    label: str
    squares: Sequence[Square]
    gap: int = 0  # above it, px


@dataclass(frozen=True, slots=True)
class HeatMap:
    """What is drawn, from top to bottom and from left to right."""

    title: str
    lines: Sequence[Line]
    legend: Sequence[tuple[int, str]]  # (class, label)
    marks: Sequence[tuple[str, str]] = ()  # ("flip" | "line" | "edge", what it stands for)
    ticks: Mapping[int, str] = field(default_factory=dict)  # column -> label above it
    boxes: Sequence[tuple[int, int, int, int]] = ()  # outlined: (line, column, lines, columns)
    pitch: int = 11  # of the columns, px


def classes(values: F64, edges: Sequence[float]) -> list[int]:
    """Return the class of each value: ``edges`` end the four blue steps and OVER; what is not finite is LOST."""
    return [int(c) for c in np.where(np.isfinite(values), np.searchsorted(edges, values, side="left"), LOST)]


def heat_map(shown: HeatMap, *, alt: str, caption: str) -> Fragment:
    """Return a map as a figure; ``alt`` says what is to be seen in it, and is its plain text."""
    left = 12 + _LETTER * max((len(line.label) for line in shown.lines), default=0)
    tops, y = [], _TICKS if shown.ticks else 2
    for line in shown.lines:
        y += line.gap
        tops.append(y)
        y += _H
    squares = [
        (left + column * shown.pitch, top, square)
        for top, line in zip(tops, shown.lines, strict=True)
        for column, square in enumerate(line.squares)
    ]
    boxes = [
        (left + column * shown.pitch - 2, tops[line] - 2, n_columns * shown.pitch + 3, n_lines * _H + 3)
        for line, column, n_lines, n_columns in shown.boxes
    ]
    texts = [(left + column * shown.pitch, _TICKS - 6, text) for column, text in shown.ticks.items()]
    texts += [(0, top + 12, line.label) for top, line in zip(tops, shown.lines, strict=True) if line.label]
    width = left + max((len(line.squares) for line in shown.lines), default=0) * shown.pitch + 30
    drawn = {"squares": squares, "boxes": boxes, "texts": texts, "width": width, "height": y + 4}
    html = fill("heat_map.html.j2", map=shown, alt=alt, caption=caption, OVER=OVER, **drawn)
    return Fragment(html=html, plain=alt)
