"""What one product's error is made of, in sums of squares: rounding of activations, accumulation, the total."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import F64


@dataclass(frozen=True, slots=True)
class ProductSplit:
    """One product of a captured run: sums of squares, so that products can be pooled."""

    site: str  # with its block
    type: str  # of the weight, ggml's name
    n_weights: int
    differ: int  # dequantised weights of the candidate that are not the file's
    energy: float  # of the exact product
    activations: float
    accumulation: float
    total: float


def split_product(
    site: str,
    kind: str,
    exact: npt.ArrayLike,
    rounded: npt.ArrayLike,
    reference: npt.ArrayLike,
    *,
    n_weights: int,
    differ: int,
) -> ProductSplit:
    """Split one product.

    Args:
        site: full name.
        kind: ggml's name of the weight's type.
        exact: ``(n, n_out)`` float64, activations as they are.
        rounded: the same with activations as the reference rounds them.
        reference: what the reference gave.
        n_weights: numbers of the weight.
        differ: of these, dequantised by the candidate to another number.

    Raises:
        TraceMismatchError: the shapes differ or hold nothing.

    >>> found = split_product("ffn_out-0", "Q8_0", [[10.0]], [[10.5]], [[10.75]], n_weights=1, differ=0)
    >>> found.activations, found.accumulation, found.total
    (0.25, 0.0625, 0.5625)
    """
    values = [np.asarray(value, np.float64) for value in (exact, rounded, reference)]
    if not values[0].size or len({value.shape for value in values}) != 1:
        raise TraceMismatchError(
            "a product has values of different shape",
            place=site,
            expected=values[0].shape,
            found=[value.shape for value in values[1:]],
        )
    true, with_rounding, theirs = values
    return ProductSplit(
        site=site,
        type=kind,
        n_weights=n_weights,
        differ=differ,
        energy=_squares(true),
        activations=_squares(with_rounding - true),
        accumulation=_squares(theirs - with_rounding),
        total=_squares(theirs - true),
    )


def _squares(values: F64) -> float:
    total = float(np.square(values).sum())
    return total if math.isfinite(total) else math.inf
