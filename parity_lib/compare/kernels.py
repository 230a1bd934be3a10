"""The baseline of each kernel: how far an op of either engine is from float64 on the same inputs.

Rung T3's limits stand on it. An op that is the same function on both sides differs by the rounding of two float32
computations; what that comes to on real weights is measured here, for each op and each type of weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from parity_lib.compare.ops import CHANNEL_LIMIT, FEW_ROWS, POSITION_LIMIT, TENSOR_LIMIT, OpError, op_has_keys


@dataclass(frozen=True, slots=True, eq=False)
class KernelErrors:
    """One op of one pass."""

    type: str  # of its weight, ggml's name; empty: it has none
    reference: OpError  # to float64
    candidate: OpError  # to float64
    between: OpError  # candidate to reference


@dataclass(frozen=True, slots=True)
class Worst:
    """The largest numbers of some ops, normalised mean square errors; tensor and channel of passes of many rows."""

    tensor: float
    position: float
    channel: float


@dataclass(frozen=True, slots=True)
class Kernel:
    """All ops of one kind."""

    name: str  # ggml's op, with the type of its weight or what it is for
    n_ops: int
    reference: Worst
    candidate: Worst
    between: Worst
    share: float  # of T3's limits that ``between`` uses up


def kernels(errors: Sequence[KernelErrors]) -> list[Kernel]:
    """Pool ops by kind, in the order in which a pass comes to them first."""
    kinds: dict[str, list[KernelErrors]] = {}
    for error in errors:
        kinds.setdefault(_name(error), []).append(error)
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


def _name(error: KernelErrors) -> str:
    op = error.between
    if op.op == "MUL_MAT":
        return f"MUL_MAT {error.type or ('keys' if op_has_keys(op.site) else 'values')}"
    return {"MUL": "RMS_NORM, MUL", "GLU": "GLU swiglu"}.get(op.op, op.op)


def _worst(errors: Iterable[OpError]) -> Worst:
    tensor = position = channel = 0.0
    for error in errors:
        position = max(position, error.position_nmse)
        if len(error.by_position) >= FEW_ROWS:
            tensor, channel = max(tensor, error.nmse), max(channel, error.channel_nmse)
    return Worst(tensor, position, channel)
