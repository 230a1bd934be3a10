"""Traces: an engine's run, and the top and statistics of its logit row at each scored position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import TOP_STORED
from parity_lib.records.runs import RunInfo

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

LOGIT_ARRAYS = (
    "prompt_idx",
    "token_idx",
    "fed_id",
    "topk_ids",
    "topk_logits",
    "logsumexp",
    "std",
    "mean",
    "n_nonfinite",
    "row_sha256",
)
"""The arrays of a ``LogitTrace``, by field name; all have one row for each position."""

PAIR_ARRAYS = (
    "candidate_at_reference",
    "reference_at_candidate",
    "rms",
    "max_abs",
    "max_id",
    "kl_ref_cand",
    "kl_cand_ref",
    "jsd",
)
"""The arrays of a ``PairTrace`` beside those of its two sides."""


@dataclass(frozen=True, slots=True, eq=False)
class LogitTrace:
    """One engine's rows. All arrays have ``n`` rows, one for each scored position, in fed order."""

    run: RunInfo
    n_vocab: int
    prompt_idx: I32  # (n,)
    token_idx: I32  # (n,): 0 is the row after the last prompt token; prompt positions are negative
    fed_id: I32  # (n,): the token that was fed to get this row
    topk_ids: I32  # (n, 64): logit descending, ties by lower id; NaN counts as lowest
    topk_logits: F32  # (n, 64)
    logsumexp: F64  # (n,)
    std: F64  # (n,): standard deviation of the row, the unit of relative errors
    mean: F64  # (n,): mean of the row; it moves from row to row by more than a row spreads
    n_nonfinite: I32  # (n,)
    row_sha256: npt.NDArray[np.uint8]  # (n, 32)

    def __post_init__(self) -> None:
        n = len(self.prompt_idx)
        for name in LOGIT_ARRAYS:
            array = getattr(self, name)
            if len(array) != n:
                raise TraceMismatchError("a trace's arrays differ in length", place=name, expected=n, found=len(array))
            array.setflags(write=False)
        width = min(TOP_STORED, self.n_vocab)
        if self.topk_ids.shape != (n, width) or self.topk_logits.shape != (n, width):
            raise TraceMismatchError(
                "the stored top has another width", place="topk_ids", expected=(n, width), found=self.topk_ids.shape
            )

    def __len__(self) -> int:
        return len(self.prompt_idx)

    def take(self, rows: npt.NDArray[np.integer]) -> LogitTrace:
        """Return a trace of these rows, in this order."""
        return replace(self, **{name: getattr(self, name)[rows] for name in LOGIT_ARRAYS})


@dataclass(frozen=True, slots=True, eq=False)
class PairTrace:
    """Reference and candidate on the same fed tokens, with statistics over the whole vocabulary.

    A delta is candidate minus reference. Formulas stand in ``numerics/metrics.py``.
    """

    reference: LogitTrace
    candidate: LogitTrace
    candidate_at_reference: F32  # (n, 64): candidate's logits at the reference's top ids
    reference_at_candidate: F32  # (n, 64)
    rms: F64  # (n,)
    max_abs: F64  # (n,)
    max_id: I32  # (n,): where max_abs is reached
    kl_ref_cand: F64  # (n,) nats
    kl_cand_ref: F64  # (n,) nats
    jsd: F64  # (n,) nats
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pairs = (("prompt_idx", "prompt index"), ("token_idx", "token index"), ("fed_id", "fed token"))
        for name, words in pairs:
            ours, theirs = getattr(self.reference, name), getattr(self.candidate, name)
            if ours.shape != theirs.shape or not np.array_equal(ours, theirs):
                raise TraceMismatchError(
                    f"reference and candidate differ in {words}",
                    expected=f"{len(ours)} rows",
                    found=f"{len(theirs)} rows, or other values",
                    next_step="capture both sides again from the same fed tokens",
                )
        if self.reference.n_vocab != self.candidate.n_vocab:
            raise TraceMismatchError(
                "the vocabularies differ in size", expected=self.reference.n_vocab, found=self.candidate.n_vocab
            )
        for name in PAIR_ARRAYS:
            array = getattr(self, name)
            if len(array) != len(self.reference):
                raise TraceMismatchError(
                    "a pair's arrays differ in length", place=name, expected=len(self.reference), found=len(array)
                )
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.reference)

    def take(self, rows: npt.NDArray[np.integer]) -> PairTrace:
        """Return a pair of these rows, in this order."""
        taken: dict[str, Any] = {name: getattr(self, name)[rows] for name in PAIR_ARRAYS}
        return replace(self, reference=self.reference.take(rows), candidate=self.candidate.take(rows), **taken)


class Position(NamedTuple):
    """One scored row: which prompt, and which token counted from the first generated one."""

    prompt_idx: int
    token_idx: int  # 0 chooses the first generated token; prompt rows are -1, -2, ... backwards


def positions_of(trace: LogitTrace) -> tuple[Position, ...]:
    """Return the position of each row of a trace."""
    return tuple(map(Position, trace.prompt_idx.tolist(), trace.token_idx.tolist()))


def expected_positions(prompt_lengths: Sequence[int], generated_lengths: Sequence[int]) -> tuple[Position, ...]:
    """Return every position that a cell must score, from the requested lengths, not from the rows that came back.

    A prompt of P tokens with G generated ones is fed P + G - 1 tokens and gives as many rows.
    Prompt indices are 0, 1, 2, ...; the result is in fed order.

    Raises:
        TraceMismatchError: the lists differ in length, or a prompt or its continuation is empty.

    >>> [tuple(position) for position in expected_positions([2], [3])]
    [(0, -1), (0, 0), (0, 1), (0, 2)]
    """
    if len(prompt_lengths) != len(generated_lengths):
        raise TraceMismatchError(
            "prompts and continuations differ in number", expected=len(prompt_lengths), found=len(generated_lengths)
        )
    positions: list[Position] = []
    for prompt_idx, (n_prompt, n_generated) in enumerate(zip(prompt_lengths, generated_lengths, strict=True)):
        if n_prompt < 1 or n_generated < 1:
            raise TraceMismatchError(
                "a prompt or its continuation is empty",
                place=f"prompt {prompt_idx}",
                expected="at least one token each",
                found=f"{n_prompt} and {n_generated}",
            )
        positions += [Position(prompt_idx, row - (n_prompt - 1)) for row in range(n_prompt + n_generated - 1)]
    return tuple(positions)
