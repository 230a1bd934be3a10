"""Pairing by position: order does not matter, and every missing position is named."""

from __future__ import annotations

from typing import Any

import numpy as np

from parity_lib.judge.align import align
from parity_lib.records.traces import Position


def test_rows_come_in_expected_order_whatever_the_order_of_the_trace(case: Any) -> None:
    order = np.random.default_rng(1).permutation(len(case.positions)).tolist()
    straight, shuffled = align(case.pair, case.positions), align(case.keep(order), case.positions)
    assert shuffled.positions == case.positions
    assert not shuffled.causes
    for name in ("delta", "delta_id", "first", "top1_equal", "top5_equal", "finite"):
        assert np.array_equal(getattr(shuffled, name), getattr(straight, name)), name
    assert np.array_equal(shuffled.pair.rms, straight.pair.rms)


def test_first_is_the_lowest_row_of_each_prompt(case: Any) -> None:
    seen = align(case.pair, case.positions)
    first = [position for position, flag in zip(seen.positions, seen.first, strict=True) if flag]
    assert first == [Position(0, -3), Position(1, 0), Position(2, -5)]


def test_a_missing_first_row_does_not_make_the_next_one_first(case: Any) -> None:
    seen = align(case.keep(list(range(1, 20))), case.positions)
    assert not seen.first[seen.positions.index(Position(0, -2))]


def test_each_missing_position_is_named(case: Any) -> None:
    pair = case.keep([*range(18), 3])
    seen = align(pair, [p for p in case.positions if p != Position(1, 2)])
    assert seen.n_expected == 19
    assert len(seen) == 17
    assert seen.causes == (
        "2 positions missing: prompt 2 token 2, prompt 2 token 3",
        "1 positions not expected: prompt 1 token 2",
        "1 positions there twice: prompt 0 token 0",
    )


def test_many_missing_positions_are_counted_completely(case: Any) -> None:
    cause = align(case.keep([0]), case.positions).causes[0]
    assert cause.startswith("19 positions missing: prompt 0 token -2")
    assert cause.endswith("and 14 more")


def test_nothing_compared_is_a_cause(case: Any) -> None:
    assert align(case.keep([]), case.positions).causes[-1] == "no position was compared"
    assert align(case.keep([]), []).causes == ("no position was compared",)
