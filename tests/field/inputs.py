"""Small models at the edge of the arithmetic: synthetic ones whose weights are scaled, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader

from parity_lib.models.synthetic import Shape, build

SMALL = Shape(n_layer=2, n_embd=64, n_head=2, n_head_kv=1, key_length=32, n_ff=64, n_vocab=96, n_ctx_train=512)
Q8_0_BLOCK = 34  # bytes: an F16 scale, 32 codes


def scaled(
    folder: Path,
    name: str,
    factors: Mapping[str, float],
    *,
    quant: str = "Q8_0",
    shape: Shape = SMALL,
    rows: Mapping[str, int] | None = None,
) -> Path:
    """Write a synthetic llama model with some tensors multiplied, and return its path.

    Args:
        folder: where it goes.
        name: of the file.
        factors: tensor -> factor; an F32 tensor's values are multiplied, a Q8_0 tensor's scales.
        quant: file type.
        shape: sizes.
        rows: tensor -> the one row that is multiplied; by default all are.
    """
    path = build("llama", quant, folder / f"{name}.gguf", shape)
    found = {tensor.name: tensor for tensor in GGUFReader(path, "r+").tensors}
    for tensor, factor in factors.items():
        data = found[tensor].data
        row = (rows or {}).get(tensor)
        part = data if row is None else data[row : row + 1]
        if found[tensor].tensor_type is GGMLQuantizationType.F32:
            part *= np.float32(factor)
            continue
        assert found[tensor].tensor_type is GGMLQuantizationType.Q8_0, tensor
        for line in part:
            scales = line.reshape(-1, Q8_0_BLOCK)[:, :2]
            larger = scales.copy().view("<f2").astype(np.float32) * np.float32(factor)
            assert np.isfinite(larger.astype("<f2")).all(), f"{tensor}: the scale itself overflows F16"
            scales[:] = larger.astype("<f2").view(np.uint8).reshape(scales.shape)
    return path


def block(number: int, **factors: float) -> dict[str, float]:
    """Return factors of the tensors of one block, ``block(1, ffn_up=1e4)``."""
    return {f"blk.{number}.{name}.weight": factor for name, factor in factors.items()}
