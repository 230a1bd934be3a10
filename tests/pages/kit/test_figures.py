"""Axes of figures: they hold whatever a run gave."""

from __future__ import annotations

import pytest

from parity_lib.pages.kit.figures import decades


def test_decades_go_around_the_values() -> None:
    assert decades([3e-4, 0.0, 20.0, -1.0]) == pytest.approx((1e-4, 100.0))
    assert decades([0.0, float("nan")]) == (1e-9, 1.0)


@pytest.mark.parametrize("lost", [1e308, 1.7976931348623157e308, 5e-324])
def test_an_axis_holds_what_went_astray(lost: float) -> None:
    low, high = decades([1e-3, lost, float("inf"), float("nan")])
    assert 0 < low <= 1e-3 <= high < float("inf")
