"""The shape of an error over positions, on profiles made up for it."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.compare.shape import Kind, shape_of
from parity_lib.errors import TraceMismatchError

N = 60
QUIET = 0.2 + 0.05 * np.sin(np.arange(N))


def test_inside() -> None:
    shape = shape_of(QUIET)
    assert (shape.kind, shape.start, shape.causes) == (Kind.INSIDE, None, "")


def test_flat() -> None:
    shape = shape_of(QUIET + 50)
    assert (shape.kind, shape.start, shape.trend) == (Kind.FLAT, 0, "level")
    assert "embedding" in shape.causes
    assert shape.words == "flat, over from position 0 on"
    assert shape_of(2.0 + np.arange(N)).words == "over from position 0 on, rising"


def test_zero_at_position_0_and_rising() -> None:
    shape = shape_of(0.6 * np.arange(N))
    assert (shape.kind, shape.start, shape.trend) == (Kind.RISING, 2, "rising")
    assert shape.words == "zero at position 0 and rising"
    assert shape.causes.startswith("attention or RoPE")
    level = shape_of(np.where(np.arange(N) == 0, 0.0, 30.0))
    assert level.kind is Kind.RISING
    assert level.words == "zero at position 0, over from position 1 on"


def test_beyond_one_position_only() -> None:
    shape = shape_of(np.where(np.arange(N) < 20, QUIET, 500.0))
    assert (shape.kind, shape.start) == (Kind.BEYOND, 20)
    assert shape.words == "inside up to position 19, over from position 20 on"
    assert "cache slot" in shape.causes


def test_what_grows_slowly_out_of_its_floor_is_no_edge() -> None:
    assert shape_of(0.05 * np.arange(N)).kind is Kind.RISING


def test_erratic() -> None:
    profile = QUIET.copy()
    profile[[9, 31, 44]] = 80.0
    shape = shape_of(profile)
    assert (shape.kind, shape.start, shape.n_over) == (Kind.ERRATIC, 9, 3)
    assert shape.words == "erratic: 3 of 60 positions, the first 9"


def test_what_is_no_number_is_over() -> None:
    profile = QUIET.copy()
    profile[30:] = np.nan
    assert shape_of(profile).kind is Kind.BEYOND
    assert shape_of([np.inf]).kind is Kind.FLAT


def test_no_position_is_refused() -> None:
    for profile in ([], [[1.0]]):
        with pytest.raises(TraceMismatchError, match="no profile"):
            shape_of(profile)
