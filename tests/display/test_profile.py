from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from parity_lib.display.position_data import Positions, positions
from parity_lib.display.profile import profile_words
from parity_lib.tolerances import BandSet

from .conftest import make_rows, pair_of

Size = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.float64]]


@pytest.fixture
def drifting(bands: BandSet) -> Callable[[Size], Positions]:
    """Return a function that adds noise of a size that depends on (fed place, prompt) and gives the positions."""

    def make(size: Size) -> Positions:
        reference, candidate, places, fed = make_rows()
        within = np.arange(len(places)) - np.searchsorted(places[:, 0], places[:, 0])
        noise = np.random.default_rng(3).normal(0, 7.6, reference.shape)
        candidate += (noise * size(within, places[:, 0])[:, None]).astype(np.float32)
        return positions(pair_of(reference, candidate, places, fed), bands)

    return make


def test_nothing_over_its_limit_has_no_profile(green: Positions) -> None:
    assert profile_words(green) == ""


def test_from_the_first_position_on_is_what_acts_everywhere(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, _: np.full(len(place), 1e-2)))
    assert words.startswith("Profile: over its limit from the first position on, and stays over, level.")
    assert "embedding, norms" in words


def test_from_one_place_on_is_what_looks_back(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, _: np.where(place >= 20, 1e-2, 0)))
    assert words.startswith("Profile: inside up to fed position 19, over from fed position 20 on, and stays over")
    assert words.endswith("attention, KV cache, RoPE.")


def test_one_prompt_alone_may_have_been_fed_something_else(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, prompt: np.where((place > 0) & (prompt == 2), 1e-2, 0)))
    assert words.startswith("Profile: inside at each prompt's first position, over from fed position 1 on")
    assert "only in prompt 2. Points to" in words
    assert words.endswith("in these prompts alone, to the tokens that were fed.")


def test_growth_is_said(drifting: Callable[[Size], Positions]) -> None:
    assert ", rising." in profile_words(drifting(lambda place, _: place * 1e-3))
    assert ", falling." in profile_words(drifting(lambda place, _: np.where(place > 0, 1 / (1 + place), 0)))


def test_a_few_rows_are_single_positions(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, prompt: np.where((place == 9) & (prompt == 4), 1e-2, 0)))
    assert words.startswith("Profile: 1 single position, the neighbours inside, only in prompt 4. Points to rows")


def test_some_prompts_only(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda _, prompt: np.where(prompt >= 5, 1e-2, 0)))
    assert "in 5 of 10 prompts" in words
    assert "only in prompts 5, 6, 7, 8, 9" in words
    assert "Points to" not in words


def test_rows_that_are_not_finite_count_as_over(red: Positions) -> None:
    assert "inside at each prompt's first position" in profile_words(red)
