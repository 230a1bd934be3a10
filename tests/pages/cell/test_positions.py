from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import Kind, Rung
from parity_lib.pages.cell.positions import Positions, positions
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.traces import PairTrace
from parity_lib.records.verdicts import Divergence


def row(shown: Positions, prompt: int, token: int) -> int:
    return int(np.flatnonzero((shown.prompt_idx == prompt) & (shown.token_idx == token))[0])


def test_limit_is_the_band_times_the_rows_own_spread(green: Positions) -> None:
    std = green.pair.reference.std
    first = row(green, 0, -8)
    assert green.limit[first] == pytest.approx(8e-5 * std[first])
    assert green.limit[first + 1] == pytest.approx(2e-5 * std[first + 1])
    assert green.rms_limit[[first, first + 1]] == pytest.approx([8e-5, 2e-5])


def test_green_positions_are_inside_and_without_flips(green: Positions) -> None:
    assert len(green) == 1025
    assert green.share.max() < 1
    assert not (green.top1_flip | green.top5_flip | green.nonfinite | green.listed).any()


def test_seeded_flips_and_the_lost_row_are_found(red: Positions) -> None:
    for prompt, token in ((2, 17), (2, 44), (5, 2)):
        assert red.top1_flip[row(red, prompt, token)]
    lost = row(red, 8, 30)
    assert red.nonfinite[lost]
    assert red.share[lost] == np.inf
    assert red.worst_first()[0] == lost
    assert red.listed[lost]


def test_worst_comes_first_and_every_row_once(red: Positions) -> None:
    order = red.worst_first()
    assert sorted(order.tolist()) == list(range(len(red)))
    listed = red.listed[order]
    assert listed[: int(listed.sum())].all()
    share = red.share[order][listed]
    assert (np.diff(share[np.isfinite(share)]) <= 0).all()


def test_without_bands_there_is_no_limit_and_no_share(green_pair: PairTrace) -> None:
    none = positions(green_pair, None)
    assert np.isnan(none.limit).all()
    assert np.isnan(none.share).all()
    assert abs(none.delta[none.worst_first()[0]]) == np.abs(none.delta).max()


def test_a_divergence_at_an_unknown_position_is_an_error(green_pair: PairTrace, limits: DriftLimits) -> None:
    stale = Divergence(Rung.T4, Kind.TOP1, 0.1, prompt_idx=77, token_idx=0)
    with pytest.raises(TraceMismatchError, match="prompt 77, token 0"):
        positions(green_pair, limits, [stale])


def test_divergences_of_other_rungs_are_not_marked(green_pair: PairTrace, limits: DriftLimits) -> None:
    other = [
        Divergence(Rung.T2, Kind.TENSOR, 0.0, where="output.weight"),
        Divergence(Rung.T5, Kind.TOP1, 0.1, prompt_idx=0, token_idx=0),
    ]
    assert not positions(green_pair, limits, other).listed.any()
