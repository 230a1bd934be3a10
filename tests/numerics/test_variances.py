"""Variances from few draws: their freedom, what they borrow, and how far beyond them chance goes."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.numerics.variances import exceeded, freedom, moderated

RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize("degrees", [1, 3, 30])
def test_the_freedom_of_squares_does_not_depend_on_their_scale(degrees: int) -> None:
    squares = RANDOM.chisquare(degrees, (4, 20_000)) * np.geomspace(1e-14, 1.0, 20_000)
    assert freedom(squares) == pytest.approx(degrees, rel=0.1)


@pytest.mark.parametrize("n", [1, 2, 3, 11])
def test_few_columns_hardly_ever_have_more_freedom_than_they_know(n: int) -> None:
    """One column whose draws happen to be equal would otherwise know its variance exactly, and limit nothing."""
    found = [freedom(RANDOM.chisquare(3, (4, n))) for _ in range(2_000)]
    assert np.mean(np.array(found) > 6) < 0.02
    assert min(found) >= 1


def test_draws_that_do_not_differ_have_no_end_of_freedom() -> None:
    assert freedom(np.ones((4, 3))) == np.inf
    assert freedom(np.zeros((4, 3))) == np.inf


def test_variances_that_lie_close_lend_much_and_those_that_lie_apart_little() -> None:
    near = RANDOM.chisquare(4, 5_000) / 4
    apart = near * np.exp(RANDOM.normal(0, 2, 5_000))
    assert moderated(near, 4).freedom > 40
    assert 4 < moderated(apart, 4).freedom < 6
    found = moderated(near, 4).values
    assert np.ptp(found) < 0.2 * np.ptp(near)
    assert np.median(moderated(apart, 4).values / apart) == pytest.approx(1, rel=0.3)


def test_variances_without_neighbours_stay_as_they_are() -> None:
    one = np.array([3.0])
    found = moderated(one, 4)
    assert (found.values.tolist(), found.freedom) == ([3.0], 4)


def test_a_share_of_chance_exceeds_what_it_should() -> None:
    for observed, known in ((1, 20), (3, 12), (5, 1e6)):
        ratios = (RANDOM.chisquare(observed, 200_000) / observed) / (RANDOM.chisquare(known, 200_000) / known)
        assert np.mean(np.sqrt(ratios) > exceeded(observed, known, 0.01)) == pytest.approx(0.01, rel=0.1)


def test_small_probabilities_keep_their_digits() -> None:
    assert exceeded(1, np.inf, 2e-15) == pytest.approx(7.94, abs=0.01)  # two-sided normal quantile
    assert exceeded(1, 1e6, 1e-12) < exceeded(1, 20, 1e-12) < exceeded(1, 20, 1e-13)
