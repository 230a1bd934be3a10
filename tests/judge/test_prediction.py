"""A spread is predicted from passes with noise; what is observed over it is counted position by position."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.judge.prediction import Drawn, Prediction, freedom, predicted, shares
from parity_lib.records.traces import F64
from tests.judge.conftest import Case

RANDOM = np.random.default_rng(5)


def drawn(sigma: F64, draws: int = 16) -> list[Drawn]:
    noise = RANDOM.standard_normal((draws, len(sigma), 400)) * sigma[:, None]
    return [Drawn(np.sqrt(np.mean(one**2, axis=1)), one[:, :5]) for one in noise]


def test_the_spread_of_each_position_is_found_again() -> None:
    sigma = np.geomspace(1e-7, 1e-4, 50)
    found = predicted(drawn(sigma))
    assert found.rms == pytest.approx(sigma, rel=0.1)
    assert found.delta == pytest.approx(sigma, rel=0.5)
    assert np.median(found.pair / sigma) == pytest.approx(np.sqrt(2), rel=0.05)
    assert found.freedom == pytest.approx(400, rel=0.2)


@pytest.mark.parametrize("degrees", [1, 3, 30])
def test_the_freedom_of_squares_does_not_depend_on_their_scale(degrees: int) -> None:
    squares = RANDOM.chisquare(degrees, (4, 20_000)) * np.geomspace(1e-14, 1.0, 20_000)
    assert freedom(squares) == pytest.approx(degrees, rel=0.1)


def test_draws_that_do_not_differ_have_no_end_of_freedom() -> None:
    assert freedom(np.ones((4, 3))) == np.inf


def test_one_pass_is_no_spread() -> None:
    with pytest.raises(TraceMismatchError, match="needs two passes"):
        predicted(drawn(np.ones(3), draws=1))


def spread_of(case: Case, factor: float) -> Prediction:
    own = case.pair.rms / case.pair.reference.std * factor
    return Prediction(own, own, own, 10.0)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.25, True), (0.5, False), (2.0, False), (100.0, False)])
def test_a_prediction_holds_if_what_is_observed_has_its_size(factor: float, holds: bool, case: Case) -> None:
    found = shares(case.pair, spread_of(case, factor))
    assert found.percentiles == pytest.approx([1 / factor] * 7)
    assert found.holds is holds


def test_some_positions_far_out_make_a_prediction_wrong(case: Case) -> None:
    prediction = spread_of(case, 1.0)
    prediction.rms[0] /= 4
    found = shares(case.pair, prediction)
    assert found.percentiles[3] == pytest.approx(1.0)
    assert found.inside < 0.99
    assert not found.holds


def test_a_prediction_of_other_rows_is_refused(case: Case) -> None:
    with pytest.raises(TraceMismatchError, match="of other rows"):
        shares(case.keep([0, 1]), spread_of(case, 1.0))
