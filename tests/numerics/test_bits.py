"""Two sets of rows, bit by bit: what counts as equal, and what is said where they part."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.numerics import bits
from parity_lib.numerics.bits import compare_bits
from parity_lib.records.traces import F32, Position

POSITIONS = tuple(Position(0, index) for index in range(-2, 3))


@pytest.fixture
def rows() -> F32:
    return np.random.default_rng(0).standard_normal((5, 7)).astype("<f4")


def test_equal_rows_are_equal_and_a_nan_with_the_same_bits_too(rows: F32) -> None:
    rows[1, 2] = np.nan
    found = compare_bits(rows, rows.copy(), POSITIONS)
    assert found.equal
    assert (found.equal_rows, found.equal_logits, found.part) == (5, 35, None)
    assert (found.max_abs, found.rms_over_std, found.nonfinite) == (0.0, 0.0, (1, 1))
    assert found.same_top1 == 4  # a row with a NaN has no top


def test_no_rows_are_not_equal() -> None:
    nothing = np.empty((0, 7), "<f4")
    assert not compare_bits(nothing, nothing, ()).equal


@pytest.mark.parametrize("block", [1, 2, 256])
def test_the_first_difference_is_named_whatever_the_blocks(
    rows: F32, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits, "BLOCK_ROWS", block)
    other = rows.copy()
    other[3, 1] = np.nextafter(other[3, 1], np.float32(9))
    other[4] += np.float32(0.5)
    found = compare_bits(rows, other, POSITIONS)
    assert not found.equal
    assert found.part == bits.Part(Position(0, 1), 1, float(rows[3, 1]), float(other[3, 1]))
    assert (found.equal_rows, found.equal_logits) == (3, 35 - 8)
    assert found.max_abs == pytest.approx(0.5)
    delta = other.astype(np.float64) - rows
    wide = rows.astype(np.float64)
    centred = wide - wide.mean(1, keepdims=True)
    assert found.rms_over_std == pytest.approx(np.sqrt(np.square(delta).sum() / np.square(centred).sum()))
    assert found.same_top1 == 5


def test_the_two_zeros_differ_in_bits_and_a_lost_number_is_counted(rows: F32) -> None:
    rows[0, 0], other = 0.0, rows.copy()
    other[0, 0] = -0.0
    other[2] = np.nan
    found = compare_bits(rows, other, POSITIONS)
    assert found.part == bits.Part(Position(0, -2), 0, 0.0, -0.0)
    assert (found.equal_rows, found.nonfinite, found.max_abs, found.same_top1) == (3, (0, 7), 0.0, 4)


def test_all_lost_is_no_number_and_not_zero(rows: F32) -> None:
    found = compare_bits(rows, np.full_like(rows, np.nan), POSITIONS)
    assert np.isnan(found.rms_over_std)
    assert not found.equal
