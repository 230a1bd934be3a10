"""Compare two sets of logit rows of the same tokens bit by bit; measure how and where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.numerics.metrics import top_k
from parity_lib.records.traces import F32, Position

BLOCK_ROWS = 256


@dataclass(frozen=True, slots=True)
class Part:
    """The first logit at which two rows differ."""

    position: Position
    token: int  # the id of the logit
    first: float
    second: float


@dataclass(frozen=True, slots=True)
class BitDifference:
    """How two sets of rows compare. The first is what is compared with."""

    n_rows: int
    n_vocab: int
    equal_rows: int  # all bits equal, a NaN's too
    equal_logits: int
    part: Part | None  # None: all equal
    max_abs: float  # over logits that are finite on both sides
    rms_over_std: float  # of the difference, pooled, over the first's pooled standard deviation; same logits
    same_top1: int  # rows; a row with a NaN has none
    nonfinite: tuple[int, int]  # logits that are no number, on each side

    @property
    def equal(self) -> bool:
        """Return whether every bit is equal, of at least one row."""
        return self.n_rows > 0 and self.equal_rows == self.n_rows


def compare_bits(first: F32, second: F32, positions: Sequence[Position]) -> BitDifference:
    """Compare two sets of rows, ``(n, n_vocab)`` float32 each, of the same positions; a block in memory at a time.

    >>> first = np.zeros((1, 3), np.float32)
    >>> second = np.array([[0.0, 0.0, 0.25]], np.float32)
    >>> found = compare_bits(first, second, [Position(0, -1)])
    >>> found.equal, found.equal_logits, found.part
    (False, 2, Part(position=Position(prompt_idx=0, token_idx=-1), token=2, first=0.0, second=0.25))
    """
    assert first.shape == second.shape, "rows of the same tokens"
    assert len(first) == len(positions), "a position for each row"
    n_rows, n_vocab = first.shape
    equal_rows = equal_logits = same_top1 = n_finite = 0
    square = variance = max_abs = 0.0
    wrong = [0, 0]
    part: Part | None = None
    for start in range(0, n_rows, BLOCK_ROWS):
        a, b = np.asarray(first[start : start + BLOCK_ROWS]), np.asarray(second[start : start + BLOCK_ROWS])
        same = a.view(np.uint32) == b.view(np.uint32)
        equal_logits += int(same.sum())
        equal_rows += int(same.all(axis=1).sum())
        if part is None and not same.all():
            row, token = (int(index) for index in np.argwhere(~same)[0])
            part = Part(positions[start + row], token, float(a[row, token]), float(b[row, token]))
        finite_a, finite_b = np.isfinite(a), np.isfinite(b)
        wrong = [wrong[0] + int((~finite_a).sum()), wrong[1] + int((~finite_b).sum())]
        both = finite_a & finite_b
        n_finite += int(both.sum())
        wide = np.where(both, a.astype(np.float64), 0.0)
        delta = np.where(both, b.astype(np.float64), 0.0) - wide
        max_abs = max(max_abs, float(np.abs(delta).max()))
        square += float(np.square(delta).sum())
        means = wide.sum(1, keepdims=True) / np.maximum(both.sum(1, keepdims=True), 1)
        centred = np.where(both, wide - means, 0.0)
        variance += float(np.square(centred).sum())
        sound = both.all(axis=1)
        same_top1 += int((top_k(a[sound], 1) == top_k(b[sound], 1)).sum())
    rms = float(np.sqrt(square / variance)) if variance else (0.0 if n_finite else float("nan"))
    nonfinite = (wrong[0], wrong[1])
    return BitDifference(n_rows, n_vocab, equal_rows, equal_logits, part, max_abs, rms, same_top1, nonfinite)
