"""Limits of rung T4 for rows that a test made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from parity_lib.records.drift_limits import FALSE_ALARM, DriftLimits
from parity_lib.records.traces import Position


def drift_limits(
    positions: Sequence[Position],
    *,
    sigma: float | npt.NDArray[np.float64] = 1e-6,
    times: float = 10.0,
    pair: float = 4e-6,
    pair_times: float = 3.0,
    pooled: float = 2.0,
) -> DriftLimits:
    """Return limits of ``times`` a predicted sigma, for delta and rms alike, each over the row's deviation."""
    n = len(positions)
    return DriftLimits(
        prompt_idx=np.array([p[0] for p in positions], np.int32),
        token_idx=np.array([p[1] for p in positions], np.int32),
        rms=np.full(n, sigma),
        delta=np.full(n, sigma),
        pair=np.full(n, pair),
        rms_limit=times,
        delta_limit=times,
        pair_limit=pair_times,
        pooled_limit=pooled,
        prompt_limit=pooled,
        false_alarm=FALSE_ALARM,
        draws=4,
        reference="llama.cpp-avx2",
        candidate="crates-io-avx2",
        source="measured for a test",
    )
