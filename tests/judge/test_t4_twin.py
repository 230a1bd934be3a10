"""Judging T4: seeded faults in the rows turn red with the right kind at the right position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Kind, LedgerClass, Outcome
from parity_lib.judge.flips import Ledger
from parity_lib.judge.t4_twin import LITERAL, judge_twin
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import Divergence, RungResult
from tests.drift_limits import drift_limits

PLACE = (2, 1)  # prompt, token


def judge(case: Any, limits: DriftLimits, **kw: str) -> tuple[RungResult, list[Divergence], Ledger]:
    return judge_twin(case.pair, case.positions, limits, **kw)


def kinds(divergences: list[Divergence], place: tuple[int, int] = PLACE) -> list[Kind]:
    assert {(d.prompt_idx, d.token_idx) for d in divergences if d.prompt_idx is not None} == {place}
    return [d.kind for d in divergences if d.prompt_idx is not None]


def rank(case: Any, place: tuple[int, int], number: int) -> int:
    """Return the id that the reference has at a rank (0 is the first) of a position."""
    return int(np.argsort(-case.reference[case.row(*place)], kind="stable")[number])


def test_equal_but_for_rounding_is_parity(case: Any, make_limits: Any) -> None:
    rung, divergences, ledger = judge(case, make_limits())
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.PARITY, 20, 20)
    assert not divergences
    assert not ledger.flips
    assert rung.margin is not None
    assert rung.margin > 1
    assert rung.source == "measured for a test"


def test_the_worst_case_is_the_one_nearest_to_its_limit(case: Any, make_limits: Any) -> None:
    id_ = rank(case, PLACE, 0)
    case.candidate[case.row(*PLACE), id_] = case.reference[case.row(*PLACE), id_] + np.float32(2e-3)
    rung, divergences, _ = judge(case, make_limits())
    assert rung.worst_where == "delta at prompt 2 token 1"
    assert rung.unit == "logits"
    assert rung.worst == pytest.approx(2e-3, rel=1e-2)
    assert rung.worst == abs(divergences[0].delta)
    assert rung.limit == divergences[0].limit


def test_top1_flip(case: Any, make_limits: Any) -> None:
    row, (first, second) = case.row(*PLACE), (rank(case, PLACE, i) for i in (0, 1))
    case.candidate[row, [first, second]] = case.candidate[row, [second, first]]
    rung, divergences, ledger = judge(case, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert "1 positions diverged" in rung.note
    assert kinds(divergences)[:2] == [Kind.TOP1, Kind.LOGIT_DELTA]
    top1 = divergences[0]
    assert top1.ledger is LedgerClass.UNEXPLAINED
    assert (top1.top5_llamacpp[0][0], top1.top5_burn[0][0]) == (first, second)
    assert top1.delta_id in (first, second)
    assert abs(top1.delta) == pytest.approx(1.0, abs=1e-4)
    assert (ledger.flips[0].reference_id, ledger.flips[0].candidate_id) == (first, second)
    assert ledger.flips[0].margin == pytest.approx(1.0, abs=1e-6)


def test_top5_set_flip_keeps_top1(case: Any, make_limits: Any) -> None:
    row, (fifth, sixth) = case.row(*PLACE), (rank(case, PLACE, i) for i in (4, 5))
    case.candidate[row, [fifth, sixth]] = case.candidate[row, [sixth, fifth]]
    _, divergences, ledger = judge(case, make_limits())
    assert kinds(divergences)[:2] == [Kind.TOP5_SET, Kind.LOGIT_DELTA]
    assert (ledger.flips[0].reference_id, ledger.flips[0].candidate_id) == (fifth, sixth)


def test_another_order_within_the_top5_is_no_flip(case: Any, make_limits: Any) -> None:
    row, ids = case.row(*PLACE), [rank(case, PLACE, i) for i in (1, 2)]
    case.candidate[row, ids] = case.candidate[row, ids[::-1]]
    _, divergences, ledger = judge(case, make_limits())
    assert not ledger.flips
    assert Kind.LOGIT_DELTA in kinds(divergences)


def test_a_delta_outside_of_the_band_with_every_rank_kept(case: Any, make_limits: Any) -> None:
    case.candidate[case.row(*PLACE), rank(case, PLACE, 0)] += np.float32(0.5)
    _, divergences, _ = judge(case, make_limits())
    delta = divergences[0]
    assert delta.kind is Kind.LOGIT_DELTA
    assert delta.delta == pytest.approx(0.5, abs=1e-4)  # candidate minus reference
    assert delta.delta_id == rank(case, PLACE, 0)


def test_one_logit_of_many_is_seen_by_delta_where_rms_is_inside(case: Any, make_limits: Any) -> None:
    wide = replace(make_limits(), rms_limit=1e6, pooled_limit=1e6, prompt_limit=1e6)
    case.candidate[case.row(*PLACE), rank(case, PLACE, 4)] += np.float32(0.1)
    _, divergences, _ = judge(case, wide)
    assert [d.kind for d in divergences] == [Kind.LOGIT_DELTA]


def test_no_limit_is_below_one_step_of_the_logits(case: Any, make_limits: Any) -> None:
    tiny = make_limits(sigma=5e-324, pair=5e-324, pooled=3.0)
    case.candidate = case.reference.copy()
    rung, _, _ = judge(case, tiny)
    assert (rung.outcome, rung.worst) == (Outcome.PARITY, 0.0)
    assert rung.limit is not None
    assert rung.limit > 0
    at = case.row(*PLACE), rank(case, PLACE, 0)
    step = np.spacing(np.abs(case.reference[case.row(*PLACE)]).max())
    for n_steps, found in ((1, set()), (2, {Kind.LOGIT_DELTA}), (40, {Kind.LOGIT_DELTA, Kind.RMS})):
        case.candidate[at] = case.reference[at] - n_steps * step
        rung, divergences, _ = judge(case, tiny)
        assert {d.kind for d in divergences} == found, n_steps
        assert (rung.outcome is Outcome.PARITY) == (not found)


def test_drift_below_the_top_is_seen_by_rms(case: Any, make_limits: Any) -> None:
    row = case.row(*PLACE)
    low = np.argsort(case.reference[row])[:200]
    case.candidate[row, low] += np.float32(0.01)
    rung, divergences, _ = judge(case, make_limits())
    assert kinds(divergences) == [Kind.RMS]
    assert divergences[0].delta == pytest.approx(0.01 * math.sqrt(200 / 300), rel=1e-2)
    assert divergences[0].delta > divergences[0].limit
    assert divergences[0].delta_id is None
    assert rung.outcome is Outcome.DIVERGED


def test_drift_everywhere_inside_each_position_is_seen_pooled(case: Any, make_limits: Any) -> None:
    case.candidate = case.reference + 3 * (case.candidate - case.reference)  # 3 of 10 predicted sigmas at each position
    rung, divergences, _ = judge(case, make_limits())
    where = ["all positions", "prompt 0", "prompt 1", "prompt 2"]
    assert [(d.kind, d.where, d.prompt_idx) for d in divergences] == [
        (Kind.RMS, f"pooled over {w}", None) for w in where
    ]
    assert divergences[0].delta == pytest.approx(2.36, rel=0.01)  # of 3: one float32 step of some rows is larger
    assert rung.worst_where.startswith("pooled over prompt ")
    assert (rung.unit, rung.worst, rung.limit) == ("predicted sigma", max(d.delta for d in divergences), 2.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_non_finite_value_diverges_whichever_side_has_it(
    case: Any, make_limits: Any, value: float, side: str
) -> None:
    getattr(case, side)[case.row(*PLACE), 250] = value
    rung, divergences, ledger = judge(case, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert kinds(divergences) == [Kind.NON_FINITE]
    assert f"{'llama.cpp' if side == 'reference' else 'burn'} 1" in divergences[0].note
    assert not ledger.flips
    assert rung.worst is not None
    assert math.isnan(rung.worst)  # the row has no number, which is farther from its limit than any
    assert rung.worst_where == "rms at prompt 2 token 1"


def test_equal_infinities_on_both_sides_are_still_not_finite(case: Any, make_limits: Any) -> None:
    for side in (case.reference, case.candidate):
        side[case.row(*PLACE), 250] = -np.inf
    rung, divergences, _ = judge(case, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert kinds(divergences) == [Kind.NON_FINITE]


def close_call(case: Any, place: tuple[int, int] = PLACE) -> tuple[int, int]:
    """Make the two first logits of a position nearly equal in the reference and swapped in the candidate."""
    row, (first, second) = case.row(*place), (rank(case, place, i) for i in (0, 1))
    case.reference[row, second] = case.reference[row, first]
    case.reference[row, first] = np.nextafter(case.reference[row, first], np.float32(np.inf))
    case.candidate[row] = case.reference[row]
    case.candidate[row, [first, second]] = case.reference[row, [second, first]]
    return first, second


def test_a_near_tie_inside_the_band_is_counted_and_passes(case: Any, make_limits: Any) -> None:
    close_call(case)
    rung, divergences, ledger = judge(case, make_limits())
    assert rung.outcome is Outcome.PARITY
    assert not divergences
    assert [(f.kind, f.ledger, f.position) for f in ledger.flips] == [(Kind.TOP1, LedgerClass.TIE, Position(*PLACE))]
    assert "1 near-ties counted" in rung.note
    assert ledger.predicted_top1 > 0.1


def test_the_literal_policy_refuses_every_near_tie(case: Any, make_limits: Any) -> None:
    close_call(case)
    rung, divergences, _ = judge(case, make_limits(), policy=LITERAL)
    assert rung.outcome is Outcome.DIVERGED
    assert [(d.kind, d.ledger) for d in divergences] == [(Kind.TOP1, LedgerClass.TIE)]


def test_a_near_tie_outside_of_the_band_diverges(case: Any, make_limits: Any) -> None:
    close_call(case)
    case.candidate[case.row(*PLACE)] -= np.float32(0.1)  # what all logits share changes no margin
    _, divergences, _ = judge(case, make_limits())
    assert (divergences[0].kind, divergences[0].ledger) == (Kind.TOP1, LedgerClass.TIE)


def test_more_near_ties_than_margins_predict_diverge(case: Any, make_limits: Any) -> None:
    # Each margin is 2.9 sigma: one flip in 500 is expected there, and every position flips.
    limits = make_limits(sigma=1e-4, pair=1e-4)
    for place in case.positions:
        row, (first, second) = case.row(*place), (rank(case, place, i) for i in (0, 1))
        std = case.reference[row].astype(np.float64).std()
        case.reference[row, second] = case.reference[row, first] - np.float32(2.9e-4 * std)
        case.candidate[row] = case.reference[row]
        case.candidate[row, [first, second]] = case.reference[row, [second, first]]
    rung, divergences, ledger = judge(case, limits)
    assert ledger.count(LedgerClass.TIE, Kind.TOP1) == 20
    assert ledger.surplus(Kind.TOP1)
    assert rung.outcome is Outcome.DIVERGED
    assert [d.kind for d in divergences] == [Kind.TOP1] * 20
    assert "more near-ties than margins predict" in divergences[0].note


def test_a_missing_position_is_incomplete_by_name(case: Any, make_limits: Any) -> None:
    rows = [i for i in range(20) if i != case.row(*PLACE)]
    rung, divergences, _ = judge_twin(case.keep(rows), case.positions, make_limits())
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.INCOMPLETE, 20, 19)
    assert "missing: prompt 2 token 1" in rung.note
    assert not divergences


def test_a_divergence_is_not_hidden_by_a_missing_row(case: Any, make_limits: Any) -> None:
    case.candidate[case.row(*PLACE), rank(case, PLACE, 0)] += np.float32(0.5)
    rung, divergences, _ = judge_twin(case.keep(list(range(1, 20))), case.positions, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert rung.compared == 19
    assert "missing: prompt 0 token -3" in rung.note
    assert Kind.LOGIT_DELTA in kinds(divergences)


def test_nothing_expected_and_nothing_found_is_incomplete(case: Any, make_limits: Any) -> None:
    for expected in ([], case.positions):
        rung, divergences, ledger = judge_twin(case.keep([]), expected, make_limits())
        assert rung.outcome is Outcome.INCOMPLETE
        assert "no position was compared" in rung.note
        assert not divergences
        assert not ledger.flips


def test_a_position_without_a_limit_is_incomplete_and_named(case: Any, make_limits: Any) -> None:
    rung, _, _ = judge(case, drift_limits(case.positions[:-1]))
    assert rung.outcome is Outcome.INCOMPLETE
    assert "prompt 2 token 3: no limit was predicted for a position" in rung.note
    assert rung.compared == 0


def test_an_unknown_policy_is_refused(case: Any, make_limits: Any) -> None:
    with pytest.raises(UsageError, match="lenient"):
        judge(case, make_limits(), policy="lenient")


def test_drift_of_one_prompt_is_seen_pooled_over_it(case: Any, make_limits: Any) -> None:
    rows = [case.row(*position) for position in case.positions if position.prompt_idx == 1]
    case.candidate[rows] = case.reference[rows] + 4 * (case.candidate[rows] - case.reference[rows])
    _, divergences, _ = judge(case, make_limits())
    assert [d.where for d in divergences] == ["pooled over prompt 1"]


def test_each_position_has_a_limit_of_its_own(case: Any, make_limits: Any) -> None:
    sigma = np.full(20, 1e-6)
    sigma[case.row(0, -3)] = 0.1
    for place in ((0, -3), (0, -2)):
        case.candidate[case.row(*place), rank(case, place, 0)] += np.float32(0.5)
    _, divergences, _ = judge(case, make_limits(sigma=sigma))
    assert set(kinds([d for d in divergences if not (d.where or "").startswith("pooled")], (0, -2))) == {
        Kind.LOGIT_DELTA,
        Kind.RMS,
    }


def test_divergences_stand_in_order_of_position_and_kind(case: Any, make_limits: Any) -> None:
    for place in ((2, 3), (0, -3), (0, 4)):
        row, (first, second) = case.row(*place), (rank(case, place, i) for i in (0, 1))
        case.candidate[row, [first, second]] = case.candidate[row, [second, first]]
    _, divergences, _ = judge(case, make_limits())
    places = [(d.prompt_idx, d.token_idx) for d in divergences if d.prompt_idx is not None]
    assert places == sorted(places)
    assert [d.kind for d in divergences[:3]] == [Kind.TOP1, Kind.LOGIT_DELTA, Kind.RMS]


def test_the_order_of_the_trace_changes_nothing(case: Any, make_limits: Any) -> None:
    case.candidate[case.row(*PLACE), rank(case, PLACE, 0)] += np.float32(0.5)
    order = np.random.default_rng(5).permutation(20).tolist()
    straight = judge(case, make_limits())
    shuffled = judge_twin(case.keep(order), case.positions, make_limits())
    assert straight[:2] == shuffled[:2]


def test_a_candidate_with_another_pairing_of_rows_is_red_everywhere(case: Any, make_limits: Any) -> None:
    case.candidate = np.roll(case.candidate, 1, axis=0)
    rung, divergences, _ = judge(case, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert len({(d.prompt_idx, d.token_idx) for d in divergences if d.prompt_idx is not None}) == 20


@pytest.mark.parametrize("n_vocab", [1, 2, 5, 6, 40])
def test_small_vocabularies(case: Any, make_limits: Any, n_vocab: int) -> None:
    case.reference = np.ascontiguousarray(case.reference[:, :n_vocab])
    case.candidate = case.reference.copy()
    rung, divergences, ledger = judge(case, make_limits(pair=1.0))
    assert (rung.outcome, len(divergences)) == (Outcome.PARITY, 0)
    assert (ledger.predicted_top1 > 0) == (n_vocab > 1)  # without a second logit nothing can flip,
    assert (ledger.predicted_top5_set > 0) == (n_vocab > 5)  # and without a sixth the set cannot change
    case.candidate = case.reference + np.float32(1.0)
    rung, divergences, _ = judge(case, make_limits())
    assert rung.outcome is Outcome.DIVERGED
    assert {d.kind for d in divergences} == {Kind.LOGIT_DELTA, Kind.RMS}
