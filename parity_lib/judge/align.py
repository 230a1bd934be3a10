"""Put a pair of traces into the order of the expected positions, and name each missing or extra one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.names import TOP_JUDGED
from parity_lib.numerics.metrics import delta_of_tops
from parity_lib.records.traces import F64, I32, LogitTrace, PairTrace, Position

_SHOWN = 5  # positions named in a cause; the counts are always complete
CONSTANT = 1e-4
"""A row whose logits spread by at most so much of their size is constant: float32 rounds the spread of such a row to
1 % and worse, so nothing can be measured by it."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """The positions that were expected and found, in expected order: what gates, ledger and plots read."""

    n_expected: int
    causes: tuple[str, ...]  # why the comparison is incomplete; empty where every position is there once
    positions: tuple[Position, ...]
    pair: PairTrace  # (n rows), row i is position i
    first: Flags  # (n,): row 0 of its prompt
    delta: F64  # (n,) logits, candidate minus reference at delta_id
    delta_id: I32  # (n,) the id of the largest difference in the union of both top-5s
    finite: Flags  # (n,): no non-finite value on either side
    top1_equal: Flags  # (n,)
    top5_equal: Flags  # (n,) as a set

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def constant(self) -> Flags:
        """Return which rows of the reference are constant: every logit equal, but for rounding."""
        return constant_rows(self.pair.reference)

    @property
    def scale(self) -> F64:
        """Return the unit of relative errors at each position, logits, above 0: see ``row_scale``."""
        return row_scale(self.pair.reference)

    @property
    def step(self) -> F64:
        """Return one float32 step of the largest logit at each position: the smallest possible difference."""
        r, c = self.pair.reference.topk_logits, self.pair.candidate.topk_logits
        size = np.nan_to_num(np.maximum(np.abs(r), np.abs(c)).max(axis=1), nan=0.0, posinf=0.0)
        return np.asarray(np.spacing(size.astype(np.float32)), np.float64)

    def non_finite_words(self, i: int) -> str:
        """Return how many logits of row i are not finite on each side, and whose fault it is if it is one side's."""
        r, c = (int(side.n_nonfinite[i]) for side in (self.pair.reference, self.pair.candidate))
        words = f"non-finite logits of {self.pair.reference.n_vocab}: llama.cpp {r}, burn {c}"
        if r and c:
            return f"{words}; both engines, so look at the file"
        return f"{words}; burn's are finite, so llama.cpp is at fault" if r else words


def constant_rows(trace: LogitTrace) -> Flags:
    """Return which rows spread by at most CONSTANT of their size; a row that is not finite does not."""
    with np.errstate(invalid="ignore"):
        return np.asarray(trace.std <= CONSTANT * np.abs(trace.mean))


def row_scale(trace: LogitTrace) -> F64:
    """Return what errors of each row are divided by, logits, ``(n,)``: its standard deviation.

    A constant row has none worth the name: there it is the size of the logits, and 1 where they all are 0. NaN where
    the row is not finite.
    """
    size = np.abs(trace.mean)
    scale = np.where(constant_rows(trace), size, trace.std)
    return np.where(scale == 0, 1.0, scale)


def align(pair: PairTrace, expected: Sequence[Position]) -> Aligned:
    """Return the rows of a pair at the expected positions, with the numbers that every rung of logits reads.

    A position that is missing, was not expected or is there twice is a cause. So is a comparison without any.
    """
    found: dict[Position, int] = {}
    twice: list[Position] = []
    keys = zip(pair.reference.prompt_idx.tolist(), pair.reference.token_idx.tolist(), strict=True)
    for row, key in enumerate(keys):
        position = Position(*key)
        if position in found:
            twice.append(position)
        found.setdefault(position, row)
    wanted = dict.fromkeys(expected)
    positions = tuple(position for position in wanted if position in found)
    rows = np.array([found[position] for position in positions], np.intp)
    return _aligned(
        pair.take(rows),
        tuple(wanted),
        positions,
        {
            "missing": [position for position in wanted if position not in found],
            "not expected": [position for position in found if position not in wanted],
            "there twice": twice,
        },
    )


def _aligned(
    pair: PairTrace, wanted: Sequence[Position], positions: tuple[Position, ...], missing: dict[str, list[Position]]
) -> Aligned:
    causes = [f"{len(found)} positions {word}: {_names(found)}" for word, found in missing.items() if found]
    if not positions:
        causes.append("no position was compared")
    first_row: dict[int, int] = {}
    for prompt_idx, token_idx in wanted:
        first_row[prompt_idx] = min(token_idx, first_row.get(prompt_idx, token_idx))
    r, c, top = pair.reference, pair.candidate, np.s_[:, :TOP_JUDGED]
    delta, delta_id = delta_of_tops(
        r.topk_ids[top],
        r.topk_logits[top],
        pair.candidate_at_reference[top],
        c.topk_ids[top],
        c.topk_logits[top],
        pair.reference_at_candidate[top],
    )
    return Aligned(
        n_expected=len(wanted),
        causes=tuple(causes),
        positions=positions,
        pair=pair,
        first=np.array([p.token_idx == first_row[p.prompt_idx] for p in positions], bool),
        delta=delta,
        delta_id=delta_id,
        finite=(r.n_nonfinite == 0) & (c.n_nonfinite == 0),
        top1_equal=r.topk_ids[:, 0] == c.topk_ids[:, 0],
        top5_equal=(np.sort(r.topk_ids[top], axis=1) == np.sort(c.topk_ids[top], axis=1)).all(axis=1),
    )


def _names(positions: Sequence[Position]) -> str:
    shown = ", ".join(f"prompt {p.prompt_idx} token {p.token_idx}" for p in positions[:_SHOWN])
    return shown + (f" and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else "")
