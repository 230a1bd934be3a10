"""Reporting T5 literally: the numbers of a native file that nothing judges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from parity_lib.base.json_text import dump_line
from parity_lib.base.names import Kind, Outcome
from parity_lib.judge.t5_native import report_native
from parity_lib.records.row_numbers import NonFinite

from .conftest import PLACE, rank


def test_the_literal_report_of_equal_rows(case: Any) -> None:
    case.candidate = case.reference.copy()
    rung, divergences, measured = report_native(case.pair, case.positions)
    assert (rung.outcome, rung.expected, rung.compared, rung.limit) == (Outcome.REPORTED, 20, 20, None)
    assert measured.native.all.positions == 20
    assert measured.native.generated.positions == 12
    assert measured.native.all.top1_share == measured.native.all.top5_set_share == 1.0
    assert measured.native.all.rms_over_std == measured.native.all.max_abs == 0.0
    assert measured.native.first_top1_flips == ()
    assert divergences == []


def test_the_literal_numbers_are_of_the_flips_that_were_made(case: Any) -> None:
    for place in ((0, -2), (2, 3), (2, 1)):
        row, (first, second) = case.row(*place), (rank(case, place, i) for i in (0, 1))
        case.candidate[row, [first, second]] = case.candidate[row, [second, first]]
    _, _, measured = report_native(case.pair, case.positions)
    assert measured.native.all.top1_equal == 17
    assert measured.native.generated.top1_share == pytest.approx(10 / 12)
    assert measured.native.all.top5_set_equal == 20
    assert measured.native.all.kl_ref_cand.max > measured.native.all.kl_ref_cand.p50
    # The flip inside of the prompt chose no token: greedy text does not part there.
    flip = measured.native.first_top1_flips
    assert [(f.prompt_idx, f.token_idx) for f in flip] == [(2, 1)]
    assert flip[0].margin == pytest.approx(1.0, abs=1e-6)
    assert (flip[0].reference_id, flip[0].candidate_id) == (rank(case, PLACE, 0), rank(case, PLACE, 1))


def test_rms_is_given_in_the_unit_of_published_tables_and_of_the_bands(case: Any) -> None:
    case.reference += np.linspace(-20, 20, 20, dtype=np.float32)[:, None]  # the mean moves from row to row
    case.candidate = case.reference + np.random.default_rng(2).normal(0, 0.1, (20, 300)).astype(np.float32)
    measured = report_native(case.pair, case.positions)[2].native.all
    error = case.candidate.astype(np.float64) - case.reference
    within = case.reference.astype(np.float64).std(axis=1)
    assert measured.rms == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-9)
    assert measured.rms_over_std == pytest.approx(measured.rms / case.reference.astype(np.float64).std(), rel=1e-6)
    assert measured.rms_over_row_std == pytest.approx(measured.rms / np.sqrt(np.mean(within**2)), rel=1e-6)


def test_a_flip_of_the_very_first_generated_token_parts_the_texts(case: Any) -> None:
    row, (first, second) = case.row(1, 0), (rank(case, (1, 0), i) for i in (0, 1))
    case.candidate[row, [first, second]] = case.candidate[row, [second, first]]
    _, _, measured = report_native(case.pair, case.positions)
    assert [(f.prompt_idx, f.token_idx) for f in measured.native.first_top1_flips] == [(1, 0)]


def test_a_missing_position_makes_the_report_incomplete(case: Any) -> None:
    rung, divergences, measured = report_native(case.keep(list(range(19))), case.positions)
    assert rung.outcome is Outcome.INCOMPLETE
    assert measured.native.all.positions == 19
    assert divergences == []


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_row_that_is_not_finite_diverges_with_its_position(case: Any, side: str) -> None:
    getattr(case, side)[3, 0] = np.nan
    rung, divergences, measured = report_native(case.pair, case.positions)
    assert rung.outcome is Outcome.DIVERGED
    assert "1 positions are not finite" in rung.note
    assert [(d.kind, d.prompt_idx, d.token_idx) for d in divergences] == [(Kind.NON_FINITE, *case.positions[3])]
    assert measured.native.n_nonfinite == NonFinite(**({"reference": 0, "candidate": 0} | {side: 1}))
    assert math.isnan(measured.native.all.kl_ref_cand.mean)


def test_a_report_of_nothing_has_no_numbers(case: Any) -> None:
    rung, _, measured = report_native(case.keep([]), case.positions)
    assert rung.outcome is Outcome.INCOMPLETE
    assert rung.worst is None
    assert measured.native.all is None


def test_the_report_is_the_same_text_twice(case: Any) -> None:
    first, second = (dump_line(report_native(case.pair, case.positions)[1]) for _ in range(2))
    assert first == second
