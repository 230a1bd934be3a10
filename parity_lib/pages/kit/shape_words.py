"""The shape of an error over positions, in words: the same on the page of a cell and on the page of a trace."""

from __future__ import annotations

from collections import Counter

from parity_lib.judge.drift_shape import Kind, Shape
from parity_lib.pages.kit.text import count


def shape_words(shape: Shape) -> str:
    """Return a shape in half a sentence, ``zero at position 0 and rising``."""
    trend = "" if shape.trend in ("", "level") else f", {shape.trend}"
    match shape.kind:
        case Kind.FLAT if trend:
            return f"over from position 0 on{trend}"
        case Kind.RISING if shape.trend in ("level", "falling"):
            return f"zero at position 0, over from {_starts(shape)} on{trend}"
        case Kind.BEYOND:
            return f"inside up to position {min(shape.starts) - 1}, over from {_starts(shape)} on"
        case Kind.ERRATIC:
            first = f", the first {shape.starts[0]}" if len(shape.starts) == 1 else ""
            return f"erratic: {count(shape.n_over)} of {count(shape.n)} positions{first}"
        case Kind.MIXED:
            return f"{shape.kind}: {kinds_words(shape)}"
    return str(shape.kind)


def kinds_words(shape: Shape) -> str:
    """Return each kind with the number of its sequences, the most common first."""
    return "; ".join(f"{kind} in {n}" for kind, n in Counter(shape.kinds).most_common())


def _starts(shape: Shape) -> str:
    low, high = min(shape.starts), max(shape.starts)
    return f"position {low}" if low == high else f"positions {low} to {high}"
