"""The shape of an error over positions, on profiles made up for it."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.drift_shape import CAUSES, Kind, shape_of
from parity_lib.pages.kit.shape_words import shape_words

N = 60
QUIET = 0.2 + 0.05 * np.sin(np.arange(N))


def test_inside() -> None:
    shape = shape_of(QUIET)
    assert (shape.kind, shape.starts, shape.causes) == (Kind.INSIDE, (), "")
    assert shape_words(shape) == "inside its floor at every position"


def test_flat() -> None:
    shape = shape_of(QUIET + 50)
    assert (shape.kind, shape.starts, shape.trend) == (Kind.FLAT, (0,), "level")
    assert "embedding" in shape.causes
    assert shape_words(shape) == "flat, over from position 0 on"
    assert shape_words(shape_of(2.0 + np.arange(N))) == "over from position 0 on, rising"


def test_zero_at_position_0_and_rising() -> None:
    shape = shape_of(0.6 * np.arange(N))
    assert (shape.kind, shape.starts, shape.trend) == (Kind.RISING, (2,), "rising")
    assert shape_words(shape) == "zero at position 0 and rising"
    assert shape.causes.startswith("attention or RoPE")
    level = shape_of(np.where(np.arange(N) == 0, 0.0, 30.0))
    assert level.kind is Kind.RISING
    assert shape_words(level) == "zero at position 0, over from position 1 on"


def test_beyond_one_position_only() -> None:
    shape = shape_of(np.where(np.arange(N) < 20, QUIET, 500.0))
    assert (shape.kind, shape.starts) == (Kind.BEYOND, (20,))
    assert shape_words(shape) == "inside up to position 19, over from position 20 on"
    assert "cache slot" in shape.causes


def test_what_grows_slowly_out_of_its_floor_is_no_edge() -> None:
    assert shape_of(0.05 * np.arange(N)).kind is Kind.RISING


def test_erratic() -> None:
    profile = QUIET.copy()
    profile[[9, 31, 44]] = 80.0
    shape = shape_of(profile)
    assert (shape.kind, shape.starts, shape.n_over) == (Kind.ERRATIC, (9,), 3)
    assert shape_words(shape) == "erratic: 3 of 60 positions, the first 9"


def test_a_falling_drift_is_not_called_rising() -> None:
    shape = shape_of(np.where(np.arange(N) > 0, 900 / (1 + np.arange(N)), 0))
    assert shape.kind is Kind.RISING
    assert shape_words(shape) == "zero at position 0, over from position 1 on, falling"


def test_the_last_positions_of_a_sequence_are_single_ones() -> None:
    profile = QUIET.copy()
    profile[-3:] = 80.0
    assert shape_of(profile).kind is Kind.ERRATIC
    profile[-4:] = 80.0
    assert shape_of(profile).kind is Kind.BEYOND


def test_several_sequences_have_the_kind_of_most_that_are_over() -> None:
    rising, flat, edge = 0.6 * np.arange(N), QUIET + 50, np.where(np.arange(N) < 20, QUIET, 500.0)
    shape = shape_of(rising, QUIET, edge, rising, QUIET)
    assert shape.kinds == (Kind.RISING, Kind.INSIDE, Kind.BEYOND, Kind.RISING, Kind.INSIDE)
    assert (shape.kind, shape.causes) == (Kind.RISING, CAUSES[Kind.RISING])
    assert (shape.starts, shape.n_over, shape.n) == ((2, 20, 2), 2 * 58 + 40, 5 * N)
    assert shape_of(rising, flat).kind is Kind.MIXED
    assert shape_of(rising, flat).causes == ""
    mixed = "not the same in every sequence: zero at position 0 and rising in 1; flat, over from position 0 on in 1"
    assert shape_words(shape_of(rising, flat)) == mixed
    assert shape_words(shape_of(edge, edge[5:])) == "inside up to position 14, over from positions 15 to 20 on"
    assert shape_of(QUIET, QUIET).kind is Kind.INSIDE


def test_every_kind_has_its_causes() -> None:
    assert set(CAUSES) == set(Kind)


def test_the_trend_of_several_sequences_is_by_position() -> None:
    assert shape_of(3.0 + np.arange(N), 3.0 + np.arange(N)).trend == "rising"
    assert shape_of(np.full(N, 3.0), np.full(N, 30.0)).trend == "level"  # one sequence after the other would rise


def test_what_is_no_number_is_over() -> None:
    profile = QUIET.copy()
    profile[30:] = np.nan
    assert shape_of(profile).kind is Kind.BEYOND
    assert shape_of([np.inf]).kind is Kind.FLAT


def test_no_position_is_refused() -> None:
    for profiles in ([], [[]], [[[1.0]]], [[1.0], []]):
        with pytest.raises(TraceMismatchError, match="no profile"):
            shape_of(*profiles)
