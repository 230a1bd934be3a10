"""What a green cell can have seen: effective positions, and the rate that they would have shown."""

from __future__ import annotations

import pytest

from parity_lib.judge.power import effective_positions, power_statement, text_numbers
from parity_lib.records.measured import TextNumbers


@pytest.mark.parametrize(
    ("tokens", "effective"),
    [
        ([], 0),
        ([1], 1),
        ([1, 2], 2),
        ([1, 2, 3, 4], 4),
        ([1, 2, 3, 1, 2, 3], 5),  # the last position follows 1 2 3, as the third does
        ([7] * 10, 3),
    ],
)
def test_position_that_follows_the_same_three_tokens_counts_once(tokens: list[int], effective: int) -> None:
    assert effective_positions(tokens) == effective


def test_numbers_of_each_prompt_and_repetition_of_what_was_generated() -> None:
    first, second = text_numbers([[1, 1, 1, 5, 6, 7, 5, 6, 7], [1, 2, 3]], [3, 2])
    assert first == TextNumbers(0, positions=9, effective_positions=8, distinct_3grams=0.75)
    assert second == TextNumbers(1, positions=3, effective_positions=3, distinct_3grams=None)


def test_rate_that_so_many_positions_show_with_95_percent() -> None:
    found = power_statement(1452)
    assert found.confidence == 0.95
    assert (1 - found.detectable_flip_rate) ** 1452 == pytest.approx(0.05)
    assert found.detectable_flip_rate == pytest.approx(3 / 1452, rel=0.01)  # the rule of three
    assert power_statement(0).detectable_flip_rate == 1.0
