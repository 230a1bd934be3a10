"""Rung T2: is every value of every tensor the reference's, to the last bit? Tensors stream by one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.records.traces import F32
from parity_lib.records.verdicts import Divergence, RungResult

_CHUNK = 1 << 22  # values compared at once: 16 MB a side, and the candidate's whole tensor need not be twice in memory


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What the file's header promises about a tensor: the count that the comparison has to reach."""

    name: str
    type: str  # ggml's name
    n_values: int
    block_size: int  # values in one block of the type


@dataclass(frozen=True, slots=True)
class TensorResult:
    """One tensor compared."""

    name: str
    n_compared: int
    n_candidate: int  # values that the candidate gave
    n_different: int
    max_ulp: float  # largest distance; infinite where a NaN has other bits or stands on one side only
    first_index: int | None = None  # of the first value that differs
    first_reference: float | None = None
    first_candidate: float | None = None
    first_bits: tuple[int, int] | None = None


def compare_tensor(name: str, reference: F32, candidate: F32) -> TensorResult:
    """Compare two dequantised tensors bit by bit, as far as both go; ``judge_weights`` asks for the full count.

    Args:
        name: the tensor's name in the file.
        reference: float32 values in the file's order, any shape.
        candidate: the same, of the other engine.

    Raises:
        TraceMismatchError: one of them is not float32.
    """
    for side in (reference, candidate):
        if side.dtype != np.float32:
            raise TraceMismatchError("a tensor is not float32", place=name, expected="float32", found=side.dtype)
    ours, theirs = (np.ascontiguousarray(side).reshape(-1).view(np.int32) for side in (candidate, reference))
    n = min(len(ours), len(theirs))
    n_different, max_ulp, first = 0, 0.0, None
    for start in range(0, n, _CHUNK):
        a, b = theirs[start : min(start + _CHUNK, n)], ours[start : min(start + _CHUNK, n)]
        where = np.flatnonzero(a != b)
        if len(where):
            first = start + int(where[0]) if first is None else first
            n_different += len(where)
            max_ulp = max(max_ulp, float(ulp_distance(a[where].view(np.float32), b[where].view(np.float32)).max()))
    if first is None:
        return TensorResult(name, n, len(ours), 0, 0.0)
    bits = (int(theirs[first]) & 0xFFFFFFFF, int(ours[first]) & 0xFFFFFFFF)
    values = (float(theirs[first : first + 1].view(np.float32)[0]), float(ours[first : first + 1].view(np.float32)[0]))
    return TensorResult(name, n, len(ours), n_different, max_ulp, first, *values, bits)


def ulp_distance(reference: F32, candidate: F32) -> npt.NDArray[np.float64]:
    """Return how many float32 numbers lie between two values, plus one; 0 only for the same bits.

    The bits of a float32 count upwards with its size, so that the distance is the difference of the bits, with
    the negative half mirrored: +0 and -0 are 1 apart. A NaN is infinitely far from everything but its own bits.
    """
    a, b = (side.view(np.int32).astype(np.int64) for side in (reference, candidate))
    rank_a, rank_b = (np.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) for bits in (a, b))
    distance = np.abs(rank_a - rank_b).astype(np.float64)
    either_nan = np.isnan(reference) | np.isnan(candidate)
    return np.where(either_nan & (a != b), np.inf, distance)


def judge_weights(
    expected: Sequence[TensorSpec], results: Sequence[TensorResult]
) -> tuple[RungResult, list[Divergence]]:
    """Return T2's result and one TENSOR divergence for each tensor that is not equal; the limit is 0 ULP.

    Counts are of tensors. A tensor counts as compared if all its values were; a missing, shorter, repeated or
    unexpected one leaves the rung INCOMPLETE and is named.
    """
    by_name = {result.name: result for result in results}
    names = [result.name for result in results]
    causes = [f"{name} was compared twice" for name in sorted(set(names)) if names.count(name) > 1]
    causes += [f"{name} is not in the file" for name in sorted(set(names) - {spec.name for spec in expected})]
    divergences, n_compared, n_values, n_blocks = [], 0, 0, 0
    for spec in expected:
        result = by_name.get(spec.name)
        if result is None:
            causes.append(f"{spec.name} was not compared")
        elif not spec.n_values == result.n_compared == result.n_candidate:
            causes.append(
                f"{spec.name}: compared {result.n_compared} of {spec.n_values} values, burn gave {result.n_candidate}"
            )
        else:
            n_compared += 1
            n_values += spec.n_values
            n_blocks += -(-spec.n_values // spec.block_size)
        if result is not None and result.n_different:
            divergences.append(_divergence(spec, result))
    if not expected:
        causes.append("the file has no tensor")
    worst = max(results, key=lambda result: result.max_ulp, default=None)
    outcome = Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if causes else Outcome.PARITY
    return (
        RungResult(
            rung=Rung.T2,
            outcome=outcome,
            expected=len(expected),
            compared=n_compared,
            worst=None if worst is None else worst.max_ulp,
            limit=0.0,
            unit="ULP",
            worst_where=worst.name if worst is not None and worst.max_ulp > 0 else "",
            source="bit-equal to gguf.dequantize",
            note="; ".join([f"{n_values} values in {n_blocks} blocks", *causes]),
        ),
        divergences,
    )


def _divergence(spec: TensorSpec, result: TensorResult) -> Divergence:
    index, bits = result.first_index, result.first_bits
    assert index is not None
    assert bits is not None
    return Divergence(
        rung=Rung.T2,
        kind=Kind.TENSOR,
        limit=0.0,
        where=spec.name,
        delta=result.max_ulp,
        note=(
            f"{spec.type}: {result.n_different} of {spec.n_values} values differ, the first at {index} "
            f"(block {index // spec.block_size}): llama.cpp {result.first_reference!r} (0x{bits[0]:08x}), "
            f"burn {result.first_candidate!r} (0x{bits[1]:08x})"
        ),
    )
