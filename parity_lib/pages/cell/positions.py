"""The numbers of each scored position that pictures and tables share, from a pair of traces and its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import PinError, TraceMismatchError
from parity_lib.base.names import Outcome, Rung
from parity_lib.judge.align import align
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.traces import F64, I32, PairTrace, Position
from parity_lib.records.verdicts import Divergence, Verdict

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """One value for each scored position, in fed order. Deltas are candidate minus reference."""

    pair: PairTrace
    delta: F64  # (n,) logits, at delta_id
    delta_id: I32  # (n,): where |delta| is largest in the union of both top-5s
    limit: F64  # (n,) logits: the band of delta times the row's std
    rms_over_std: F64  # (n,) over the whole vocabulary
    rms_limit: F64  # (n,)
    margin: F64  # (n,) logits: the reference's first minus its second
    top1_flip: Bools  # (n,)
    top5_flip: Bools  # (n,)
    nonfinite: Bools  # (n,): a value of either row is not finite
    listed: Bools  # (n,): a divergence of the verdict names this position

    def __len__(self) -> int:
        return len(self.delta)

    @property
    def prompt_idx(self) -> I32:
        """Return the prompt of each position."""
        return self.pair.reference.prompt_idx

    @property
    def token_idx(self) -> I32:
        """Return the place of each position; 0 chooses the first generated token."""
        return self.pair.reference.token_idx

    @property
    def share(self) -> F64:
        """Return |delta| over its limit; infinite where a row is not finite, NaN where there is no limit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.abs(self.delta) / self.limit
        ratio = np.where((self.delta == 0) & ~np.isnan(self.limit), 0.0, ratio)  # 0 of a limit of 0 is equal
        return np.where(self.nonfinite, np.inf, ratio)

    def prompts(self) -> list[int]:
        """Return the prompts that have positions, ascending."""
        return [int(p) for p in np.unique(self.prompt_idx)]

    def of_prompt(self, prompt_idx: int) -> npt.NDArray[np.intp]:
        """Return the rows of one prompt, in fed order."""
        return np.flatnonzero(self.prompt_idx == prompt_idx)

    def worst_first(self) -> npt.NDArray[np.intp]:
        """Return all rows: listed divergences first, then by share of the limit, then in fed order."""
        size = np.nan_to_num(np.abs(self.delta), nan=np.inf)
        return np.lexsort((np.arange(len(self)), -size, -np.nan_to_num(self.share, nan=0.0), ~self.listed))


def judged_positions(verdict: Verdict, pair: PairTrace | None, limits: DriftLimits | None) -> Positions | None:
    """Return the positions of rung T4 as it judged them: without limits where it only reports (``compute="bf16"``).

    Args:
        verdict: of the cell.
        pair: that T4 stands on; None where T4 could not be judged: then there are no positions to show.
        limits: of the cell, for f32.

    Raises:
        TraceMismatchError: a divergence names a position that the traces do not have.
    """
    if pair is None:
        return None
    twin = verdict.rung(Rung.T4)
    gated = twin is not None and twin.outcome is not Outcome.REPORTED
    return positions(pair, limits if gated else None, verdict.divergences if gated else ())


def positions(pair: PairTrace, limits: DriftLimits | None, divergences: Sequence[Divergence] = ()) -> Positions:
    """Return what the displays need of a pair of traces.

    Args:
        pair: reference and candidate on the same fed tokens.
        limits: of these positions; None where nothing is gated.
        divergences: of the verdict; only those of rung T4 are marked.

    Raises:
        TraceMismatchError: a divergence names a position that the traces do not have.
    """
    reference = pair.reference
    places = zip(reference.prompt_idx.tolist(), reference.token_idx.tolist(), strict=True)
    seen = align(pair, [Position(*place) for place in places])
    top = reference.topk_logits.astype(np.float64)
    scale, step = seen.scale, seen.step  # as the judge of T4 has them
    delta_limit, rms_limit = _limits(limits, seen.positions)
    return Positions(
        pair=pair,
        delta=seen.delta,
        delta_id=seen.delta_id,
        limit=np.maximum(delta_limit * scale, step),
        rms_over_std=pair.rms / scale,
        rms_limit=np.maximum(rms_limit, step / scale),
        margin=top[:, 0] - top[:, 1],
        top1_flip=~seen.top1_equal,
        top5_flip=~seen.top5_equal,
        nonfinite=~seen.finite,
        listed=_listed(seen.positions, divergences),
    )


def _limits(limits: DriftLimits | None, places: Sequence[Position]) -> tuple[F64, F64]:
    """Return the limit of delta and of rms over std at each row; NaN where there is none.

    Pictures then show no limit, and the verdict says why.
    """
    none = np.full(len(places), np.nan)
    try:
        at = None if limits is None else limits.at(places)
    except PinError:
        at = None
    return (none, none) if at is None else (at.delta * at.delta_limit, at.rms * at.rms_limit)


def _listed(places: Sequence[Position], divergences: Sequence[Divergence]) -> Bools:
    row_of = {place: row for row, place in enumerate(places)}
    listed = np.zeros(len(places), dtype=bool)
    for divergence in divergences:
        if divergence.rung != Rung.T4 or divergence.prompt_idx is None or divergence.token_idx is None:
            continue
        row = row_of.get(Position(divergence.prompt_idx, divergence.token_idx))
        if row is None:
            raise TraceMismatchError(
                "the verdict names a position that the traces do not have",
                place=f"prompt {divergence.prompt_idx}, token {divergence.token_idx}",
                next_step="judge the stored traces again: parity compare",
            )
        listed[row] = True
    return listed
