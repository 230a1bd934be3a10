"""How far two values of one op are apart, as the limits of rung T3 count it, and what of a value decides that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from parity_lib.base.record import Record
from parity_lib.numerics.op_error import CHANNEL_LIMIT, EXACT_OPS, POSITION_LIMIT, TENSOR_LIMIT, OpError, op_has_keys
from parity_lib.records.traces import F32, F64

TENSOR, POSITION, CHANNEL, EXACT = "tensor", "position", "channel", "exact"


class Limit(Record, frozen=True):
    """The limit of an op that was passed by most."""

    kind: Annotated[str, Meta(pattern="^(tensor|position|channel|exact)$")]
    value: float
    energy: float  # mean square of the reference over what the limit pools


@dataclass(frozen=True, slots=True)
class Worst:
    """The number that shows best what is over that limit."""

    row: int  # of the pass
    head: int  # query head inside of attention, else 0
    channel: int  # of the row, or of the head inside of attention


def passed_limit(error: OpError, reference: F32) -> Limit:
    """Return the limit that an op's error passes by most, or is nearest to.

    Args:
        error: of the op.
        reference: its value, ``(n_positions, width)`` or ``(n_head, n_positions, width)``.
    """
    squares = np.square(reference, dtype=np.float64)
    if error.op in EXACT_OPS:
        return Limit(EXACT, 0.0, float(squares.mean()))
    _, value = max(error.cases, key=lambda case: case[0] / case[1])
    kind = {TENSOR_LIMIT: TENSOR, POSITION_LIMIT: POSITION, CHANNEL_LIMIT: CHANNEL}[value]
    return Limit(kind, value, float(_pool(squares, kind, error).mean()))


def worst_number(error: OpError, reference: F32, candidate: F32, limit: Limit) -> Worst:
    """Return the number of the limit's pool that is farthest off, as ``distance`` counts it for one number.

    Where the limit pools rows, the worst of them comes first.
    """
    squares = squared(reference, candidate)
    row_squares = np.where(squares > 0, squares, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = squares / np.maximum(limit.energy, np.square(reference, dtype=np.float64))
    squares[row_squares == 0] = 0.0
    if squares.ndim == 2:
        squares = squares[np.newaxis]
    allowed = np.zeros(squares.shape, bool)
    _pool(allowed if reference.ndim == 3 else allowed[0], limit.kind, error)[...] = True
    squares = np.where(allowed, squares, -1.0)
    if limit.kind == TENSOR:
        worst_row = row_squares.sum((0, 2) if reference.ndim == 3 else 1).argmax()
        squares = np.where(np.arange(squares.shape[1])[:, np.newaxis] == worst_row, squares, -1.0)
    head, row, channel = np.unravel_index(int(squares.argmax()), squares.shape)
    return Worst(int(row), int(head), int(channel))


def distance(limit: Limit, reference: npt.ArrayLike, candidate: npt.ArrayLike, judged: Sequence[int]) -> float:
    """Return the mean square difference of the judged numbers over the mean square of the reference: held to the limit.

    The mean square is that of all that the limit pools, or of the judged numbers where that is larger: a few large
    numbers of many have larger rounding errors than most.
    """
    places = list(judged)
    theirs = np.asarray(reference, np.float64)[places]
    mean = float(squared(theirs, np.asarray(candidate)[places]).mean())
    if mean == 0:
        return 0.0
    own = float(np.square(theirs).mean())
    energy = max(limit.energy, own) if math.isfinite(own) else limit.energy
    return mean / energy if energy > 0 else math.inf


def squared(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> F64:
    """Return squared differences; 0 where both are the same, also both NaN, infinite where only one is finite."""
    theirs, ours = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(ours - theirs)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    found: F64 = np.where(same, 0.0, np.nan_to_num(squares, nan=np.inf, posinf=np.inf))
    return found


def _pool(values: npt.NDArray[Any], kind: str, error: OpError) -> npt.NDArray[Any]:
    """Return a view of what a limit pools."""
    if kind in (TENSOR, EXACT):
        return values
    if kind == POSITION:
        return values[..., error.position - error.first_position, :]
    if values.ndim == 2:
        return values[:, error.channel]
    if op_has_keys(error.site):
        whole_head: npt.NDArray[Any] = values[error.channel]
        return whole_head
    head, channel = divmod(error.channel, values.shape[-1])
    pool: npt.NDArray[Any] = values[head, :, channel]
    return pool
