"""The map of positions: |delta| over its limit as squares, words under the pointer, a link to the row of the table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit import heat_map
from parity_lib.pages.kit.fragment import Fragment, paragraph
from parity_lib.pages.kit.heat_map import FAR, LOST, OVER, HeatMap, Line
from parity_lib.pages.kit.text import Words, count, number, quoted

LONG = 400  # positions; a prompt above it is binned, because every square costs the page some 250 bytes
_SQUARES = 192  # of a long prompt: two lines of the map
_ROWS_KEPT = 1_700  # positions that get a row in the tables; more make a page of many MB

ACROSS = 96  # squares in one line; a long prompt goes on in the next
_NAME = 26  # characters of a prompt's name
_GAP = 8  # between prompts, px
_EDGES = (0.01, 0.1, 0.5, 1.0, 100.0)  # shares of the limit
_LEGEND = (
    *((0, "≤ 1 %"), (1, "≤ 10 %"), (2, "≤ 50 %"), (3, "≤ limit")),
    *((OVER, "over"), (FAR, "over 100x"), (LOST, "not finite")),
)
_MARKS = (("flip", "top-1 or top-5 set differs"), ("edge", "generation starts"))


def row_anchor(prompt_idx: int, token_idx: int) -> str:
    """Return the id of a position's row in the tables, ``p3t17`` or ``p3t-4``."""
    return f"p{prompt_idx}t{token_idx}"


def no_position() -> Fragment:
    """Return the sentence for a cell in which rung T4 judged no position."""
    return paragraph("No position was compared.")


def heatmap(shown: Positions | None, words: Words | None = None, linked: Collection[str] = ()) -> Fragment:
    """Return the map of all positions: prompts from top to bottom, tokens from left to right.

    Args:
        shown: the positions; None where rung T4 judged no position.
        words: token texts and prompt names.
        linked: anchors that exist on the page (``row_anchor``); other squares have words but no link.
    """
    if not shown:
        return no_position()
    words = words or Words()
    steps = heat_map.classes(np.nan_to_num(shown.share, nan=0.0, posinf=np.inf), _EDGES)
    lines, binned = [], 1
    for prompt in shown.prompts():
        squares = squares_of(shown, prompt)
        binned = max(binned, *(len(square.rows) for square in squares))
        drawn = [_square(square, steps[square.worst], shown, words, linked) for square in squares]
        name = words.prompt(prompt)[:_NAME]
        starts = range(0, len(drawn), ACROSS)
        lines += [Line("" if i else name, drawn[i : i + ACROSS], 0 if i else _GAP) for i in starts]
    n_over, n_flips = int((shown.share > 1).sum()), int(shown.top1_flip.sum())
    alt = (
        f"Map of {count(len(shown))} positions by |delta| as a share of its limit: {count(n_over)} over the limit, "
        f"{count(n_flips)} with another top-1. Worst share "
        f"{number(float(np.nanmax(shown.share, initial=0.0)))}."
    )
    several = f", up to {binned} in a square of a long prompt, which shows its worst" if binned > 1 else ""
    title = "|delta| over its limit; line: prompt, square: position"
    caption = f"One square is one scored position{several}. A square links to its row in the tables below."
    return heat_map.heat_map(HeatMap(title, lines, _LEGEND, _MARKS, pitch=10), alt=alt, caption=caption)


def _square(square: Square, step: int, shown: Positions, words: Words, linked: Collection[str]) -> heat_map.Square:
    rows = list(square.rows)
    anchor = row_anchor(int(shown.prompt_idx[square.worst]), int(shown.token_idx[square.worst]))
    return heat_map.Square(
        step,
        _title(square, shown, words),
        href=f"#{anchor}" if anchor in linked else "",
        flip=bool((shown.top1_flip | shown.top5_flip)[rows].any()),
        starts=bool(shown.token_idx[rows[0]] == 0),
    )


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
