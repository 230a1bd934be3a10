"""The parts of a product's error, pooled, and the distance of two sets of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.error_split import ErrorSplit, rms_over_std
from parity_lib.numerics.product_split import ProductSplit, split_product

EXACT = np.array([[3.0, 4.0], [0.0, 12.0]])  # norm 13


def split(site: str, rounding: float, sums: float, scale: float = 1.0, differ: int = 0) -> ProductSplit:
    rounded = EXACT + np.array([[rounding, 0.0], [0.0, 0.0]])
    reference = rounded + np.array([[0.0, 0.0], [0.0, sums]])
    parts = (scale * EXACT, scale * rounded, scale * reference)
    return split_product(site, "Q8_0", *parts, n_weights=8, differ=differ)


def test_each_part_is_what_was_put_in() -> None:
    [kind] = ErrorSplit((split("ffn_out-3", 0.13, 0.0013, differ=2),), None, 2).kinds
    assert kind.activations == pytest.approx(0.01)
    assert kind.accumulation == pytest.approx(1e-4)
    assert kind.total == pytest.approx(math.hypot(0.01, 1e-4))
    assert (kind.kind, kind.types, kind.n, kind.differ, kind.worst) == ("ffn_out", ("Q8_0",), 1, 2, "ffn_out-3")


def test_layers_are_pooled_by_their_size_and_the_worst_is_named() -> None:
    products = (split("ffn_up-0", 0.0, 0.0, scale=3.0), split("ffn_up-1", 1.3, 0.0), split("attn_out-1", 0.0, 0.13))
    found = ErrorSplit(products, None, 2)
    up, out = found.kinds
    assert up.activations == pytest.approx(0.1 / math.sqrt(10))
    assert (up.worst, up.worst_total) == ("ffn_up-1", pytest.approx(0.1))
    assert (out.activations, out.accumulation) == (0.0, pytest.approx(0.01))
    assert found.differ == 0


def test_nothing_over_nothing_is_nothing_and_the_infinite_is_far() -> None:
    zero = np.zeros((1, 2))
    none = split_product("a-0", "F32", zero, zero, zero, n_weights=1, differ=0)
    off = split_product("b-0", "F32", zero, zero, zero + 1, n_weights=1, differ=0)
    nan = split_product("c-0", "F32", zero + 1, zero + 1, zero + np.nan, n_weights=1, differ=0)
    totals = [kind.total for kind in ErrorSplit((none, off, nan), None, 1).kinds]
    assert totals == [0.0, math.inf, math.inf]


def test_values_of_other_shapes_are_refused() -> None:
    with pytest.raises(TraceMismatchError, match="ffn_out-3"):
        split_product("ffn_out-3", "F32", EXACT, EXACT, EXACT[:1], n_weights=1, differ=0)
    with pytest.raises(TraceMismatchError):
        split_product("ffn_out-3", "F32", EXACT[:0], EXACT[:0], EXACT[:0], n_weights=1, differ=0)


def test_rows_are_measured_in_their_own_spread() -> None:
    rows = np.array([[-1.0, 1.0], [-3.0, 3.0]])
    assert rms_over_std(rows, rows + 0.5) == pytest.approx(0.5 / math.sqrt(5))
    assert rms_over_std(rows, rows) == 0.0
    assert rms_over_std(np.zeros((1, 2)), np.ones((1, 2))) == math.inf
