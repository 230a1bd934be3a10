"""The map of positions: |delta| over its limit as squares, words under the pointer, a link to the row of the table."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.figures import DPI, LIGHT, Palette, png
from parity_lib.pages.kit.fragment import Fragment, Picture
from parity_lib.pages.kit.text import Words, count, escape, number, quoted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 400  # positions; a prompt above it is binned, because every square costs the page some 250 bytes
_SQUARES = 192  # of a long prompt: two lines of the map
_ROWS_KEPT = 1_700  # positions that get a row in the tables; more make a page of many MB

ACROSS = 96  # squares in one line; a long prompt goes on in the next
_W, _H = 10, 15  # pitch of the squares, px
_LEFT, _TOP = 172, 44  # room for the prompts' names and for the legend, px
_NAME = 26  # characters of a prompt's name
_GAP = 8  # between prompts, px
_EDGES = (0.01, 0.1, 0.5, 1.0)  # shares of the limit
_LABELS = ("≤ 1 %", "≤ 10 %", "≤ 50 %", "≤ limit", "over", "not finite")
_FLIP = "top-1 or top-5 set differs"
_OVER, _LOST = 4, 5
# Colours come from the page where there is one; alone, in JupyterLab, the second ones hold.
_STYLE = (
    ".hm text{font:12px system-ui,'DejaVu Sans',sans-serif;fill:var(--p-ink,#1b1f24)}"
    ".hm .b0{fill:var(--p-h0,#eef1f4)}.hm .b1{fill:var(--p-h1,#c9ddec)}.hm .b2{fill:var(--p-h2,#8fbcdc)}"
    ".hm .b3{fill:var(--p-h3,#3b87bd)}.hm .b4{fill:var(--p-over,#d55e00)}.hm .b5{fill:var(--p-none,#000)}"
    ".hm .dot{fill:var(--p-bg,#fff)}.hm .flip{fill:none;stroke:var(--p-ink,#1b1f24);stroke-width:2}"
    ".hm .edge{stroke:var(--p-ink,#1b1f24);stroke-width:2}"
    ".hm a:hover rect,.hm a:focus rect{stroke:var(--p-ink,#1b1f24)}"
)


@dataclass(frozen=True, slots=True)
class _Placed:
    square: Square
    x: int
    y: int
    bin: int
    flip: bool  # at one of its positions
    starts: bool  # generation starts in it


def row_anchor(prompt_idx: int, token_idx: int) -> str:
    """Return the id of a position's row in the tables, ``p3t17`` or ``p3t-4``."""
    return f"p{prompt_idx}t{token_idx}"


def no_position() -> Fragment:
    """Return what stands in place of the positions where rung T4 judged none."""
    text = "No position was compared."
    return Fragment(html=f"<p>{text}</p>", plain=text)


def heatmap(shown: Positions | None, words: Words | None = None, linked: Collection[str] = ()) -> Picture | Fragment:
    """Return the map of all positions: prompts from top to bottom, tokens from left to right.

    Args:
        shown: the positions; None where rung T4 judged none.
        words: token texts and prompt names.
        linked: anchors that exist on the page (``row_anchor``); other squares have words but no link.
    """
    if not shown:
        return no_position()
    words = words or Words()
    squares, labels, height = _layout(shown)
    width = _LEFT + ACROSS * _W + 2
    n_over = int((shown.share > 1).sum())
    worst = float(np.nanmax(shown.share, initial=0.0))
    alt = (
        f"Map of {count(len(shown))} positions by |delta| as a share of its limit: {count(n_over)} over the limit, "
        f"{count(int(shown.top1_flip.sum()))} with another top-1. Worst share {number(worst)}."
    )
    paint = _painter(squares, labels, words, (width, height))
    flat = png(paint, (width / DPI, height / DPI), LIGHT)  # for JupyterLab; the page shows the SVG
    binned = max((len(placed.square.rows) for placed in squares), default=1)
    several = f", up to {binned} in a square of a long prompt, which shows its worst" if binned > 1 else ""
    caption = (
        f"Each square is one scored position{several}; prompt from the left, a black line where generation starts. "
        "Outlined: top-1 or top-5 set differs. Point at a square for its words; follow it to its row."
    )
    svg = _svg(squares, labels, shown, words, frozenset(linked), (width, height), alt)
    return Picture(png=flat, png_dark=b"", alt=alt, caption=caption, svg=svg)


