"""The size of a kernel's errors between and beyond the lengths that were measured."""

from __future__ import annotations

import math

import pytest

from parity_lib.base.errors import PinError
from parity_lib.numerics.kernel_noise import ADD, WEIGHT, BothNoise, KernelNoise

GROWS = KernelNoise({WEIGHT: {256: 4e-14, 1024: 16e-14}, ADD: {1: 1e-16}})


def test_between_two_lengths_the_variance_is_a_power_of_the_length() -> None:
    assert GROWS.sigma(WEIGHT, 256) == pytest.approx(2e-7)
    assert GROWS.sigma(WEIGHT, 512) == pytest.approx(math.sqrt(8e-14))
    assert GROWS.sigma(WEIGHT, 4096) == pytest.approx(math.sqrt(64e-14))


@pytest.mark.parametrize(("measured", "exponent"), [(1e-14, 0.0), (4e-14, 0.0), (400e-14, 1.0)])
def test_an_error_neither_falls_with_length_nor_outgrows_a_random_walk(measured: float, exponent: float) -> None:
    noise = KernelNoise({WEIGHT: {256: 4e-14, 1024: measured}})
    assert noise.sigma(WEIGHT, 16_384) == pytest.approx(math.sqrt(4e-14 * 64**exponent))


def test_one_length_alone_is_continued_upwards_only() -> None:
    noise = KernelNoise({WEIGHT: {256: 4e-14}})
    assert noise.sigma(WEIGHT, 1024) == pytest.approx(4e-7)
    assert noise.sigma(WEIGHT, 64) == pytest.approx(2e-7)


def test_a_kernel_that_was_not_measured_is_refused() -> None:
    with pytest.raises(PinError, match="SOFT_MAX: the baseline lacks a kernel"):
        GROWS.sigma("SOFT_MAX")


def test_two_engines_add_their_variances() -> None:
    both = BothNoise(GROWS, KernelNoise({WEIGHT: {256: 12e-14}, ADD: {1: 0.0}}))
    assert both.sigma(WEIGHT, 256) == pytest.approx(4e-7)
    assert both.times(3).sigma(ADD) == pytest.approx(3e-8)
