"""Which positions share a square of the map: one each, in a long prompt several, the worst in front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.display.position_data import Positions

LONG = 400  # positions; a prompt above it is binned, because every square costs the page some 250 bytes
_SQUARES = 192  # of a long prompt: two lines of the map
_ROWS_KEPT = 1_700  # positions that get a row in the tables; more make a page of many MB


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
