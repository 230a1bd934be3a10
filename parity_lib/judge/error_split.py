"""What a product's error is made of: dequantisation, the rounding of its activations, the accumulation of its sum.

Each is a relative error: the norm of a difference over the norm of the exact product, all in float64. Dequantisation
has one right answer, so it is counted in numbers that differ. Activations: the product of rounded activations less that
of the activations as they are. Accumulation: the reference's own value less the product of rounded activations, so what
its float32 sums did. The total is the reference less the exact product: what an engine without that rounding is off by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity_lib.numerics.product_split import ProductSplit


@dataclass(frozen=True, slots=True)
class KindSplit:
    """The products of one kind, pooled over the layers."""

    kind: str  # site without its block
    types: tuple[str, ...]
    n: int
    differ: int
    activations: float  # relative errors
    accumulation: float
    total: float
    worst: str  # site with the largest total
    worst_total: float


@dataclass(frozen=True, slots=True)
class LogitSplit:
    """The same at the logits, by switching the candidate's arithmetic; rms over the spread of the reference's rows.

    ``rounded`` is the policy that rounds activations as the reference does. The two parts need not sum to the total:
    a rounding that falls the other way in one layer is another input for all that come after it.
    """

    rounded: str  # policy
    n_positions: int
    plain_to_reference: float  # the total
    plain_to_rounded: float  # what rounding activations alone does to the candidate
    rounded_to_reference: float  # what is left: sums in another order, and what the model makes of them


@dataclass(frozen=True, slots=True)
class ErrorSplit:
    """The split of every product, and of the logits."""

    products: tuple[ProductSplit, ...]
    logits: LogitSplit | None  # None where a logit is not finite
    n_positions: int  # that the products were taken at

    @property
    def kinds(self) -> tuple[KindSplit, ...]:
        """Return the products by kind, in the order of the forward pass."""
        names = list(dict.fromkeys(_kind(product.site) for product in self.products))
        return tuple(_pooled([product for product in self.products if _kind(product.site) == name]) for name in names)

    @property
    def differ(self) -> int:
        """Return how many dequantised weights differ in all products."""
        return sum(product.differ for product in self.products)


def rms_over_std(reference: npt.ArrayLike, candidate: npt.ArrayLike) -> float:
    """Return the rms difference of rows ``(n, n_vocab)`` over the pooled standard deviation of the reference's rows."""
    theirs, ours = (np.asarray(value, np.float64) for value in (reference, candidate))
    spread = float(np.sqrt(theirs.var(axis=-1).mean()))
    difference = float(np.sqrt(np.square(ours - theirs).mean()))
    return difference / spread if spread > 0 else (0.0 if difference == 0 else math.inf)


def _pooled(products: Sequence[ProductSplit]) -> KindSplit:
    energy = sum(product.energy for product in products)
    worst = max(products, key=lambda product: _relative(product.total, product.energy))
    return KindSplit(
        kind=_kind(products[0].site),
        types=tuple(sorted({product.type for product in products})),
        n=len(products),
        differ=sum(product.differ for product in products),
        activations=_relative(sum(product.activations for product in products), energy),
        accumulation=_relative(sum(product.accumulation for product in products), energy),
        total=_relative(sum(product.total for product in products), energy),
        worst=worst.site,
        worst_total=_relative(worst.total, worst.energy),
    )


def _relative(squares: float, energy: float) -> float:
    if energy > 0:
        return math.sqrt(squares / energy)
    return 0.0 if squares == 0 else math.inf


def _kind(site: str) -> str:
    name, dash, block = site.rpartition("-")
    return name if dash and block.isdecimal() else site
