from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.judge.drift_shape import CAUSES
from parity_lib.judge.drift_shape import Kind as Drift
from parity_lib.pages.cell.drift_words import profile_words
from parity_lib.pages.cell.first_place import named_words
from parity_lib.pages.cell.positions import Positions, positions
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.verdicts import Divergence, Verdict

from ..conftest import make_rows, pair_of

MakeVerdict = Callable[..., Verdict]
Size = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int32]], npt.NDArray[np.float64]]


@pytest.fixture
def drifting(limits: DriftLimits) -> Callable[[Size], Positions]:
    """Return a function that adds noise of a size that depends on (fed place, prompt) and gives the positions."""

    def make(size: Size) -> Positions:
        reference, candidate, places, fed = make_rows()
        within = np.arange(len(places)) - np.searchsorted(places[:, 0], places[:, 0])
        noise = np.random.default_rng(3).normal(0, 7.6, reference.shape)
        candidate += (noise * size(within, places[:, 0])[:, None]).astype(np.float32)
        return positions(pair_of(reference, candidate, places, fed), limits)

    return make


def test_nothing_over_its_limit_has_no_profile(green: Positions) -> None:
    assert profile_words(green) == ""


def test_from_the_first_position_on_is_what_acts_everywhere(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, _: np.full(len(place), 1e-2)))
    assert words == f"Profile: flat, over from position 0 on. Points to {CAUSES[Drift.FLAT]}."


def test_from_one_place_on_is_what_begins_there(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, _: np.where(place >= 20, 1e-2, 0)))
    assert words == f"Profile: inside up to position 19, over from position 20 on. Points to {CAUSES[Drift.BEYOND]}."


def test_one_prompt_alone_may_have_been_fed_something_else(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, prompt: np.where((place > 0) & (prompt == 2), 1e-2, 0)))
    assert words == (
        "Profile: zero at position 0, over from position 1 on, only in prompt 2. "
        f"Points to {CAUSES[Drift.RISING]}; in these prompts alone, to the tokens that were fed."
    )


def test_growth_is_said(drifting: Callable[[Size], Positions]) -> None:
    assert profile_words(drifting(lambda place, _: place * 1e-3)).startswith("Profile: zero at position 0 and rising.")
    assert ", falling." in profile_words(drifting(lambda place, _: np.where(place > 0, 1 / (1 + place), 0)))


def test_a_few_rows_are_single_positions(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, prompt: np.where((place == 9) & (prompt == 4), 1e-2, 0)))
    first = "Profile: erratic: 1 of 1,025 positions, the first 9, only in prompt 4."
    assert words == f"{first} Points to {CAUSES[Drift.ERRATIC]}."


def test_some_prompts_only(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda _, prompt: np.where(prompt >= 5, 1e-2, 0)))
    assert words.startswith(
        "Profile: flat, over from position 0 on, only in prompts 5, 6, 7, 8, 9. Points to what acts"
    )
    assert words.endswith("; in these prompts alone, to the tokens that were fed.")


def test_prompts_that_drift_in_another_way_are_counted(drifting: Callable[[Size], Positions]) -> None:
    words = profile_words(drifting(lambda place, prompt: np.where((place > 0) | (prompt >= 8), 1e-2, 0)))
    counted = "zero at position 0 and rising in 8; flat, over from position 0 on in 2 prompts"
    assert f" ({counted}). Points to {CAUSES[Drift.RISING]}." in words
    words = profile_words(drifting(lambda place, prompt: np.where((place > 0) | (prompt >= 5), 1e-2, 0)))
    assert words.startswith("Profile: not the same in every sequence: ")
    assert "Points to" not in words


def test_rows_that_are_not_finite_count_as_over(red: Positions) -> None:
    assert profile_words(red).startswith("Profile: zero at position 0 and rising. Points to attention or RoPE")
    alone = replace(red, delta=np.zeros(len(red)), rms_over_std=np.zeros(len(red)))
    assert profile_words(alone).startswith("Profile: erratic: 1 of 1,025 positions, the first 64, only in prompt 8.")


def test_what_a_lower_rung_named_stands_in_the_place_of_a_guess(red: Positions, make_verdict: MakeVerdict) -> None:
    tensor = Divergence(Rung.T2, Kind.TENSOR, 0.0, where="blk.0.ffn_down.weight", delta=3.0)
    op = Divergence(Rung.T3, Kind.OP, 1e-11, 0, 0, where="attn_norm-15", delta=1e-6)
    logits = make_verdict(Outcome.DIVERGED)
    assert named_words(logits) == ""
    told = named_words(structs.replace(logits, divergences=(op, *logits.divergences)))
    assert told == "T3 named first, layer 15 `attn_norm`"
    assert profile_words(red, told) == (
        "Profile: zero at position 0 and rising. Start at what T3 named first, layer 15 `attn_norm`: "
        "the profile only shows where the error reaches the logits."
    )
    told = named_words(structs.replace(logits, divergences=(tensor, op, *logits.divergences)))
    assert told == "T2 named first, `blk.0.ffn_down.weight`"


def test_a_position_without_a_limit_is_not_over(red: Positions) -> None:
    nothing = np.full(len(red), np.nan)
    bare = replace(red, limit=nothing, rms_limit=nothing, nonfinite=np.zeros(len(red), bool))
    assert profile_words(bare) == ""
