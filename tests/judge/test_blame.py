"""Two engines against a float64 oracle: who is worse, by how much, and how sure that is."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.blame import BURN_WORSE, EQUAL, LLAMA_WORSE, blame, floors, position_errors

RNG = np.random.default_rng(3)
TRUE = RNG.standard_normal((40, 64))


def noisy(size: float, rows: int = 40) -> np.ndarray:
    return (TRUE[:rows] + size * RNG.standard_normal((rows, 64))).astype(np.float64)


def test_two_sound_engines_are_equal_although_one_has_longer_sums() -> None:
    found = blame("logits", TRUE, noisy(1e-6), noisy(3e-6))
    assert found.word == EQUAL
    assert 2.5 < found.low < found.ratio < found.high < 3.5
    assert (found.drawn, found.n) == ("positions", 40)


def test_the_worse_one_is_named_and_swapping_the_roles_swaps_the_name() -> None:
    sound, wrong = noisy(1e-6), noisy(1e-4)
    burn, llama = blame("layer 3", TRUE, sound, wrong), blame("layer 3", TRUE, wrong, sound)
    assert (burn.word, llama.word) == (BURN_WORSE, LLAMA_WORSE)
    assert burn.ratio == pytest.approx(1 / llama.ratio)
    assert burn.low == pytest.approx(1 / llama.high, rel=0.05)


def test_one_wrong_position_of_many_is_not_sure() -> None:
    wrong = noisy(1e-6)
    wrong[7] += 1e-4
    found = blame("logits", TRUE, noisy(1e-6), wrong)
    assert found.ratio > 8
    assert found.low < 2 < found.high  # many draws do not have it
    assert found.word == EQUAL


def test_of_few_positions_channels_are_drawn() -> None:
    found = blame("logits", TRUE[:3], noisy(1e-6, 3), noisy(1e-4, 3))
    assert (found.drawn, found.n, found.word) == ("channels", 64, BURN_WORSE)


def test_exact_and_not_finite_values_have_a_word_too() -> None:
    lost = noisy(1e-6)
    lost[:, 2] = np.nan
    assert blame("embd", TRUE, TRUE, TRUE).word == EQUAL
    assert blame("embd", TRUE, TRUE, TRUE).ratio == 1
    assert blame("layer 0", TRUE, TRUE, noisy(1e-6)).word == BURN_WORSE
    assert blame("layer 0", TRUE, noisy(1e-6), lost).word == BURN_WORSE
    assert blame("layer 0", TRUE, lost, noisy(1e-6)).word == LLAMA_WORSE


def test_the_same_arrays_give_the_same_interval() -> None:
    sound, wrong = noisy(1e-6), noisy(1e-5)
    assert blame("logits", TRUE, sound, wrong) == blame("logits", TRUE, sound, wrong)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(TraceMismatchError, match="different shape"):
        blame("logits", TRUE, TRUE[:3], TRUE)
    with pytest.raises(TraceMismatchError, match="different shape"):
        blame("logits", TRUE[:0], TRUE[:0], TRUE[:0])


def test_a_floor_is_the_better_engine_and_never_below_its_layer() -> None:
    burn = np.array([[1e-3, 1e-3, 1e-3], [2e-7, 1e-9, 3e-7]])
    llama = np.array([[1e-7, 2e-7, 4e-7], [1e-4, 1e-4, 1e-4]])
    floor = floors(burn, llama)
    assert floor.tolist() == [[2e-7, 2e-7, 4e-7], [2e-7, 2e-7, 3e-7]]


def test_errors_of_positions_are_relative() -> None:
    off = TRUE.copy()
    off[4] *= 1.01
    errors = position_errors(TRUE, off)
    assert errors[4] == pytest.approx(0.01)
    assert np.delete(errors, 4).max() == 0
    off[0, 0] = np.nan
    assert position_errors(TRUE, off)[0] == np.inf
