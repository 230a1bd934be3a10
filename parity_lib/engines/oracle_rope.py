"""RoPE in float64: how far each pair of a head turns, and the turn."""

from __future__ import annotations

import numpy as np

from parity_lib.traces import F64

EXACT, WALKED = "exact", "walked"


def exact_angles(positions: F64, base: float, dim: int, divisors: F64) -> F64:
    """Return ``position * base ** (-2 i / dim) / divisors[i]`` (Su et al. 2021, eq. 34).

    Args:
        positions: ``(n,)``.
        base: frequency base of the file.
        dim: rotary dimension, even.
        divisors: ``(dim / 2,)``, ``rope_freqs.weight`` or ones.

    Returns:
        ``(n, dim / 2)``, radians.
    """
    angles: F64 = positions[:, None] * (base ** (-2.0 * np.arange(dim // 2) / dim) / divisors)
    return angles


def walked_angles(positions: F64, base: float, dim: int, divisors: F64) -> F64:
    """Return the angles that llama.cpp has: from pair to pair in float32 (``ggml_rope_cache_init``); else as above.

    The walk starts at the position and multiplies by the float32 ``base ** (-2 / dim)`` once a pair, so that an angle
    drifts by some ``i * 6e-8`` of itself: 1e-4 radians at position 1,000. That drift is part of the function that a
    deployed model computes and no rounding error of one engine: limits for rounding errors are derived without it.
    """
    step = np.float32(base) ** np.float32(-2.0 / np.float32(dim))
    theta = positions.astype(np.float32)
    angles = np.empty((len(positions), dim // 2))
    for pair in range(dim // 2):
        angles[:, pair] = theta / np.float32(divisors[pair])
        theta = theta * step
    return angles


ANGLES = {EXACT: exact_angles, WALKED: walked_angles}


def rope(x: F64, angles: F64, *, adjacent: bool) -> F64:
    """Rotate the first numbers of each head, pair i by ``angles[:, i]`` (Su et al. 2021, eq. 34).

    Args:
        x: ``(n, n_head, key_length)``.
        angles: ``(n, dim / 2)``, radians.
        adjacent: pairs are (2i, 2i+1), as llama files are permuted for; else (i, i + dim/2), as in qwen2.
    """
    dim = 2 * angles.shape[-1]
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if adjacent else (slice(0, dim // 2), slice(dim // 2, dim))
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b, turned = x[..., first], x[..., second], x.copy()
    turned[..., first] = a * cos - b * sin
    turned[..., second] = a * sin + b * cos
    return turned
