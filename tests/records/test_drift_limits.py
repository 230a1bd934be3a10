"""Limits of positions: found by place, kept as they were, and none stands in for one that is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from parity_lib.base.errors import PinError, RecordError, TraceMismatchError
from parity_lib.records.drift_limits import LIMITS, load_limits, save_limits
from parity_lib.records.traces import Position
from tests.drift_limits import drift_limits

PLACES = [Position(0, -1), Position(0, 0), Position(1, 0)]
ONE = drift_limits(PLACES, sigma=np.array([1e-6, 2e-6, 9e-6]))


def test_positions_are_found_in_the_order_that_is_asked_for() -> None:
    found = ONE.at([Position(1, 0), Position(0, -1)])
    assert found.rms.tolist() == [9e-6, 1e-6]
    assert (found.token_idx.tolist(), found.delta_limit) == ([0, -1], ONE.delta_limit)


def test_a_position_without_a_limit_is_named() -> None:
    with pytest.raises(PinError, match="prompt 2 token 0"):
        ONE.at([Position(0, 0), Position(2, 0)])


def test_typical_and_worst_are_limits_of_a_delta() -> None:
    assert (ONE.typical, ONE.worst) == (pytest.approx(2e-5), pytest.approx(9e-5))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    lost = ONE.rms.copy()
    lost[1] = np.nan  # a row of the reference that is not finite
    kept = msgspec.structs.replace(ONE, rms=lost)
    save_limits(kept, tmp_path)
    found = load_limits(tmp_path)
    for name in ("prompt_idx", "token_idx", "rms", "delta", "pair"):
        assert getattr(found, name).tobytes() == getattr(kept, name).tobytes()
    assert found.pooled_limit == kept.pooled_limit


def test_arrays_of_different_lengths_are_no_limits(tmp_path: Path) -> None:
    with pytest.raises(TraceMismatchError, match="differ in length"):
        msgspec.structs.replace(ONE, rms=ONE.rms[:2].copy())
    path = save_limits(ONE, tmp_path)
    short = msgspec.json.decode(path.read_bytes())
    short["token_idx"] = short["token_idx"][:8] + "="[:0]
    (tmp_path / LIMITS).write_bytes(msgspec.json.encode(short))
    with pytest.raises(RecordError):
        load_limits(tmp_path)
