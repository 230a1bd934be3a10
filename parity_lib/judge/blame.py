"""Which engine is farther from the float64 oracle: the ratio of both errors, with an interval.

An engine's error at a position is |engine - oracle| / |oracle|, norms over the channels; pooled, the root of the mean
square over the positions. The interval comes from a bootstrap: positions are drawn again with replacement, the same
draw for both engines, and where there are few positions, channels in their place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import F64

WORSE = 8.0
"""An engine is worse if the whole interval says at least this many times. Less can be the order of the sums alone:
ggml keeps up to 64 partial sums where a plain chain keeps one, and errors grow with the root of a chain's length."""
ROUNDS = 1000  # of the bootstrap
TAIL = 2.5  # per cent on each side
FEW = 8  # positions; with fewer, channels are drawn
BURN_WORSE, LLAMA_WORSE, EQUAL = "burn worse", "llama.cpp worse", "equal"


@dataclass(frozen=True, slots=True)
class Blame:
    """Both engines' errors against the float64 oracle at one place, pooled over the positions."""

    where: str  # "logits", "layer 7"
    burn: float  # relative error
    llamacpp: float
    low: float  # of burn / llama.cpp, 95 % interval
    high: float
    drawn: str  # "positions" or "channels": what the interval was drawn over
    n: int  # how many of them

    @property
    def ratio(self) -> float:
        """Return burn's error over llama.cpp's; 1 where both are exact."""
        return _over(self.burn, self.llamacpp)

    @property
    def word(self) -> str:
        """Return ``burn worse``, ``llama.cpp worse`` or ``equal``."""
        if self.low > WORSE:
            return BURN_WORSE
        return LLAMA_WORSE if self.high < 1 / WORSE else EQUAL


def blame(where: str, oracle: npt.ArrayLike, reference: npt.ArrayLike, candidate: npt.ArrayLike) -> Blame:
    """Compare both engines with the float64 oracle at one place; all three are ``(n_positions, n_channels)``.

    A value that is not finite makes an engine's error infinite.

    Raises:
        TraceMismatchError: the shapes differ or hold nothing.
    """
    true = np.asarray(oracle, np.float64)
    theirs, ours = np.asarray(reference), np.asarray(candidate)
    if not true.size or true.ndim != 2 or not true.shape == theirs.shape == ours.shape:
        raise TraceMismatchError(
            "the float64 oracle and the engines give values of different shape",
            place=where,
            expected=true.shape,
            found=f"llama.cpp {theirs.shape}, burn {ours.shape}",
        )
    few = len(true) < FEW
    burn, llamacpp = (_squares(true, values, by_channel=few) for values in (ours, theirs))
    low, high = _interval(burn, llamacpp)
    drawn = "channels" if few else "positions"
    return Blame(where, _root(burn.mean()), _root(llamacpp.mean()), low, high, drawn, len(burn))


def position_errors(oracle: npt.ArrayLike, engine: npt.ArrayLike) -> F64:
    """Return |engine - oracle| / |oracle| of each position, ``(..., n_positions)``; norms over the last axis."""
    true = np.asarray(oracle, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.asarray(engine).astype(np.float64) - true
        ratio = np.sqrt(np.square(difference).sum(-1) / np.square(true).sum(-1))
    errors: F64 = np.nan_to_num(ratio, nan=np.inf, posinf=np.inf)
    return errors


def floors(burn: F64, llamacpp: F64) -> F64:
    """Return what a sound engine's error is at each place, ``(n_layer, n_positions)`` like its arguments.

    The smaller of both engines' errors against the oracle, and never below the layer's median of that: one engine
    alone could be the one that is wrong, and a single position can be exact by luck.
    """
    smaller = np.minimum(burn, llamacpp)
    usual = np.median(smaller, axis=-1, keepdims=True)
    floor: F64 = np.maximum(smaller, usual)
    return floor


def _squares(true: F64, values: npt.NDArray[np.floating], *, by_channel: bool) -> F64:
    """Return the relative square errors that a pooled error is the mean of, one for each position or channel."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = values.astype(np.float64) - true
        energy = np.square(true).sum(1, keepdims=True)
        relative = np.square(difference) / energy
        squares = relative.mean(0) * true.shape[1] if by_channel else relative.sum(1)
    squares[(difference == 0).all(0 if by_channel else 1)] = 0.0
    finite: F64 = np.nan_to_num(squares, nan=np.inf, posinf=np.inf)
    return finite


def _interval(burn: F64, llamacpp: F64) -> tuple[float, float]:
    n = len(burn)
    random = np.random.default_rng(0)  # the same records give the same interval
    counts = random.multinomial(n, np.full(n, 1 / n), size=ROUNDS)
    with np.errstate(invalid="ignore"):  # infinity, not drawn
        sums = [np.where(counts > 0, counts * squares, 0.0).sum(1) for squares in (burn, llamacpp)]
    ratios = np.array([_over(_root(ours), _root(theirs)) for ours, theirs in zip(*sums, strict=True)])
    low, high = np.percentile(ratios, [TAIL, 100 - TAIL], method="nearest")  # no mean of two infinities
    return float(low), float(high)


def _root(square: float) -> float:
    return float(np.sqrt(square))


def _over(ours: float, theirs: float) -> float:
    """Return a ratio; 1 where both are 0 or both are infinite, infinite where only one side has no error."""
    if ours == theirs:
        return 1.0
    return float("inf") if theirs == 0 else ours / theirs
