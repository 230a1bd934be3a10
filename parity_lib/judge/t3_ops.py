"""Rung T3: is every op right by itself? Its error on the reference's own inputs: tensor, worst position, worst channel.

All three are normalised mean square errors: sum of (candidate - reference)^2 over sum of reference^2, in float64. The
tensor's says whether the op is the same function, the worst position finds a fault in one row (a cache slot, a mask),
the worst channel finds one wrong weight row, which the other two drown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.numerics.op_error import EXACT_OPS, OpError
from parity_lib.records.hardness import Extreme
from parity_lib.records.measured import OpKind
from parity_lib.records.verdicts import Divergence, RungResult

SOURCE = "parity kernels: llama.cpp to float64, AVX-512 (4.8e-13, 2.4e-12, 4.6e-9), times 4, 4, 21; others exactly"


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
    reach: Mapping[str, Extreme] = field(default_factory=dict)  # how far the reference's values reach, by name


def judge_ops(replays: Sequence[Replayed]) -> tuple[RungResult, list[Divergence]]:
    """Judge rung T3. Each op over a limit is a divergence; the first in each sequence's order is the first to be wrong.

    Returns:
        The rung, counted in ops; its worst case is the op that uses up most of its limit. A sequence without ops, or
        with fewer than its file's facts promise, leaves the rung INCOMPLETE by its count. So does an op with a position
        that could not be judged, because the reference's own values are not finite there.
    """
    divergences = [_divergence(replay, error) for replay in replays for error in replay.errors if not error.share <= 1]
    expected = sum(replay.expected for replay in replays)
    compared = sum(not error.n_lost for _, error in _all(replays))
    lost = sum(error.n_lost > 0 for _, error in _all(replays))
    worst = max(_all(replays), key=lambda pair: (pair[1].share, pair[1].nmse), default=None)
    rung = RungResult(
        rung=Rung.T3,
        outcome=Outcome.DIVERGED if divergences else Outcome.PARITY if compared and not lost else Outcome.INCOMPLETE,
        expected=expected,
        compared=compared,
        worst=None if worst is None else _worst(worst[1])[0],
        limit=None if worst is None else _worst(worst[1])[1],
        unit="NMSE",
        worst_where="" if worst is None else f"{worst[1].site}, prompt {worst[0].prompt_idx}, {worst[1].phase}",
        source=SOURCE,
        note=f"{lost} of {expected} ops were not judged at each position: {non_finite_words(replays)}" if lost else "",
    )
    return rung, divergences


def non_finite_words(replays: Sequence[Replayed]) -> str:
    """Return where the reference's own values are first not finite, in words; empty where all of them are."""
    for replay, error in _all(replays):
        if error.lost is not None:
            place = f"prompt {replay.prompt_idx} token {error.lost - (replay.n_prompt - 1)}"
            return f"llama.cpp's values are first not finite at {error.site} ({error.op}), {place}, {error.phase}"
    return ""


def kinds(replays: Sequence[Replayed]) -> dict[str, OpKind]:
    """Return, for each kind of op in prefill and in decode, how many were replayed and the worst of them."""
    groups: dict[str, list[tuple[Replayed, OpError]]] = {}
    for replay, error in _all(replays):
        groups.setdefault(f"{error.kind} {error.phase} {replay.settings}", []).append((replay, error))
    return {name: _kind(found) for name, found in groups.items()}


def _kind(found: Sequence[tuple[Replayed, OpError]]) -> OpKind:
    replay, worst = max(found, key=lambda pair: math.inf if math.isnan(pair[1].share) else pair[1].share)
    return OpKind(
        ops=len(found),
        over=sum(not error.share <= 1 for _, error in found),
        share=worst.share,
        op=worst.op,
        site=worst.site,
        prompt_idx=replay.prompt_idx,
        token_idx=worst.position - (replay.n_prompt - 1),
        nmse=worst.nmse,
        position_nmse=worst.position_nmse,
        channel_nmse=worst.channel_nmse,
    )


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
