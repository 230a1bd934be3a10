"""Squares in rows and columns, words under the pointer: inline SVG for the page, PNG where SVG is not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parity_lib.pages.kit.figures import DPI, LIGHT, Palette, png
from parity_lib.pages.kit.fragment import Picture
from parity_lib.pages.kit.text import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_H = 15  # pitch of the rows, px
_STYLE = (
    ".gr text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:var(--p-ink,#1b1f24)}"
    ".gr .b0{fill:var(--p-h0,#eef1f4)}.gr .b1{fill:var(--p-h1,#c9ddec)}.gr .b2{fill:var(--p-h2,#8fbcdc)}"
    ".gr .b3{fill:var(--p-h3,#3b87bd)}.gr .b4{fill:var(--p-over,#d55e00)}.gr .b5{fill:var(--p-bad,#a33b00)}"
    ".gr .b6{fill:var(--p-none,#000)}.gr .dot{fill:var(--p-bg,#fff)}"
    ".gr .line{fill:none;stroke:var(--p-ink,#1b1f24);stroke-width:2}"
)
OVER, FAR, LOST = 4, 5, 6  # classes of a square after the four blue steps


@dataclass(frozen=True, slots=True)
class Grid:
    """What is drawn: one class and one text for each square."""

    title: str
    rows: Sequence[str]  # labels at the left
    ticks: Mapping[int, str]  # column -> label above it
    bins: Sequence[Sequence[int]]  # class of each square: 0 to 3 blue, then OVER, FAR, LOST
    titles: Sequence[Sequence[str]]  # words under the pointer
    legend: Sequence[tuple[int, str]]  # (class, label)
    column: int | None = None  # outlined
    cell: tuple[int, int] | None = None  # (row, column) outlined
    pitch: int = 11  # of the columns, px
    left: int = 76  # room for the labels, px

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height, px."""
        columns = max(map(len, self.bins), default=0)
        return max(self.left + columns * self.pitch + 30, self.left + 96 * len(self.legend)), self.top + len(
            self.rows
        ) * _H + 6

    @property
    def top(self) -> int:
        """Return where the first row begins, px."""
        return 64


def grid_picture(grid: Grid, *, alt: str, caption: str) -> Picture:
    """Return a grid as a picture; ``alt`` says what is to be seen in it."""
    width, height = grid.size
    flat = png(lambda figure, ink: _paint(figure, ink, grid), (width / DPI, height / DPI), LIGHT)
    return Picture(png=flat, png_dark=b"", alt=alt, caption=caption, svg=_svg(grid, alt))


def _svg(grid: Grid, alt: str) -> str:
    width, height = grid.size
    parts = [f'<text x="0" y="14">{escape(grid.title)}</text>']
    for place, (bin_, label) in enumerate(grid.legend):
        x = grid.left + 96 * place
        parts.append(f'{_square(bin_, x, 22, 9)}<text x="{x + 14}" y="33">{escape(label)}</text>')
    for column, label in grid.ticks.items():
        parts.append(f'<text x="{grid.left + column * grid.pitch}" y="{grid.top - 6}">{escape(label)}</text>')
    for row, label in enumerate(grid.rows):
        y = grid.top + row * _H
        parts.append(f'<text x="0" y="{y + 12}">{escape(label)}</text>')
        for column, (bin_, title) in enumerate(zip(grid.bins[row], grid.titles[row], strict=True)):
            x = grid.left + column * grid.pitch
            parts.append(f"<g><title>{escape(title)}</title>{_square(bin_, x, y, grid.pitch - 1)}</g>")
    parts += [f'<rect class="line" x="{x}" y="{y}" width="{w}" height="{h}"/>' for x, y, w, h in _outlines(grid)]
    return (
        f'<svg class="gr" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(alt)}"><style>{_STYLE}</style>{"".join(parts)}</svg>'
    )


def _square(bin_: int, x: int, y: int, width: int) -> str:
    mark = f'<rect class="b{bin_}" x="{x}" y="{y}" width="{width}" height="14"/>'
    if bin_ >= OVER:  # a second sign besides the colour
        side = 3 if bin_ == OVER else 5
        left, top = x + (width - side) / 2, y + (14 - side) / 2
        mark += f'<rect class="dot" x="{left:g}" y="{top:g}" width="{side}" height="{side}"/>'
    return mark


def _outlines(grid: Grid) -> list[tuple[int, int, int, int]]:
    """Return (x, y, width, height) of what is outlined."""
    boxes = []
    if grid.column is not None:
        boxes.append((grid.left + grid.column * grid.pitch - 1, grid.top - 1, grid.pitch + 1, len(grid.rows) * _H + 1))
    if grid.cell is not None:
        row, column = grid.cell
        boxes.append((grid.left + column * grid.pitch - 3, grid.top + row * _H - 3, grid.pitch + 5, _H + 5))
    return boxes


def _paint(figure: Figure, ink: Palette, grid: Grid) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    width, height = grid.size
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    colours = (*ink.steps, ink.orange, "#7a2c00", "#000000")
    squares = [(22, grid.left + 96 * place, bin_, 9) for place, (bin_, _) in enumerate(grid.legend)]
    squares += [
        (grid.top + row * _H, grid.left + column * grid.pitch, bin_, grid.pitch - 1)
        for row, bins in enumerate(grid.bins)
        for column, bin_ in enumerate(bins)
    ]
    patches = [Rectangle((x, y), w, 14) for y, x, _, w in squares]
    axes.add_collection(PatchCollection(patches, facecolors=[colours[bin_] for _, _, bin_, _ in squares]))
    dots = [(x + w / 2, y + 7) for y, x, bin_, w in squares if bin_ >= OVER]
    axes.plot([x for x, _ in dots], [y for _, y in dots], "s", color=ink.face, markersize=2)
    for x, y, w, h in _outlines(grid):
        axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=ink.ink, linewidth=1.5))
    axes.text(0, 14, grid.title)
    for place, (_, label) in enumerate(grid.legend):
        axes.text(grid.left + 96 * place + 14, 33, label)
    for column, label in grid.ticks.items():
        axes.text(grid.left + column * grid.pitch, grid.top - 6, label)
    for row, label in enumerate(grid.rows):
        axes.text(0, grid.top + row * _H + 12, label)
