"""Flips of an aligned pair by place and margin, and how many a noise makes: against formula and against counting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from parity_lib.base.names import Kind, LedgerClass
from parity_lib.judge.align import align
from parity_lib.judge.flips import DRAWS, expected_changes, ledger_of, predicted_flips, top5

N = 4000


def ladder(gap: float, width: int = 24) -> np.ndarray:
    """Return N rows of logits, descending, each ``gap`` below the one before."""
    return np.tile(-gap * np.arange(width, dtype=np.float64), (N, 1))


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0])
def test_two_logits_change_places_as_often_as_the_formula_says(gap: float) -> None:
    sigma = np.full(N, 0.7)
    found = expected_changes(ladder(gap, 2), sigma, 1)
    expected = predicted_flips(np.full(N, gap), sigma)
    assert expected == pytest.approx(N * 0.5 * math.erfc(gap / (0.7 * math.sqrt(2))))
    assert found == pytest.approx(expected, abs=4 * math.sqrt(expected / DRAWS))


def test_many_near_logits_change_a_set_more_often_than_its_last_pair() -> None:
    sigma = np.full(N, 1.0)
    found = expected_changes(ladder(0.3), sigma, 5)
    assert found > 1.3 * predicted_flips(np.full(N, 0.3), sigma)
    rng = np.random.default_rng(4)
    noisy = ladder(0.3) + rng.normal(0, math.sqrt(0.5), (N, 24))
    counted = sum(set(row) != set(range(5)) for row in np.argsort(-noisy, axis=1)[:, :5].tolist())
    assert found == pytest.approx(counted, rel=0.05)


def test_the_same_draws_each_time_and_no_change_without_a_rival() -> None:
    sigma = np.full(N, 0.5)
    assert expected_changes(ladder(0.3), sigma, 5) == expected_changes(ladder(0.3), sigma, 5)
    assert expected_changes(ladder(0.3, 5), sigma, 5) == 0.0
    assert expected_changes(ladder(0.3)[:0], sigma[:0], 1) == 0.0
    assert expected_changes(ladder(0.3), np.zeros(N), 5) == 0.0


def test_each_flip_has_its_own_sigma_and_both_ids(case: Any) -> None:
    changed = ((0, 1), (2, 3))
    for place in changed:
        row = case.row(*place)
        first, second = np.argsort(-case.reference[row], kind="stable")[:2]
        case.candidate[row, [first, second]] = case.candidate[row, [second, first]]
    seen = align(case.pair, case.positions)
    sigma = np.full(20, 0.1)
    sigma[case.row(2, 3)] = 0.5  # the margin is 1 logit
    flips = ledger_of(seen, sigma).flips
    assert [(f.position, f.kind, f.ledger, f.sigma) for f in flips] == [
        ((0, 1), Kind.TOP1, LedgerClass.UNEXPLAINED, 0.1),
        ((2, 3), Kind.TOP1, LedgerClass.TIE, 0.5),
    ]
    row = case.row(0, 1)
    assert (flips[0].reference_id, flips[0].candidate_id) == (
        top5(seen.pair.reference, row)[0][0],
        top5(seen.pair.candidate, row)[0][0],
    )
    assert [token for token, _ in top5(seen.pair.reference, row)] == seen.pair.reference.topk_ids[row, :5].tolist()
