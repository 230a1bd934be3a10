"""The baseline of each kernel: how far an op of either engine is from float64 on the same inputs.

Rung T3's limits stand on it. An op that is the same function on both sides differs by the rounding of two float32
computations; what that comes to on real weights is measured here, for each op and each type of weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity_lib.numerics.kernel_noise import KEYS, VALUES, WEIGHT, of_op
from parity_lib.numerics.op_error import (
    CHANNEL_LIMIT,
    EXACT_OPS,
    FEW_ROWS,
    POSITION_LIMIT,
    TENSOR_LIMIT,
    KernelErrors,
    OpError,
    op_has_keys,
)
from parity_lib.records.isa_evidence import LLAMA_CPP
from parity_lib.records.kernel_baseline import KernelVariance

EXACT = "moves, sums"  # what rounds at most once: equal to the bit, or wrong


@dataclass(frozen=True, slots=True)
class Worst:
    """The largest numbers of some ops, normalised mean square errors; None: none was measured.

    Tensor and channel are of passes of many rows, as T3 judges them.
    """

    tensor: float | None
    position: float | None
    channel: float | None


@dataclass(frozen=True, slots=True)
class Kernel:
    """All ops of one kind."""

    name: str  # ggml's op, with the type of its weight or what it is for, and its buffer where it is re-ordered
    n_ops: int
    reference: Worst
    candidate: Worst
    between: Worst
    share: float  # of T3's limits that ``between`` uses up


def kernels(errors: Sequence[KernelErrors], plain: Iterable[str]) -> list[Kernel]:
    """Pool ops by kind, in the order in which a pass comes to them first.

    Args:
        errors: of one run.
        plain: names of buffers that hold weights as the file does.
    """
    kinds: dict[str, list[KernelErrors]] = {}
    for error in errors:
        kinds.setdefault(_name(error, frozenset(plain)), []).append(error)
    return [
        Kernel(
            name=name,
            n_ops=len(held),
            reference=_worst(error.reference for error in held),
            candidate=_worst(error.candidate for error in held),
            between=_worst(error.between for error in held),
            share=max(error.between.share for error in held),
        )
        for name, held in kinds.items()
    ]


def limits() -> Worst:
    """Return rung T3's limits."""
    return Worst(TENSOR_LIMIT, POSITION_LIMIT, CHANNEL_LIMIT)


def _name(error: KernelErrors, plain: frozenset[str]) -> str:
    op = error.between
    if op.op in EXACT_OPS:
        return EXACT
    if op.op == "MUL_MAT":
        name = f"MUL_MAT {error.type or ('keys' if op_has_keys(op.site) else 'values')}"
        return name if error.buffer in plain else f"{name} {error.buffer}"
    return of_op(op.op)


def _worst(errors: Iterable[OpError | None]) -> Worst:
    measured = [error for error in errors if error is not None]
    many = [error for error in measured if len(error.by_position) >= FEW_ROWS]
    return Worst(
        tensor=max((error.nmse for error in many), default=None),
        position=max((error.position_nmse for error in measured), default=None),
        channel=max((error.channel_nmse for error in many), default=None),
    )


def variances(errors: Iterable[KernelErrors], side: str, model: str, quant: str) -> list[KernelVariance]:
    """Return the mean and the worst variance of one engine's kernels, by kernel and length of its sums.

    Args:
        errors: of every op on F32 weights.
        side: ``llama.cpp`` or ``burn``.
        model: that they were measured on.
        quant: of its deployed file.
    """
    found: dict[tuple[str, int], list[float]] = {}
    for error in errors:
        noise = error.reference_noise if side == LLAMA_CPP else error.candidate_noise
        if noise is not None:
            found.setdefault((_kernel(error), error.length), []).append(noise)
    return [
        KernelVariance(kernel, length, len(noise), sum(noise) / len(noise), max(noise), model, quant)
        for (kernel, length), noise in sorted(found.items())
    ]


def _kernel(error: KernelErrors) -> str:
    op = error.between
    if op.op == "MUL_MAT":
        return WEIGHT if error.type else KEYS if op_has_keys(op.site) else VALUES
    return of_op(op.op)
