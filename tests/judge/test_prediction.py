"""Limits follow from passes with noise: how far each row moves, how surely that is known, and what exceeds it."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.base.errors import EngineError, TraceMismatchError
from parity_lib.judge.prediction import MEDIAN, Drawn, Prediction, limits_of, predicted, shares
from parity_lib.numerics.variances import Variances
from parity_lib.records.drift_limits import FALSE_ALARM, DriftLimits
from parity_lib.records.traces import F64, Position
from tests.judge.conftest import Case

RANDOM = np.random.default_rng(5)


def drawn(sigma: F64, draws: int = 16, n_vocab: int = 400) -> list[Drawn]:
    noise = RANDOM.standard_normal((draws, len(sigma), n_vocab)) * sigma[:, None]
    return [Drawn(np.sqrt(np.mean(one**2, axis=1)), one[:, :5]) for one in noise]


def places(n: int, prompts: int = 1) -> list[Position]:
    return [Position(i * prompts // n, i) for i in range(n)]


def limits(found: Prediction, n: int, prompts: int = 1) -> DriftLimits:
    return limits_of(found, places(n, prompts), reference="llama.cpp-avx2", candidate="crates-io-avx2", source="a test")


def test_the_spread_of_each_position_is_found_again() -> None:
    sigma = np.geomspace(1e-7, 1e-4, 50)
    found = predicted(drawn(sigma), places(50))
    assert found.sigma == pytest.approx(sigma, rel=0.1)
    assert np.sqrt(found.delta.values) == pytest.approx(sigma, rel=0.5)
    assert np.median(np.sqrt(found.pair.values) / sigma) == pytest.approx(np.sqrt(2), rel=0.05)
    assert found.freedom == pytest.approx(400, rel=0.2)


def test_a_sound_candidate_is_inside_and_one_that_errs_more_is_not() -> None:
    """The share of sound cells beyond a limit cannot be seen at 1e-6; that most are well inside, and 4x is not, can."""
    sigma = np.full(300, 1e-6)
    sigma[7] = 1e-4  # a position where the model amplifies rounding
    found = limits(predicted(drawn(sigma, draws=4, n_vocab=6), places(300, 10)), 300, 10)
    assert found.delta_limit < 12
    assert found.delta[7] > 20 * np.median(found.delta)
    assert MEDIAN[1] < found.pooled_limit < 2
    sound = drawn(sigma, draws=50, n_vocab=6)
    beyond = [(np.abs(one.errors) > found.delta_limit * found.delta[:, None]).any() for one in sound]
    assert not any(beyond)
    pooled = [np.sqrt(np.mean(np.square(one.rms / found.rms))) for one in sound]
    assert max(pooled) < found.pooled_limit < 4 * min(pooled)


def test_more_passes_make_narrower_limits() -> None:
    sigma = np.geomspace(1e-7, 1e-4, 300)
    few, many = (limits(predicted(drawn(sigma, draws, 6), places(300)), 300) for draws in (3, 30))
    assert many.delta_limit < few.delta_limit
    assert many.rms_limit < few.rms_limit
    assert few.false_alarm == many.false_alarm == FALSE_ALARM


def test_a_row_that_is_not_finite_has_no_limit_and_takes_none_of_the_others() -> None:
    sigma = np.full(40, 1e-6)
    passes = drawn(sigma)
    for one in passes:
        one.rms[3] = one.errors[3] = np.nan
    found = limits(predicted(passes, places(40)), 40)
    assert np.isnan(found.rms[3])
    assert np.isfinite(np.delete(found.rms, 3)).all()
    assert found.typical == pytest.approx(found.delta_limit * 1e-6, rel=0.1)


def test_without_a_finite_row_there_is_no_limit_and_no_error() -> None:
    passes = drawn(np.full(4, np.nan))
    found = limits(predicted(passes, places(4)), 4)
    assert np.isnan(found.delta).all()
    assert np.isfinite([found.delta_limit, found.pooled_limit]).all()


def test_rows_that_no_noise_moves_have_limits_of_zero_and_harm_no_other() -> None:
    sigma = np.full(40, 1e-6)
    sigma[:20] = 0.0
    found = limits(predicted(drawn(sigma), places(40)), 40)
    assert np.isfinite(found.delta).all()
    assert found.delta[30] == pytest.approx(1e-6, rel=0.3)
    nothing = limits(predicted(drawn(np.zeros(40)), places(40)), 40)
    assert (nothing.rms == 0).all()
    assert np.isfinite([nothing.delta_limit, nothing.pooled_limit]).all()


def test_rows_of_another_file_predict_nothing() -> None:
    passes = drawn(np.full(40, 1e-6), draws=4)
    for one in passes:
        one.errors[:] += 1e-5  # all passes miss the clean rows by the same
    with pytest.raises(EngineError, match=r"not what its graph computes.*25% of it common.*9\d% in common"):
        predicted(passes, places(40))
    for size, rows in ((0.1, slice(5, 6)), (2e-3, slice(None))):
        passes = drawn(np.full(40, 1e-6), draws=4)
        for one in passes:
            one.rms[rows] = size
        with pytest.raises(EngineError, match=r"prompt 0 token \d+: .* no limit can be predicted"):
            predicted(passes, places(40))


def test_one_pass_is_no_spread() -> None:
    with pytest.raises(TraceMismatchError, match="needs two passes"):
        predicted(drawn(np.ones(3), draws=1), places(3))


def spread_of(case: Case, factor: float) -> Prediction:
    own = Variances(np.square(case.pair.rms / case.pair.reference.std * factor), 40.0)
    return Prediction(own, own, own, 10.0, 10.0, 4)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.25, True), (0.5, False), (2.0, False), (100.0, False)])
def test_a_prediction_holds_if_what_is_observed_has_its_size(factor: float, holds: bool, case: Case) -> None:
    found = shares(case.pair, spread_of(case, factor))
    assert found.percentiles == pytest.approx([1 / factor] * 7)
    assert found.holds is holds


def test_some_positions_far_out_make_a_prediction_wrong(case: Case) -> None:
    prediction = spread_of(case, 1.0)
    prediction.rms.values[0] /= 16
    found = shares(case.pair, prediction)
    assert found.percentiles[3] == pytest.approx(1.0)
    assert found.inside < 0.99
    assert not found.holds


def test_a_prediction_of_other_rows_is_refused(case: Case) -> None:
    with pytest.raises(TraceMismatchError, match="of other rows"):
        shares(case.keep([0, 1]), spread_of(case, 1.0))
