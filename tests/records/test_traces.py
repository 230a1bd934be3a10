"""Positions are counted from what was asked for; a trace's arrays agree in length."""

from __future__ import annotations

import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.records.traces import Position, expected_positions


def test_zero_is_the_row_that_chooses_the_first_generated_token() -> None:
    assert expected_positions([3], [4]) == tuple(Position(0, i) for i in (-2, -1, 0, 1, 2, 3))


def test_a_prompt_of_one_token_starts_at_zero() -> None:
    assert expected_positions([1, 2], [1, 2]) == (Position(0, 0), Position(1, -1), Position(1, 0), Position(1, 1))


def test_rows_are_prompt_plus_generated_minus_one() -> None:
    prompts, generated = [7, 1, 40], [50, 50, 200]
    positions = expected_positions(prompts, generated)
    assert len(positions) == sum(p + g - 1 for p, g in zip(prompts, generated, strict=True))
    assert len(set(positions)) == len(positions)
    assert max(p.token_idx for p in positions if p.prompt_idx == 2) == 199


@pytest.mark.parametrize(("prompts", "generated"), [([0], [5]), ([5], [0]), ([5], [5, 5]), ([5, 5], [5])])
def test_what_cannot_be_scored_is_refused(prompts: list[int], generated: list[int]) -> None:
    with pytest.raises(TraceMismatchError):
        expected_positions(prompts, generated)
