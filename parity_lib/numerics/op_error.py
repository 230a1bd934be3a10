"""The error of one op on the same inputs: normalised mean squares of the tensor, its worst position and channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import F32, F64

TENSOR_LIMIT, POSITION_LIMIT, CHANNEL_LIMIT = 2e-12, 1e-11, 1e-7
"""llama.cpp's own worst kernels are 4.8e-13, 2.4e-12 (both Q4_1) and 4.6e-9 (Q6_K) away from float64 on one input:
``parity kernels`` on real weights and random ones of every type, two prompts, llama.cpp 0c1e570, AVX-512 (decision 6).
So much a float32 sum rounds. The limits are four times that, 21 times for a channel, where a sum may nearly cancel."""
EXACT_OPS = frozenset({"GET_ROWS", "ADD", "CONT", "RESHAPE"})
"""Ops that move values or add two of them once: there is one right answer, to the bit."""
FEW_ROWS = 16
"""A pass of fewer rows, so a decode, is judged by its positions alone. One number near zero would decide a channel's
ratio, and the tensor is no average: single rows of sound ops reach 3e-12 (all eleven prompts of SmolLM2-135M, Q4_1,
Q4_K_M, Q8_0). A wrong channel shows in its position: 1e-4 off in one channel of a thousand is 1e-11 of the row."""
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class OpError:
    """One op of one pass, replayed."""

    site: str
    op: str  # ggml's name
    batch: int
    first_position: int  # of the pass
    n_values: int
    nmse: float
    position: int  # the worst one, in the sequence
    position_nmse: float
    channel: int  # the worst one
    channel_nmse: float
    max_abs: float
    by_position: F64  # (n_positions,)
    lost: int | None = None  # first position that was not judged: the reference's values are not finite up to here
    n_lost: int = 0  # positions that were not

    @property
    def kind(self) -> str:
        """Return the site without its block."""
        name, dash, block = self.site.rpartition("-")
        return name if dash and block.isdecimal() else self.site

    @property
    def phase(self) -> str:
        """Return ``decode`` for a pass of one row, else ``prefill``."""
        return "decode" if len(self.by_position) == 1 else "prefill"

    @property
    def share(self) -> float:
        """Return how much of its limits this op uses up, at most one of them: above 1 it is over. 0 where exact."""
        if self.op in EXACT_OPS:
            return 0.0 if self.nmse == 0 else math.inf
        return max(value / limit for value, limit in self.cases)

    @property
    def cases(self) -> tuple[tuple[float, float], ...]:
        """Return the numbers that this op is judged by, each with its limit."""
        position = (self.position_nmse, POSITION_LIMIT)
        if len(self.by_position) < FEW_ROWS:
            return (position,)
        return ((self.nmse, TENSOR_LIMIT), position, (self.channel_nmse, CHANNEL_LIMIT))


def op_error(
    site: str,
    op: str,
    batch: int,
    first_position: int,
    reference: F32 | F64,
    candidate: F32,
    lost: Flags | None = None,
    summed: F64 | None = None,
) -> OpError:
    """Compare one value, ``(n_positions, n_channels)`` or ``(n_heads, n_positions, n_channels)``.

    With heads, a position is pooled over heads. Channels are those of a head, or whole heads where the last dimension
    counts keys (``kq``, ``kq_soft_max``): few rows see the last keys.
    A NaN or an infinity on a side that does not stand on the other makes all numbers infinite.

    Args:
        site: name of the value.
        op: ggml's name of what made it.
        batch: number of the pass.
        first_position: of the pass.
        reference: the reference's value.
        candidate: the candidate's.
        lost: positions that are left out, ``(n_positions,)``: the reference has no finite value there to compare with.
            By default those where both sides have the same value that is not finite.
        summed: for each value the sum of the squares of what it is a sum of, shaped as the reference: an error is
            divided by at least that. Rounding goes by what is summed, so where one large channel happens to cancel, a
            row is smaller than its rounding allows.

    Raises:
        TraceMismatchError: the shapes differ or hold nothing.

    >>> reference = np.full((2, 4), 2.0, np.float32)
    >>> candidate = reference.copy()
    >>> candidate[1, 3] += 0.5
    >>> found = op_error("ffn_out-0", "MUL_MAT", 0, 10, reference, candidate)
    >>> found.nmse, (found.position, found.position_nmse), (found.channel, found.channel_nmse)
    (0.0078125, (11, 0.015625), (3, 0.03125))
    """
    if reference.shape != candidate.shape or reference.size == 0:
        raise TraceMismatchError(
            "the engines give values of different shape", place=site, expected=reference.shape, found=candidate.shape
        )
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = candidate.astype(np.float64) - reference
    same = (candidate == reference) | (np.isnan(candidate) & np.isnan(reference))
    difference[same] = 0.0
    squares, energy = np.square(difference), np.square(reference, dtype=np.float64)
    if lost is None:
        lost = not_finite(np.where(same, reference, 0))  # equal, and yet no values that could agree
    else:
        for values in (difference, squares, energy, *([] if summed is None else [summed])):
            values[..., lost, :] = 0.0

    def ratio(axes: int | tuple[int, ...] | None) -> F64:
        scale = energy.sum(axes)
        return _ratio(squares.sum(axes), scale if summed is None else np.maximum(scale, summed.sum(axes)))

    heads = (0,) if reference.ndim == 3 else ()
    by_position = ratio((*heads, -1))
    rows = (-1, -2) if op_has_keys(site) else (-2,)
    by_channel = ratio(rows).reshape(-1)
    position, channel = int(np.argmax(by_position)), int(np.argmax(by_channel))
    return OpError(
        site=site,
        op=op,
        batch=batch,
        first_position=first_position,
        n_values=reference.size,
        nmse=float(ratio(None)),
        position=first_position + position,
        position_nmse=float(by_position[position]),
        channel=channel,
        channel_nmse=float(by_channel[channel]),
        max_abs=float(np.abs(difference).max()),
        by_position=by_position,
        lost=first_position + int(np.argmax(lost)) if lost.any() else None,
        n_lost=int(lost.sum()),
    )


def not_finite(values: F32 | F64) -> Flags:
    """Return the positions of a value, shaped as for ``op_error``, that hold a NaN or an infinity."""
    bad = ~np.isfinite(values).all(axis=-1)
    return np.asarray(bad.any(axis=0) if bad.ndim == 2 else bad)


def _ratio(squares: F64, energy: F64) -> F64:
    """Return squares / energy; 0 where squares are 0, infinite where only energy is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(squares == 0, 0.0, squares / energy)
    return np.where(np.isnan(ratio), math.inf, ratio)


def op_has_keys(site: str) -> bool:
    """Return whether the last dimension of a site counts keys, not channels."""
    return site.partition("-")[0] in ("kq", "kq_soft_max")


@dataclass(frozen=True, slots=True, eq=False)
class KernelErrors:
    """One op of one pass."""

    type: str  # of its weight, ggml's name; empty: it has none
    buffer: str  # where the reference had that weight
    reference: OpError | None  # to float64; None for an op that rounds nothing in between
    candidate: OpError | None  # to float64
    between: OpError  # candidate to reference
    length: int = 1  # terms of each sum, as ``OracleNodes.length`` counts them
    reference_noise: float | None = None  # mean square of the error to float64 over that of ``OracleNodes.scale``
    candidate_noise: float | None = None
