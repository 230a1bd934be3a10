"""The size of each kernel's rounding errors, from measurements: by kernel, and by the length of what it sums."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from parity_lib.base.errors import PinError

WEIGHT, KEYS, VALUES = "MUL_MAT weight", "MUL_MAT keys", "MUL_MAT values"
NORM, SOFT_MAX, GLU, ROPE, ADD = "RMS_NORM, MUL", "SOFT_MAX", "GLU swiglu", "ROPE", "ADD"
KERNELS = (WEIGHT, KEYS, VALUES, NORM, SOFT_MAX, GLU, ROPE, ADD)
SUMS = (WEIGHT, NORM)
"""Kernels whose error depends on how many terms they sum; the others are measured as of length 1."""
TERMS, RESULT = 1 / 3, 2 / 3
"""What the error of a product goes by: so much of sum a^2 b^2, and so much of the square of the sum itself.

Each addition rounds the partial sum so far. Given the whole sum S of n terms, the partial sum after k of them is a
bridge: its mean square is (k/n)^2 S^2 + (k/n) (1 - k/n) sum a^2 b^2, and over all k the mean is S^2 / 3 + sum a^2 b^2 /
6. So a large logit, whose terms agree, errs by more than the others. Over sums whose terms do not agree, S^2 is sum
a^2 b^2 in the mean, which is why the two shares are one together.
"""
UNIT = 2.0**-24  # float32 rounds a number by at most so much of itself


@dataclass(frozen=True, slots=True)
class KernelNoise:
    """Variance of each kernel's relative error, by length of its sum.

    The error of a product is relative to sqrt(TERMS sum a^2 b^2 + RESULT S^2), that of any other kernel to its value.
    """

    variances: Mapping[str, Mapping[int, float]]

    def sigma(self, kernel: str, length: int = 1) -> float:
        """Return the standard deviation of a kernel's relative error.

        Between two measured lengths, and beyond the outermost two, the variance is a power of the length, with an
        exponent of 0 to 1: the error of a sum does not fall with its length, nor grow faster than a random walk. One
        measured length alone is continued with exponent 1 upwards.

        Raises:
            PinError: the kernel was not measured.
        """
        found = sorted(self.variances.get(kernel, {}).items())
        if not found:
            raise PinError(
                "the baseline lacks a kernel", place=kernel, next_step="measure it: parity baseline MODEL QUANT --write"
            )
        if len(found) == 1:
            return math.sqrt(found[0][1] * max(1.0, length / found[0][0]))
        at = min(max(bisect_left([k for k, _ in found], length) - 1, 0), len(found) - 2)
        (low, at_low), (high, at_high) = found[at], found[at + 1]
        exponent = min(max(math.log(at_high / at_low) / math.log(high / low), 0.0), 1.0)
        return math.sqrt(at_low * (length / low) ** exponent)

    def times(self, factor: float) -> KernelNoise:
        """Return errors that are so many times as large."""
        return KernelNoise({k: {n: v * factor**2 for n, v in of.items()} for k, of in self.variances.items()})


@dataclass(frozen=True, slots=True)
class BothNoise:
    """The independent errors of two engines: variances are added."""

    first: KernelNoise
    second: KernelNoise

    def sigma(self, kernel: str, length: int = 1) -> float:
        """Return the standard deviation of the difference of the two relative errors. Raises ``PinError``."""
        return math.hypot(self.first.sigma(kernel, length), self.second.sigma(kernel, length))

    def times(self, factor: float) -> BothNoise:
        """Return errors that are so many times as large."""
        return BothNoise(self.first.times(factor), self.second.times(factor))


def of_op(op: str) -> str:
    """Return the name of the kernel that computes an op, by ggml's name of the op; products have names of their own.

    >>> of_op("MUL"), of_op("ROPE")
    ('RMS_NORM, MUL', 'ROPE')
    """
    return {"MUL": NORM, "GLU": GLU}.get(op, op)