def _layout(shown: Positions) -> tuple[list[_Placed], list[tuple[int, int]], int]:
    """Return the squares, (prompt, y) of each name, and the height."""
    share, bins = shown.share, np.searchsorted(_EDGES, shown.share, side="left")
    bins = np.where(np.isnan(share), 0, np.where(shown.nonfinite, _LOST, bins))
    flip = shown.top1_flip | shown.top5_flip
    placed, labels, y = [], [], _TOP
    for prompt in shown.prompts():
        squares = squares_of(shown, prompt)
        labels.append((prompt, y))
        for place, square in enumerate(squares):
            line, column = divmod(place, ACROSS)
            rows = list(square.rows)
            colour, has_flip, starts = int(bins[square.worst]), bool(flip[rows].any()), shown.token_idx[rows[0]] == 0
            placed.append(_Placed(square, _LEFT + column * _W, y + line * _H, colour, has_flip, bool(starts)))
        y += _H * (1 + (len(squares) - 1) // ACROSS) + _GAP
    return placed, labels, y


def _svg(
    squares: list[_Placed],
    labels: list[tuple[int, int]],
    shown: Positions,
    words: Words,
    linked: frozenset[str],
    size: tuple[int, int],
    alt: str,
) -> str:
    width, height = size
    names = "".join(f'<text x="0" y="{y + 12}">{escape(words.prompt(prompt)[:_NAME])}</text>' for prompt, y in labels)
    body = "".join(_square(square, shown, words, linked) for square in squares)
    return (
        f'<svg class="hm" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(alt)}"><style>{_STYLE}</style>{_legend()}{names}{body}</svg>'
    )


def _square(placed: _Placed, shown: Positions, words: Words, linked: frozenset[str]) -> str:
    row, x, y = placed.square.worst, placed.x, placed.y
    mark = f'<rect class="b{placed.bin}" x="{x}" y="{y}" width="9" height="14"/>'
    if placed.bin >= _OVER:  # a second sign besides the colour
        mark += f'<rect class="dot" x="{x + 3}" y="{y + 5}" width="3" height="4"/>'
    if placed.flip:
        mark += f'<rect class="flip" x="{x}" y="{y}" width="9" height="14"/>'
    if placed.starts:
        mark += f'<path class="edge" d="M{x - 0.5} {y - 2}v18"/>'
    mark = f"<title>{escape(_title(placed.square, shown, words))}</title>{mark}"
    anchor = row_anchor(int(shown.prompt_idx[row]), int(shown.token_idx[row]))
    # Out of the tab order: the same rows stand in the tables, and nobody tabs through a thousand squares.
    return f'<a href="#{anchor}" tabindex="-1">{mark}</a>' if anchor in linked else f"<g>{mark}</g>"


def _title(square: Square, shown: Positions, words: Words) -> str:
    row, rows = square.worst, list(square.rows)
    fed = words.tokens.get(int(shown.pair.reference.fed_id[row]))
    after = "" if fed is None else f" after {quoted(fed)}"
    share = shown.share[row]
    size = "no limit" if np.isnan(share) else f"{number(float(share))}x limit" if np.isfinite(share) else "not finite"
    flip = " top-1 differs" if shown.top1_flip[rows].any() else ""
    flip = flip or (" top-5 set differs" if shown.top5_flip[rows].any() else "")
    place = f"prompt {shown.prompt_idx[row]} token {shown.token_idx[row]}{after}: {size}{flip}"
    if len(rows) == 1:
        return place
    return f"tokens {shown.token_idx[rows[0]]} to {shown.token_idx[rows[-1]]}, the worst: {place}"


def _legend() -> str:
    parts = ['<text x="0" y="14">|delta| over its limit</text>']
    classes = [*(f"b{bin_}" for bin_ in range(len(_LABELS))), "flip"]
    for place, (css, label) in enumerate(zip(classes, (*_LABELS, _FLIP), strict=True)):
        x = _LEFT + 100 * place
        dot = f'<rect class="dot" x="{x + 3}" y="8" width="3" height="4"/>' if css in ("b4", "b5") else ""
        square = f'<rect class="{css}" x="{x}" y="3" width="9" height="14"/>'
        parts.append(f'{square}{dot}<text x="{x + 15}" y="14">{label}</text>')
    return "".join(parts)


def _painter(
    squares: list[_Placed], labels: list[tuple[int, int]], words: Words, size: tuple[int, int]
) -> Callable[[Figure, Palette], None]:
    """Return a function that draws the same map into a figure, for where SVG is not shown."""

    def draw(figure: Figure, ink: Palette) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set_xlim(0, size[0])
        axes.set_ylim(size[1], 0)
        colours = (*ink.steps, ink.orange, "#000000")
        patches = PatchCollection(
            [Rectangle((s.x, s.y), 9, 14) for s in squares],
            facecolors=[colours[s.bin] for s in squares],
            edgecolors=[ink.ink if s.flip else "none" for s in squares],
        )
        axes.add_collection(patches)
        dots = [(s.x + 4.5, s.y + 7) for s in squares if s.bin >= _OVER]
        axes.plot([x for x, _ in dots], [y for _, y in dots], "s", color=ink.face, markersize=2)
        for start in (s for s in squares if s.starts):
            axes.plot([start.x - 0.5] * 2, [start.y - 2, start.y + 16], color=ink.ink, linewidth=1.5)
        for prompt, y in labels:
            axes.text(0, y + 12, words.prompt(prompt)[:_NAME])
        axes.text(0, 14, "|delta| over its limit")
        for bin_, label in enumerate(_LABELS):
            x = _LEFT + 100 * bin_
            axes.add_patch(Rectangle((x, 3), 9, 14, facecolor=colours[bin_]))
            axes.text(x + 15, 14, label)
        x = _LEFT + 100 * len(_LABELS)
        axes.add_patch(Rectangle((x, 3), 9, 14, facecolor="none", edgecolor=ink.ink))
        axes.text(x + 15, 14, _FLIP)

    return draw


@dataclass(frozen=True, slots=True)
class Square:
    """One square of the map: consecutive positions of one prompt, in fed order."""

    rows: tuple[int, ...]  # of the traces
    worst: int  # the row that the square shows and links to


def squares_of(shown: Positions, prompt_idx: int) -> list[Square]:
    """Return the squares of a prompt; generation starts in a square of its own."""
    rows = shown.of_prompt(prompt_idx)
    if len(rows) <= LONG:
        return [Square((int(row),), int(row)) for row in rows]
    step = -(-len(rows) // _SQUARES)
    boundary = int(np.searchsorted(shown.token_idx[rows], 0))
    groups = [part[i : i + step] for part in (rows[:boundary], rows[boundary:]) for i in range(0, len(part), step)]
    rank = _rank(shown)
    return [Square(tuple(group.tolist()), int(group[np.argmin(rank[group])])) for group in groups]


def kept_rows(shown: Positions) -> list[int]:
    """Return the rows that stand in the tables: what each square shows, then what a verdict lists, worst first."""
    wanted = {square.worst for prompt in shown.prompts() for square in squares_of(shown, prompt)}
    order = [int(row) for row in shown.worst_first()]
    squares = [row for row in order if row in wanted]
    rest = [row for row in order if row not in wanted and shown.listed[row]]
    return [*squares, *rest][:_ROWS_KEPT]


def _rank(shown: Positions) -> npt.NDArray[np.intp]:
    """Return the place of each row in the order worst first."""
    rank = np.empty(len(shown), np.intp)
    rank[shown.worst_first()] = np.arange(len(shown))
    return rank
