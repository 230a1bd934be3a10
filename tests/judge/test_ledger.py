"""The flip ledger: classes, predictions, and the surplus that makes ties explain nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity_lib.base.json_text import encode
from parity_lib.base.names import Kind, LedgerClass
from parity_lib.judge.flips import Flip, Ledger, classify, margin_of_swap, poisson_tail, predicted_flips

TIE, UNEXPLAINED = LedgerClass.TIE, LedgerClass.UNEXPLAINED


@pytest.mark.parametrize(
    ("margin", "sigma", "expected"),
    [
        (0.0, 0.0, TIE),
        (3.0, 1.0, TIE),
        (3.0001, 1.0, UNEXPLAINED),
        (1e-9, 0.0, UNEXPLAINED),
        (math.nan, 1.0, UNEXPLAINED),
        (0.0, math.nan, UNEXPLAINED),
    ],
)
def test_a_flip_is_a_near_tie_up_to_three_sigma(margin: float, sigma: float, expected: LedgerClass) -> None:
    assert classify(margin, sigma) is expected


def test_predicted_flips_are_what_noise_of_that_sigma_does() -> None:
    rng = np.random.default_rng(1)
    margins, sigmas = rng.exponential(2.0, 400), np.full(400, 0.7)
    simulated = [(rng.normal(0, 0.7, 400) > margins).sum() for _ in range(4000)]
    assert predicted_flips(margins, sigmas) == pytest.approx(np.mean(simulated), rel=0.02)


def test_without_noise_only_exact_ties_flip_half_of_the_time() -> None:
    assert predicted_flips(np.array([0.0, 1e-30, 2.0]), np.zeros(3)) == 0.5


@pytest.mark.parametrize(("count", "mean"), [(1, 0.01), (3, 2.5), (2, 7.0), (40, 20.0), (20, 20.0)])
def test_poisson_tail_equals_the_sum_of_its_terms(count: int, mean: float) -> None:
    terms = (math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(count, count + 300))
    assert poisson_tail(count, mean) == pytest.approx(math.fsum(terms), rel=1e-9)


def test_poisson_tail_at_its_ends() -> None:
    assert poisson_tail(0, 5.0) == 1.0
    assert poisson_tail(1, 0.0) == 0.0
    assert poisson_tail(12, 1e-4) == pytest.approx(1e-48 / math.factorial(12), rel=1e-3)


def test_the_margin_of_a_swap_is_of_the_widest_pair() -> None:
    assert margin_of_swap([5.0, 9.0], [4.9, 1.0]) == 8.0


def ledger(n_ties: int, predicted: float) -> Ledger:
    flips = tuple(Flip(0, i, Kind.TOP1, TIE, 0.1, 0.1, 1, 2) for i in range(n_ties))
    return Ledger(flips, predicted, 0.0)


def test_more_near_ties_than_margins_predict_are_a_surplus() -> None:
    assert not ledger(0, 0.0).surplus(Kind.TOP1)
    assert not ledger(1, 0.00135).surplus(Kind.TOP1)  # one tie at exactly three sigma is no surplus
    assert ledger(2, 0.0027).surplus(Kind.TOP1)
    assert ledger(30, 10.0).surplus(Kind.TOP1)
    assert not ledger(12, 10.0).surplus(Kind.TOP1)
    assert not ledger(30, 10.0).surplus(Kind.TOP5_SET)  # kinds are counted apart


def test_json_counts_by_kind_and_lists_every_flip() -> None:
    flips = (
        Flip(2, -3, Kind.TOP1, TIE, 0.1, 0.2, 11, 12),
        Flip(2, 4, Kind.TOP5_SET, UNEXPLAINED, 9.0, 0.2, 13, 14),
    )
    data = encode(Ledger(flips, 0.4, 0.6).record())
    assert data["counts"]["TOP1"] == {"ties": 1, "unexplained": 0, "predicted": 0.4, "surplus": False}
    assert data["counts"]["TOP5_SET"]["unexplained"] == 1
    assert [(f["token_idx"], f["ledger"]) for f in data["flips"]] == [(-3, "TIE"), (4, "UNEXPLAINED")]
