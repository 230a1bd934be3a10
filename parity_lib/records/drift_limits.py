"""The limits of rung T4 as a record: what rounding is predicted to do to each row, and how much more is too much."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from parity_lib.base.errors import PinError, RecordError, TraceMismatchError
from parity_lib.base.record import NotEmpty, Positive, Record, load_record, save_record
from parity_lib.records.traces import F64, I32, Position

LIMITS = "limits.json"
FALSE_ALARM = 1e-6
"""How often a cell without a fault may break one of these limits, if its errors are as predicted."""
ARRAYS = ("prompt_idx", "token_idx", "rms", "delta", "pair")
Sigmas = Annotated[float, Meta(gt=0)]


class DriftLimits(Record, frozen=True, eq=False, tag_field="schema", tag="parity/limits/1"):
    """Predicted standard deviations at each position, and the limits as multiples of them.

    The deviations are shares of the standard deviation of the reference's row. A limit is never below one float32 step
    of the row's largest logit: who judges by it sees to that.
    """

    prompt_idx: I32  # (n,)
    token_idx: I32  # (n,)
    rms: F64  # (n,) root mean square of the error over the vocabulary
    delta: F64  # (n,) of one logit
    pair: F64  # (n,) of the difference of two top logits
    rms_limit: Sigmas  # of one position
    delta_limit: Sigmas
    pair_limit: Sigmas  # a wider margin does not flip
    pooled_limit: Sigmas  # root mean square over all positions of rms over what is predicted there
    prompt_limit: Sigmas  # the same over the positions of one prompt
    false_alarm: Annotated[float, Meta(gt=0, lt=1)]  # of a cell
    draws: Positive  # passes with noise
    reference: NotEmpty  # baseline of the reference's kernels, "llama.cpp-avx2"
    candidate: NotEmpty  # baseline of the candidate's kernels
    source: NotEmpty  # what was run

    def __post_init__(self) -> None:
        for name in ARRAYS:
            array = getattr(self, name)
            if array.shape != self.prompt_idx.shape:
                raise TraceMismatchError(
                    "the arrays of the limits differ in length",
                    place=name,
                    expected=self.prompt_idx.shape,
                    found=array.shape,
                )
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.prompt_idx)

    @property
    def typical(self) -> float:
        """Return the limit of delta over the row's standard deviation, in the middle of all positions."""
        return self.delta_limit * float(np.nanmedian(self.delta))

    @property
    def worst(self) -> float:
        """Return the widest limit of delta over the row's standard deviation."""
        return self.delta_limit * float(np.nanmax(self.delta))

    def at(self, positions: Sequence[Position]) -> DriftLimits:
        """Return the limits of some positions, in their order.

        Raises:
            PinError: there is none for one of them. The rung is then INCOMPLETE: a missing limit must not pass.
        """
        places = zip(self.prompt_idx.tolist(), self.token_idx.tolist(), strict=True)
        row_of = {Position(*place): row for row, place in enumerate(places)}
        lost = next((position for position in positions if position not in row_of), None)
        if lost is not None:
            raise PinError(
                "no limit was predicted for a position",
                place=f"prompt {lost.prompt_idx} token {lost.token_idx}",
                expected="one for each position that is judged",
                next_step="run the cell again: the reference did not score this position",
            )
        rows = np.array([row_of[position] for position in positions], np.intp)
        arrays = {name: getattr(self, name)[rows] for name in ARRAYS}
        return replace(self, **arrays)


def save_limits(limits: DriftLimits, folder: Path) -> Path:
    """Write the limits that a verdict was judged by beside it, so that its traces can be judged again."""
    return save_record(limits, folder / LIMITS)


def load_limits(folder: Path) -> DriftLimits:
    """Return the limits that lie in a cell's folder. Raises ``RecordError`` if they are missing or damaged."""
    try:
        return load_record(folder / LIMITS, DriftLimits)
    except TraceMismatchError as error:
        raise RecordError("the stored limits are not sound", place=folder / LIMITS, found=error) from error
