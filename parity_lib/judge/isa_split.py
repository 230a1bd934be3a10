"""How much of a delta is the engine's and how much the instruction set's: two engines on two targets, the same tokens.

For every logit there are four values, one for each engine and target. Their spread about their mean is the sum of three
parts, as in any experiment with two factors of two levels each: what changes with the engine whatever the target, what
changes with the target whatever the engine, and the rest, which changes when one engine minds the target and the other
does not. The parts are orthogonal, so their sums of squares add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import F32

ROWS = 64  # that are held in float64 at once
PAIRS = ("engine, first ISA target", "engine, second ISA target", "ISA target, reference", "ISA target, candidate")


@dataclass(frozen=True, slots=True)
class Pair:
    """The distance of two of the four."""

    name: str  # one of PAIRS
    rms_over_std: float  # of the delta, pooled over positions, in units of the reference's own row
    max_abs: float  # logits
    top1_share: float
    bit_equal: int  # positions


@dataclass(frozen=True, slots=True)
class Split:
    """One file's split. Shares are of the sum of squares and add up to 1; all are 0 where nothing differs."""

    file: str  # "as deployed" or "F32 twin": what the reference read
    positions: int
    pairs: tuple[Pair, ...]
    engine: float
    target: float
    both: float  # changes with the ISA target in one engine only, or differently


def split_rows(file: str, rows: Sequence[F32]) -> Split:
    """Return the split of four arrays of logits ``(n, n_vocab)``.

    Args:
        file: what the reference read.
        rows: reference and candidate on the first ISA target, reference and candidate on the second.

    Raises:
        TraceMismatchError: the arrays differ in shape, there are not four, or a logit is not finite.
    """
    shapes = {array.shape for array in rows}
    if len(rows) != 4 or len(shapes) != 1:
        raise TraceMismatchError("the four runs do not have the same rows", place=file, found=sorted(map(str, shapes)))
    n = len(rows[0])
    squares, sums = np.zeros(4), np.zeros(3)
    worst, top, equal = np.zeros(4), np.zeros(4, int), np.zeros(4, int)
    for start in range(0, n, ROWS):
        parts = [np.asarray(array[start : start + ROWS], np.float64) for array in rows]
        if not all(np.isfinite(part).all() for part in parts):
            raise TraceMismatchError("a logit is not finite, so no variance can be split", place=file)
        r1, c1, r2, c2 = parts
        std = r1.std(axis=1, keepdims=True)
        std = np.where(std == 0, 1.0, std)  # a constant row: its differences count in logits
        pairs = ((c1, r1), (c2, r2), (r2, r1), (c2, c1))
        for i, (right, left) in enumerate(pairs):
            delta = right - left
            squares[i] += ((delta / std) ** 2).mean(axis=1).sum()
            worst[i] = max(worst[i], np.abs(delta).max())
            top[i] += int((right.argmax(axis=1) == left.argmax(axis=1)).sum())
            equal[i] += int((delta == 0).all(axis=1).sum())
        engine, target, both = ((c1 + c2) - (r1 + r2)) / 2, ((r2 + c2) - (r1 + c1)) / 2, ((c2 - c1) - (r2 - r1)) / 2
        sums += [float(((part / std) ** 2).sum()) for part in (engine, target, both)]
    shares = sums / sums.sum() if sums.sum() > 0 else sums
    found = tuple(
        Pair(name, float(np.sqrt(squares[i] / n)), float(worst[i]), float(top[i] / n), int(equal[i]))
        for i, name in enumerate(PAIRS)
    )
    return Split(file, n, found, *(float(share) for share in shares))
