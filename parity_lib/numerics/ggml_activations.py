"""Emulates llama.cpp's quantisation of activations before a product, and the exact product of the rounded values.

Source: ``type_traits_cpu`` of ``ggml-cpu.c`` and the x86 quantisers (``arch/x86/quants.c``, ``ggml-quants.c``) of
llama.cpp 0c1e570. ARM rounds Q8_0 and Q8_1 differently in last-bit ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import F32, F64

ACTIVATIONS: Mapping[str, str] = {
    "F32": "F32",
    "F16": "F16",
    "BF16": "BF16",
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), "Q8_0"),
    **dict.fromkeys(("Q4_1", "Q5_1"), "Q8_1"),
    **dict.fromkeys(("Q4_K", "Q5_K", "Q6_K"), "Q8_K"),
}
"""Type of a weight -> type that the activations are converted to; ggml's ``vec_dot_type``."""


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """Activations as the product sees them, float64."""

    values: F64  # (n, n_in)
    sums: F64 | None  # Q8_1 alone, (n, n_in / 32): what a block's minimum is multiplied with


def _sizes(kind: str) -> tuple[int, int]:
    """Return (values, bytes) of a block of a type. The bytes of Q8_1 are not ggml's in ``gguf`` 0.19: 40 for 36."""
    n_values, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(n_values), int(n_bytes)


def quantise(kind: str, x: F32) -> Quantised:
    """Return activations ``(n, n_in)`` after the reference's quantiser.

    Raises:
        TraceMismatchError: an unknown type, or rows that are no whole number of blocks.

    >>> row = np.array([[1.0] + [0.3] * 31], np.float32)
    >>> quantise("Q8_0", row).values[0, :2].round(4).tolist()
    [0.9999, 0.2992]
    """
    if kind not in set(ACTIVATIONS.values()) or x.shape[-1] % _sizes(kind)[0]:
        raise TraceMismatchError("activations cannot be converted", place=kind, expected="whole blocks", found=x.shape)
    x = np.ascontiguousarray(x, np.float32)
    if kind in ("F32", "F16", "BF16"):
        rounded = x.astype(np.float16) if kind == "F16" else round_bf16(x) if kind == "BF16" else x
        return Quantised(rounded.astype(np.float64), None)
    blocks = x.reshape(len(x), -1, _sizes(kind)[0])
    if kind == "Q8_K":
        return Quantised(_q8_k(blocks).reshape(x.shape), None)
    scale, codes = _to_127(blocks)
    half = scale.astype(np.float16).astype(np.float64)
    values = (half[..., None] * codes).reshape(x.shape)
    if kind == "Q8_0":
        return Quantised(values, None)
    sums = (scale * codes.sum(-1).astype(np.float32)).astype(np.float16).astype(np.float64)
    return Quantised(values, sums)


def round_bf16(x: F32) -> F32:
    """Return values rounded to BF16, nearest even, subnormals kept; no NaN among them.

    >>> round_bf16(np.array([1.00390625, 1.01171875], np.float32)).tolist()
    [1.0, 1.015625]
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    out: F32 = rounded.astype(np.uint32).view(np.float32)
    return out


def product(weights: F32, x: Quantised, minima: F64 | None = None) -> F64:
    """Return ``x W^T``, ``(n, n_out)``, in float64.

    Args:
        weights: dequantised rows, ``(n_out, n_in)``.
        x: activations.
        minima: of the rows' blocks, ``(n_out, n_in / 32)``, where ``x`` has sums: ``W x`` already holds the minimum
            times the sum of the rounded values; the reference multiplies it with ``sums`` instead.

    >>> x = quantise("F32", np.array([[1.0, 2.0]], np.float32))
    >>> product(np.array([[3.0, 4.0]], np.float32), x).tolist()
    [[11.0]]
    """
    out: F64 = x.values @ weights.astype(np.float64).T + correction(x, minima)
    return out


def correction(x: Quantised, minima: F64 | None) -> F64 | float:
    """Return what the reference's own sums add to the product of the rounded values, ``(n, n_out)``; 0 for most types.

    Args:
        x: activations.
        minima: of the rows' blocks, as in ``product``.
    """
    if x.sums is None or minima is None:
        return 0.0
    held = x.values.reshape(len(x.values), -1, 32).sum(-1)
    added: F64 = (x.sums - held) @ minima.T
    return added


def minima(kind: str, blocks: npt.NDArray[np.uint8]) -> F64 | None:
    """Return the minima of Q4_1 and Q5_1 blocks, ``(n_out, n_in / 32)``; None for a type without minima.

    Args:
        kind: ggml's name of the type.
        blocks: rows as they lie in the file, ``(n_out, bytes of a row)``.
    """
    if ACTIVATIONS.get(kind) != "Q8_1":
        return None
    each = np.ascontiguousarray(blocks).reshape(len(blocks), -1, _sizes(kind)[1])
    return np.ascontiguousarray(each[..., 2:4]).view("<f2")[..., 0].astype(np.float64)


def _to_127(blocks: F32) -> tuple[F32, F64]:
    """Return scale, float32, and codes of each block: ``127 / max`` times value, nearest even, in float32."""
    largest = np.abs(blocks).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), np.float32(127) / largest)
    codes = np.rint(blocks * inverse[..., None])
    return largest / np.float32(127), codes.astype(np.float64)


def _q8_k(blocks: F32) -> F64:
    """Return Q8_K's values: codes of ``-127 / m`` times value, m the value of largest size, over that factor."""
    at = np.abs(blocks).argmax(-1)
    m = np.take_along_axis(blocks, at[..., None], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.float32(-127) / m
        codes = np.minimum(np.rint(inverse * blocks), np.float32(127))
        values = (np.float32(1) / inverse).astype(np.float64) * codes
    return np.where(m == 0, 0.0, values)
