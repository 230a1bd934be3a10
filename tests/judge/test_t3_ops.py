"""Three numbers for each op, and what they do and do not see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import Kind, Outcome
from parity_lib.judge.t3_ops import Replayed, judge_ops, non_finite_words
from parity_lib.numerics.op_error import (
    CHANNEL_LIMIT,
    FEW_ROWS,
    POSITION_LIMIT,
    TENSOR_LIMIT,
    OpError,
    not_finite,
    op_error,
)
from parity_lib.records.traces import F32

RNG = np.random.default_rng(3)


def values(*shape: int) -> F32:
    return RNG.normal(size=shape).astype(np.float32)


def compared(reference: F32, candidate: F32, site: str = "ffn_out-7", op: str = "MUL_MAT") -> OpError:
    return op_error(site, op, 0, 10, reference, candidate)


def replayed(*errors: OpError, expected: int | None = None) -> Replayed:
    return Replayed(3, 5, "strict", (32,), len(errors) if expected is None else expected, errors)


def test_the_three_numbers_are_ratios_of_squares() -> None:
    reference = values(20, 30)
    noise = (1e-3 * RNG.normal(size=(20, 30))).astype(np.float32)
    found = compared(reference, reference + noise)
    squares, energy = np.square((reference + noise).astype(float) - reference), np.square(reference.astype(float))
    assert found.nmse == pytest.approx(squares.sum() / energy.sum())
    rows, columns = squares.sum(1) / energy.sum(1), squares.sum(0) / energy.sum(0)
    assert (found.position, found.channel) == (10 + rows.argmax(), columns.argmax())
    assert [found.position_nmse, found.channel_nmse] == pytest.approx([rows.max(), columns.max()])
    assert found.by_position == pytest.approx(rows)
    assert found.max_abs == pytest.approx(np.sqrt(squares.max()))


def test_heads_are_pooled_for_a_position_and_apart_for_a_channel() -> None:
    reference = values(4, 20, 8)
    candidate = reference.copy()
    candidate[2, 5, 3] *= 1.01
    found = compared(reference, candidate, "kqv-7")
    assert (found.position, found.channel) == (15, 2 * 8 + 3)
    keys = compared(reference, candidate, "kq-7")
    assert (keys.position, keys.channel) == (15, 2)  # a whole head: few rows see the last keys


def test_one_wrong_row_of_a_weight_is_seen_by_its_channel_alone() -> None:
    reference = values(64, 4096)
    candidate = reference.copy()
    candidate[:, 17] *= 1 + 4e-4
    found = compared(reference, candidate)
    assert (found.channel, found.share > 1) == (17, True)
    assert (
        found.channel_nmse / CHANNEL_LIMIT > max(found.nmse / TENSOR_LIMIT, found.position_nmse / POSITION_LIMIT) / 30
    )


def test_a_channel_of_few_rows_is_not_judged_by_itself() -> None:
    reference = values(FEW_ROWS - 1, 1000)
    reference[:, 4] *= 1e-12
    candidate = reference.copy()
    candidate[:, 4] *= 2
    assert compared(reference, candidate).channel_nmse == pytest.approx(1.0)
    assert compared(reference, candidate).share < 1
    longer = np.concatenate([reference, reference])
    assert compared(longer, np.concatenate([candidate, candidate])).share > 1


def test_a_pass_of_few_rows_is_judged_by_its_positions() -> None:
    reference = values(1, 1000)
    near, far = reference * np.float32(1 + 2.5e-6), reference * np.float32(1 + 4e-6)
    assert TENSOR_LIMIT < compared(reference, near).nmse < POSITION_LIMIT
    assert compared(reference, near).share < 1 < compared(reference, far).share
    long = np.concatenate([reference] * FEW_ROWS)
    assert compared(long, long * np.float32(1 + 2.5e-6)).share > 1


def test_moves_and_sums_are_exact_or_wrong() -> None:
    reference = values(20, 30)
    candidate = reference.copy()
    assert compared(reference, candidate, "l_out-7", "ADD").share == 0
    candidate[3, 4] = np.nextafter(candidate[3, 4], np.float32(9))
    assert compared(reference, candidate, "l_out-7", "ADD").share == math.inf
    assert compared(reference, candidate).share < 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_over_every_limit(bad: float) -> None:
    reference = values(20, 30)
    candidate = reference.copy()
    candidate[3, 4] = bad
    for pair in ((reference, candidate), (candidate, reference)):
        found = compared(*pair)
        assert found.share == math.inf
        rung, divergences = judge_ops([replayed(found)])
        assert (rung.outcome, len(divergences)) == (Outcome.DIVERGED, 1)
    same = compared(candidate, candidate)
    assert (same.share, same.lost, same.n_lost) == (0, 13, 1)
    rung, divergences = judge_ops([replayed(same)])
    assert (rung.outcome, rung.compared, divergences) == (Outcome.INCOMPLETE, 0, [])


@pytest.mark.parametrize("shape", [(20, 30), (4, 20, 30)])
def test_a_position_without_a_finite_reference_accuses_nobody(shape: tuple[int, ...]) -> None:
    reference = values(*shape)
    candidate = reference.copy()
    reference[..., 3, 4] = np.nan
    lost = not_finite(reference)
    assert np.flatnonzero(lost).tolist() == [3]
    found = op_error("ffn_out-7", "MUL_MAT", 0, 10, reference, candidate, lost)
    assert (found.share, found.lost, found.n_lost) == (0, 13, 1)
    rung, divergences = judge_ops([replayed(found)])
    assert (rung.outcome, rung.compared, divergences) == (Outcome.INCOMPLETE, 0, [])
    assert "1 of 1 ops were not judged at each position" in rung.note
    assert non_finite_words([replayed(found)]) in rung.note
    assert "first not finite at ffn_out-7 (MUL_MAT), prompt 3 token 9, prefill" in rung.note
    candidate[..., 5, 4] += 1
    found = op_error("ffn_out-7", "MUL_MAT", 0, 10, reference, candidate, lost)
    assert found.position == 15
    assert judge_ops([replayed(found)])[0].outcome is Outcome.DIVERGED


def test_another_value_where_the_reference_has_zero_is_infinitely_wrong() -> None:
    assert compared(np.zeros((20, 3), np.float32), np.full((20, 3), 1e-30, np.float32)).share == math.inf


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(TraceMismatchError, match="different shape"):
        compared(values(2, 3), values(3, 2))
    with pytest.raises(TraceMismatchError, match="different shape"):
        compared(values(0, 3), values(0, 3))


def test_every_op_over_its_limit_is_a_line_in_the_order_in_which_they_ran() -> None:
    reference = values(32, 100)
    good = compared(reference, reference, "attn_norm-0", "MUL")
    bad = compared(reference, reference * np.float32(1.001), "ffn_out-7")
    later = compared(reference, reference * np.float32(1.1), "l_out-7", "ADD")
    rung, divergences = judge_ops([replayed(good, bad, later)])
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.DIVERGED, 3, 3)
    assert [(d.kind, d.where, d.prompt_idx) for d in divergences] == [
        (Kind.OP, "ffn_out-7", 3),
        (Kind.OP, "l_out-7", 3),
    ]
    assert divergences[0].token_idx == bad.position - 4
    assert divergences[0].delta == pytest.approx(1e-6, rel=0.01)
    assert "MUL_MAT, prefill of strict" in divergences[0].note
    assert rung.worst_where == "l_out-7, prompt 3, prefill"


def test_fewer_ops_than_the_file_promises_are_no_parity() -> None:
    good = compared(values(32, 10), values(32, 10) * 0)
    rung, _ = judge_ops([replayed(replace(good, nmse=0.0, position_nmse=0.0, channel_nmse=0.0), expected=2)])
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.PARITY, 2, 1)  # conclude() makes it incomplete
    assert judge_ops([])[0].outcome is Outcome.INCOMPLETE


def test_a_row_whose_large_channel_cancels_is_judged_by_what_it_sums() -> None:
    weights, given = values(30, 64).astype(np.float64), values(20, 64).astype(np.float64)
    weights[4] *= 1000
    given[3] -= weights[4] * (given[3] @ weights[4]) / (weights[4] @ weights[4])  # now channel 4 of position 3 cancels
    reference = (given @ weights.T).astype(np.float32)
    candidate = reference.copy()
    candidate[3, 4] += np.float32(1e-3)  # 1e-7 of what is summed
    summed = np.square(given) @ np.square(weights).T
    assert compared(reference, candidate).share > 10
    found = op_error("ffn_out-7", "MUL_MAT", 0, 10, reference, candidate, None, summed)
    assert found.share < 1
    candidate[3, 5] += 1  # a channel of the usual size is wrong
    assert op_error("ffn_out-7", "MUL_MAT", 0, 10, reference, candidate, None, summed).share > 1
