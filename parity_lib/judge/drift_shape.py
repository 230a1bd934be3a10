"""The shape of an error over positions: flat, zero at position 0 then rising, beyond one position only, erratic.

The one classifier: the page of a cell, which has every prompt, and the page of a trace, which has one, both use it.

What a model can see at a position tells the causes apart. At position 0 there is a single key, whose weight is 1
whatever the scores are, and RoPE turns by nothing: queries, keys, mask, scale and RoPE cannot be seen there, and
everything else can.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError

STAYS = 0.5  # share of the positions from the start on that are over: less is erratic
FEW, FEW_SHARE = 3, 0.1  # positions over, and their share of all: up to both, they are single ones wherever they lie
JUMP = 10.0  # the first position over its floor, over the largest before it: more is an edge, less has grown
LATE = 3  # a start before this position is the beginning of a sequence, not a place inside of it
GROWS = 2.0  # last third over first third, medians
MOST = 0.5  # share of the sequences that are over: a kind that more of them have is the kind of all


class Kind(StrEnum):
    """The shape in words."""

    INSIDE = "inside its floor at every position"
    FLAT = "flat, over from position 0 on"
    RISING = "zero at position 0 and rising"
    BEYOND = "beyond one position only"
    ERRATIC = "erratic: single positions"
    MIXED = "not the same in every sequence"


CAUSES = {
    Kind.INSIDE: "",
    Kind.FLAT: "what acts at every position by itself: embedding, norms, V and its output, feed-forward, logits",
    Kind.RISING: "attention or RoPE: queries, keys, scale, mask, cache",
    Kind.BEYOND: "what begins there: a cache slot, the edge of a batch, RoPE or the mask from that position on",
    Kind.ERRATIC: "single rows: one token's embedding, the edge of a tile, memory that others write, a sensitive token",
    Kind.MIXED: "",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of an error over the positions of one or more sequences, and what fits it."""

    kinds: tuple[Kind, ...]  # of each sequence by itself
    starts: tuple[int, ...]  # first position over its floor, of each sequence that is over
    n_over: int
    n: int
    trend: str  # "rising", "level", "falling" among the positions over; empty where there are too few

    @property
    def kind(self) -> Kind:
        """Return the most common kind among the sequences that are over; MIXED without a majority."""
        over = Counter(kind for kind in self.kinds if kind is not Kind.INSIDE)
        kind, n = over.most_common(1)[0] if over else (Kind.INSIDE, 1)
        return kind if n > MOST * over.total() else Kind.MIXED

    @property
    def causes(self) -> str:
        """Return which parts of a model or an engine make errors of this shape."""
        return CAUSES[self.kind]


def shape_of(*shares: npt.ArrayLike) -> Shape:
    """Classify an error over its floor: one profile for each sequence, ``(n_positions,)`` from position 0 on.

    Above 1 is over, and so is what is not a number.

    Raises:
        TraceMismatchError: there is no profile, or one without a position.

    >>> shape = shape_of([0.0, 2.0, 5.0, 9.0])
    >>> shape.kind.value
    'zero at position 0 and rising'
    >>> shape.causes
    'attention or RoPE: queries, keys, scale, mask, cache'
    """
    profiles = [np.nan_to_num(np.asarray(share, np.float64), nan=np.inf, posinf=np.inf) for share in shares]
    if not profiles or any(values.ndim != 1 or not values.size for values in profiles):
        found = [values.shape for values in profiles]
        raise TraceMismatchError("there is no profile over positions", expected="(n_positions,)", found=found)
    where = [np.flatnonzero(values > 1) for values in profiles]
    places = np.concatenate(where)
    over = np.concatenate([values[rows] for values, rows in zip(profiles, where, strict=True)])
    return Shape(
        kinds=tuple(_kind(values) for values in profiles),
        starts=tuple(int(rows[0]) for rows in where if rows.size),
        n_over=len(over),
        n=sum(map(len, profiles)),
        trend=_trend(over[np.argsort(places, kind="stable")]),
    )


def _kind(values: npt.NDArray[np.float64]) -> Kind:
    """Return the kind of one sequence."""
    over = values > 1
    n_over, start = int(over.sum()), int(np.argmax(over))
    if not n_over:
        return Kind.INSIDE
    if float(over[start:].mean()) < STAYS or n_over <= min(FEW, FEW_SHARE * len(values)):
        return Kind.ERRATIC
    if start == 0:
        return Kind.FLAT
    if start >= LATE and values[start] > JUMP * max(float(values[:start].max()), np.finfo(float).tiny):
        return Kind.BEYOND
    return Kind.RISING


def _trend(values: npt.NDArray[np.float64]) -> str:
    third = len(values) // 3
    if third < 2:
        return ""
    early, late = float(np.median(values[:third])), float(np.median(values[-third:]))
    if not np.isfinite(early) or early <= 0:
        return ""
    ratio = late / early
    return "rising" if ratio >= GROWS else "falling" if ratio <= 1 / GROWS else "level"
