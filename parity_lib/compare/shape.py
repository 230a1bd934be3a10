"""The profile of an error over positions: flat, zero at position 0 then rising, beyond one position only, erratic.

What a model can see at a position tells the causes apart. At position 0 there is a single key, whose weight is 1
whatever the scores are, and RoPE turns by nothing: queries, keys, mask, scale and RoPE cannot be seen there, and
everything else can.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from parity_lib.errors import TraceMismatchError

STAYS = 0.5  # share of the positions from the start on that are over: less is erratic
JUMP = 10.0  # the first position over its floor, over the largest before it: more is an edge, less has grown
LATE = 3  # a start before this position is the beginning of a sequence, not a place inside of it
GROWS = 2.0  # last third over first third, medians


class Kind(StrEnum):
    """The shape in words."""

    INSIDE = "inside its floor at every position"
    FLAT = "flat, over from position 0 on"
    RISING = "zero at position 0 and rising"
    BEYOND = "beyond one position only"
    ERRATIC = "erratic: single positions"


CAUSES = {
    Kind.INSIDE: "",
    Kind.FLAT: "what acts at every position by itself: embedding, norms, V and its output, feed-forward, logits",
    Kind.RISING: "attention or RoPE: queries, keys, scale, mask, cache",
    Kind.BEYOND: "what begins there: a cache slot, the edge of a batch, RoPE or the mask from that position on",
    Kind.ERRATIC: "single rows: one token's embedding, the edge of a tile, memory that others write, a sensitive token",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of an error over positions, and what fits it."""

    kind: Kind
    start: int | None  # first position over its floor
    n_over: int
    n: int
    trend: str  # "rising", "level", "falling" among the positions over; empty where there are too few

    @property
    def causes(self) -> str:
        """Return which parts of a model or an engine make errors of this shape."""
        return CAUSES[self.kind]

    @property
    def words(self) -> str:
        """Return the shape in half a sentence, ``zero at position 0 and rising``."""
        if self.kind is Kind.BEYOND:
            return f"inside up to position {(self.start or 0) - 1}, over from position {self.start} on"
        if self.kind is Kind.ERRATIC:
            return f"erratic: {self.n_over} of {self.n} positions, the first {self.start}"
        if self.kind is Kind.FLAT and self.trend not in ("", "level"):
            return f"over from position 0 on, {self.trend}"
        if self.kind is Kind.RISING and self.trend == "level":
            return f"zero at position 0, over from position {self.start} on"
        return str(self.kind)


def shape_of(share: npt.ArrayLike) -> Shape:
    """Classify an error over its floor, ``(n_positions,)`` from position 0 on; above 1, and what is no number, is over.

    Raises:
        TraceMismatchError: there is no position.
    """
    values = np.nan_to_num(np.asarray(share, np.float64), nan=np.inf, posinf=np.inf)
    if values.ndim != 1 or not values.size:
        raise TraceMismatchError("there is no profile over positions", expected="(n_positions,)", found=values.shape)
    over = values > 1
    n_over, n = int(over.sum()), len(values)
    if not n_over:
        return Shape(Kind.INSIDE, None, 0, n, "")
    start = int(np.argmax(over))
    trend = _trend(values[over])
    if float(over[start:].mean()) < STAYS:
        kind = Kind.ERRATIC
    elif start == 0:
        kind = Kind.FLAT
    elif start >= LATE and values[start] > JUMP * max(float(values[:start].max()), np.finfo(float).tiny):
        kind = Kind.BEYOND
    else:
        kind = Kind.RISING
    return Shape(kind, start, n_over, n, trend)


def _trend(values: npt.NDArray[np.float64]) -> str:
    third = len(values) // 3
    if third < 2:
        return ""
    early, late = float(np.median(values[:third])), float(np.median(values[-third:]))
    if not np.isfinite(early) or early <= 0:
        return ""
    ratio = late / early
    return "rising" if ratio >= GROWS else "falling" if ratio <= 1 / GROWS else "level"
