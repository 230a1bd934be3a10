"""Parts of a delta: they sum to it, and each stands where it was put."""

from __future__ import annotations

import math

import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.waterfall import Part, Waterfall, waterfall


def test_parts_are_differences_and_sum_to_the_delta() -> None:
    fall = waterfall(["layer 0", "layer 1", "head"], [1.5, 1.25, 0.25, 0.5])
    assert [part.value for part in fall.parts] == [0.25, 1.0, -0.25]
    assert fall.total == fall.delta == 1.0
    assert fall.worst.name == "layer 1"
    assert fall.share("layer 1") == 1.0
    assert fall.share("head") == -0.25


def test_without_a_delta_there_is_no_share() -> None:
    assert waterfall(["a"], [2.0, 2.0]).share("a") == 0.0


def test_a_value_that_is_not_finite_is_the_worst_part() -> None:
    fall = waterfall(["a", "b"], [math.nan, 1.0, 3.0])
    assert fall.worst.name == "a"
    assert math.isnan(fall.delta)


def test_names_that_do_not_fit_are_refused() -> None:
    for names, values in ((["a"], [1.0]), ([], [1.0]), (["a", "b"], [1.0, 2.0])):
        with pytest.raises(TraceMismatchError, match="one part between"):
            waterfall(names, values)


def test_parts_that_do_not_sum_to_the_delta_are_refused() -> None:
    assert Waterfall(1.5, 0.5, (Part("a", 0.25), Part("b", 0.75))).total == 1.0
    with pytest.raises(TraceMismatchError, match="do not sum"):
        Waterfall(1.5, 0.5, (Part("a", 0.25), Part("b", 0.7500001)))
