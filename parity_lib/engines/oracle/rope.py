"""RoPE in float64: how far each pair of a head turns, and the turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity_lib.model_file.facts import UNSCALED, RopeScaling
from parity_lib.records.traces import F64

EXACT, WALKED = "exact", "walked"


BETA_FAST, BETA_SLOW = 32.0, 1.0  # llama-hparams.h; files of these architectures cannot say others


def exact_angles(positions: F64, base: float, dim: int, divisors: F64, scaling: RopeScaling = UNSCALED) -> F64:
    """Return ``position * base ** (-2 i / dim) / divisors[i]`` (Su et al. 2021, eq. 34), scaled.

    Args:
        positions: ``(n,)``.
        base: frequency base of the file.
        dim: rotary dimension, even.
        divisors: ``(dim / 2,)``, ``rope_freqs.weight`` or ones.
        scaling: of the file.

    Returns:
        ``(n, dim / 2)``, radians.
    """
    angles: F64 = positions[:, None] * (base ** (-2.0 * np.arange(dim // 2) / dim) / divisors)
    return _scaled(angles, base, scaling)


def walked_angles(positions: F64, base: float, dim: int, divisors: F64, scaling: RopeScaling = UNSCALED) -> F64:
    """Return the angles that llama.cpp has: from pair to pair in float32 (``ggml_rope_cache_init``); else as above.

    The walk starts at the position and multiplies by the float32 ``base ** (-2 / dim)`` once a pair, so that an angle
    drifts by some ``i * 6e-8`` of itself: 1e-4 radians at position 1,000. That drift is part of the function that a
    deployed model computes and no rounding error of one engine: limits for rounding errors are derived without it.
    """
    step = np.float32(base) ** np.float32(-2.0 / np.float32(dim))
    theta = positions.astype(np.float32)
    angles = np.empty((len(positions), dim // 2), np.float32)
    for pair in range(dim // 2):
        angles[:, pair] = theta / np.float32(divisors[pair])
        theta = theta * step
    return _scaled(angles, base, scaling)


def _scaled(angles: Any, base: float, scaling: RopeScaling) -> F64:  # noqa: ANN401 - of float32 or float64
    """Return unscaled angles as a scaling turns them: linear divides all, YaRN the slow pairs (Peng et al. 2023).

    The arithmetic is that of the angles' own type: llama.cpp scales a walked angle in float32.
    """
    if scaling.kind != "none":
        number = angles.dtype.type
        share = unscaled_shares(2 * angles.shape[-1], base, scaling).astype(number)
        scaled = number(1) / number(scaling.factor) * angles
        angles = scaled * (number(1) - share) + angles * share
    found: F64 = angles.astype(np.float64)
    return found


def unscaled_shares(dim: int, base: float, scaling: RopeScaling) -> F64:
    """Return the share of the unscaled angle in each pair's angle, ``(dim / 2,)``.

    YaRN: 1 for pairs that turn more than ``BETA_FAST`` times within the original context, 0 for those that turn less
    than ``BETA_SLOW`` times, and linear in the pair's number between the two (``ggml_rope_yarn_corr_dims``).
    """
    if scaling.kind != "yarn":
        return np.zeros(dim // 2)
    fast, slow = (
        dim * np.log(scaling.n_ctx_orig / (turns * 2 * np.pi)) / (2 * np.log(base)) for turns in (BETA_FAST, BETA_SLOW)
    )
    low, high = max(0.0, np.floor(fast)), min(dim - 1.0, np.ceil(slow))
    share: F64 = 1.0 - np.clip((np.arange(dim // 2) - low) / max(0.001, high - low), 0.0, 1.0)
    return share


def magnitude(scaling: RopeScaling) -> float:
    """Return what cosine and sine are multiplied by: YaRN's ``1 + 0.1 ln(factor)``, and the file's own factor."""
    stretch = 1.0 + 0.1 * float(np.log(max(scaling.factor, 1.0))) if scaling.kind == "yarn" else 1.0
    return scaling.attn_factor * stretch


ANGLES = {EXACT: exact_angles, WALKED: walked_angles}


def rope(x: F64, angles: F64, *, adjacent: bool, magnitude: float = 1.0) -> F64:
    """Rotate the first numbers of each head, pair i by ``angles[:, i]`` (Su et al. 2021, eq. 34).

    Args:
        x: ``(n, n_head, key_length)``.
        angles: ``(n, dim / 2)``, radians.
        magnitude: what the rotated numbers are multiplied by.
        adjacent: pairs are (2i, 2i+1), as llama files are permuted for; else (i, i + dim/2), as in qwen2.
    """
    dim = 2 * angles.shape[-1]
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if adjacent else (slice(0, dim // 2), slice(dim // 2, dim))
    cos, sin = magnitude * np.cos(angles)[:, None], magnitude * np.sin(angles)[:, None]
    a, b, turned = x[..., first], x[..., second], x.copy()
    turned[..., first] = a * cos - b * sin
    turned[..., second] = a * sin + b * cos
    return turned
