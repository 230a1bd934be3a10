"""How the delta of one logit is made up: runs that start ever later from the reference's values, and their differences.

With f_0 the candidate's own logit, f_k its logit when it is given the reference's values up to place k, and f_end the
reference's logit, part k is f_k - f_(k+1): what the candidate does between the two places on the reference's own input,
carried to the end by the candidate. The parts telescope, so their sum is the delta whatever the engines do; that they
land where a fault is, is what tests show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from parity_lib.base.errors import TraceMismatchError

ROUNDING = 1e-12  # of the largest number: parts are float64 differences of float32 logits


@dataclass(frozen=True, slots=True)
class Part:
    """What one place adds to the delta, logits."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Waterfall:
    """A delta and its parts, in the order of the forward pass.

    Raises:
        TraceMismatchError: the parts, all finite, do not sum to the delta.
    """

    start: float  # the candidate's logit, or that of the run with the reference's values up to the first place
    end: float  # the reference's logit, or that of the run with its values up to the last place
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        values = [self.start, self.end, *(part.value for part in self.parts)]
        if all(map(math.isfinite, values)) and not abs(self.total - self.delta) <= ROUNDING * max(map(abs, values)):
            raise TraceMismatchError(
                "the parts of a delta do not sum to it",
                place=", ".join(part.name for part in self.parts[:3]),
                expected=self.delta,
                found=self.total,
            )

    @property
    def delta(self) -> float:
        """Return what the parts sum to: start minus end."""
        return self.start - self.end

    @property
    def total(self) -> float:
        """Return the sum of the parts, rounded once."""
        return math.fsum(part.value for part in self.parts)

    @property
    def worst(self) -> Part:
        """Return the largest part in size."""
        return max(self.parts, key=lambda part: _size(part.value))

    def share(self, name: str) -> float:
        """Return a part as a share of the delta; 0 where there is no delta."""
        value = math.fsum(part.value for part in self.parts if part.name == name)
        return value / self.delta if self.delta else 0.0


def waterfall(names: Sequence[str], values: Sequence[float]) -> Waterfall:
    """Return the parts between neighbouring runs.

    Args:
        names: of the parts, one fewer than values.
        values: logits of the runs: with nothing of the reference's, with its values up to each place, all of them.

    Raises:
        TraceMismatchError: the lengths do not fit.
    """
    if len(names) + 1 != len(values) or not names:
        raise TraceMismatchError(
            "there is not one part between each two runs", expected=f"{len(values)} - 1 names", found=len(names)
        )
    steps = zip(names, values, values[1:], strict=False)
    return Waterfall(values[0], values[-1], tuple(Part(name, before - after) for name, before, after in steps))


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)
