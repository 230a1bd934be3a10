"""Rung T3: is every op right by itself? Its error on the reference's own inputs: tensor, worst position, worst channel.

All three are normalised mean square errors: sum of (candidate - reference)^2 over sum of reference^2, in float64. The
tensor's says whether the op is the same function, the worst position finds a fault in one row (a cache slot, a mask),
the worst channel finds one wrong weight row, which the other two drown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity_lib.errors import TraceMismatchError
from parity_lib.names import Kind, Outcome, Rung
from parity_lib.traces import F32, F64
from parity_lib.verdicts import Divergence, RungResult

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
SOURCE = "parity kernels: llama.cpp to float64, AVX-512 (4.8e-13, 2.4e-12, 4.6e-9), times 4, 4, 21; others exactly"


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


def op_error(site: str, op: str, batch: int, first_position: int, reference: F32 | F64, candidate: F32) -> OpError:
    """Compare one value, ``(n_positions, n_channels)`` or ``(n_heads, n_positions, n_channels)``.

    With heads, a position is pooled over heads. Channels are those of a head, or whole heads where the last dimension
    counts keys (``kq``, ``kq_soft_max``): few rows see the last keys.
    A NaN or an infinity on a side that does not stand on the other makes all numbers infinite.

    Raises:
        TraceMismatchError: the shapes differ or hold nothing.
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
    heads = (0,) if reference.ndim == 3 else ()
    by_position = _ratio(squares.sum((*heads, -1)), energy.sum((*heads, -1)))
    rows = (-1, -2) if op_has_keys(site) else (-2,)
    by_channel = _ratio(squares.sum(rows), energy.sum(rows)).reshape(-1)
    position, channel = int(np.argmax(by_position)), int(np.argmax(by_channel))
    return OpError(
        site=site,
        op=op,
        batch=batch,
        first_position=first_position,
        n_values=reference.size,
        nmse=float(_ratio(squares.sum(), energy.sum())),
        position=first_position + position,
        position_nmse=float(by_position[position]),
        channel=channel,
        channel_nmse=float(by_channel[channel]),
        max_abs=float(np.abs(difference).max()),
        by_position=by_position,
    )


def _ratio(squares: F64, energy: F64) -> F64:
    """Return squares / energy; 0 where nothing differs, infinite where something does and there is no energy."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(squares == 0, 0.0, squares / energy)
    return np.where(np.isnan(ratio), math.inf, ratio)


def op_has_keys(site: str) -> bool:
    """Return whether the last dimension of a site counts keys, not channels."""
    return site.partition("-")[0] in ("kq", "kq_soft_max")


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """All ops of one sequence, replayed, and how many there had to be."""

    prompt_idx: int
    n_prompt: int  # tokens of the prompt: position p of the sequence is token_idx p - (n_prompt - 1)
    settings: str  # of the reference
    batches: tuple[int, ...]  # rows of each pass
    expected: int  # ops in all passes, from the file's facts
    errors: tuple[OpError, ...]  # in the order in which they ran
    weights_in: Mapping[str, int] = field(default_factory=dict)  # the reference's buffers -> products from it


def judge_ops(replays: Sequence[Replayed]) -> tuple[RungResult, list[Divergence]]:
    """Judge rung T3. Each op over a limit is a divergence; the first in each sequence's order is the first to be wrong.

    Returns:
        The rung, counted in ops; its worst case is the op that uses up most of its limit. A sequence without ops, or
        with fewer than its file's facts promise, leaves the rung INCOMPLETE by its count.
    """
    divergences = [_divergence(replay, error) for replay in replays for error in replay.errors if not error.share <= 1]
    expected = sum(replay.expected for replay in replays)
    compared = sum(len(replay.errors) for replay in replays)
    worst = max(_all(replays), key=lambda pair: (pair[1].share, pair[1].nmse), default=None)
    rung = RungResult(
        rung=Rung.T3,
        outcome=Outcome.DIVERGED if divergences else Outcome.PARITY if compared else Outcome.INCOMPLETE,
        expected=expected,
        compared=compared,
        worst=None if worst is None else _worst(worst[1])[0],
        limit=None if worst is None else _worst(worst[1])[1],
        unit="NMSE",
        worst_where="" if worst is None else f"{worst[1].site}, prompt {worst[0].prompt_idx}, {worst[1].phase}",
        source=SOURCE,
    )
    return rung, divergences


def kinds(replays: Sequence[Replayed]) -> dict[str, dict[str, Any]]:
    """Return, for each kind of op in prefill and in decode, how many were replayed and the worst of them."""
    worst: dict[str, dict[str, Any]] = {}
    for replay, error in _all(replays):
        held = worst.setdefault(f"{error.kind} {error.phase} {replay.settings}", {"ops": 0, "over": 0, "share": -1.0})
        held["ops"] += 1
        held["over"] += not error.share <= 1
        if not error.share <= held["share"]:
            held |= {
                "op": error.op,
                "share": error.share,
                "site": error.site,
                "prompt_idx": replay.prompt_idx,
                "token_idx": error.position - (replay.n_prompt - 1),
                "nmse": error.nmse,
                "position_nmse": error.position_nmse,
                "channel_nmse": error.channel_nmse,
            }
    return worst


def _all(replays: Sequence[Replayed]) -> Iterable[tuple[Replayed, OpError]]:
    return ((replay, error) for replay in replays for error in replay.errors)


def _worst(error: OpError) -> tuple[float, float]:
    """Return value and limit of the number of an op that is nearest to its limit, or farthest beyond it."""
    if error.op in EXACT_OPS:
        return error.nmse, 0.0
    return max(error.cases, key=lambda case: case[0] / case[1])


def _divergence(replay: Replayed, error: OpError) -> Divergence:
    value, limit = _worst(error)
    return Divergence(
        rung=Rung.T3,
        kind=Kind.OP,
        limit=limit,
        prompt_idx=replay.prompt_idx,
        token_idx=error.position - (replay.n_prompt - 1),
        where=error.site,
        delta=value,
        note=f"{error.op}, {error.phase} of {replay.settings}: NMSE {error.nmse:.2g}, worst position "
        f"{error.position_nmse:.2g}, worst channel {error.channel} {error.channel_nmse:.2g}",
    )
