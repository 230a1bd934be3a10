"""Stored tops stand in for whole rows where they can, and say so where they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError, UsageError
from parity_lib.judge.again import common, pair_of_tops, rejudge
from parity_lib.numerics.metrics import pair_statistics, row_digests
from parity_lib.records.traces import F32, LogitTrace, Position
from tests.run_info import run_info

RUN = run_info("burn")


def traces(ours: F32, theirs: F32) -> tuple[LogitTrace, LogitTrace]:
    both = pair_statistics(ours, theirs)
    n = len(ours)
    places = {"prompt_idx": np.zeros(n, np.int32), "token_idx": np.arange(n, dtype=np.int32)}
    sides = []
    for rows, found in ((ours, both.reference), (theirs, both.candidate)):
        fields = {name: getattr(found, name) for name in found.__slots__}
        fed = np.full(n, 3, np.int32)
        digests = row_digests(rows)
        sides.append(LogitTrace(RUN, rows.shape[1], **places, fed_id=fed, row_sha256=digests, **fields))
    return sides[0], sides[1]


def test_tops_that_hold_the_whole_vocabulary_give_the_whole_statistics() -> None:
    rng = np.random.default_rng(3)
    ours = rng.normal(0, 5, (6, 60)).astype(np.float32)
    theirs = ours + rng.normal(0, 1e-3, ours.shape).astype(np.float32)
    found, wanted = pair_of_tops(*traces(ours, theirs)), pair_statistics(ours, theirs)
    assert found.rms == pytest.approx(wanted.rms, rel=1e-12)
    assert np.array_equal(found.candidate_at_reference, wanted.candidate_at_reference)
    assert np.array_equal(found.reference_at_candidate, wanted.reference_at_candidate)
    assert np.array_equal(found.max_id, wanted.max_id)
    assert np.isnan(found.kl_ref_cand).all()


def test_equal_rows_are_equal_in_everything() -> None:
    rows = np.random.default_rng(4).normal(0, 5, (4, 500)).astype(np.float32)
    found = pair_of_tops(*traces(rows, rows))
    for name in ("rms", "max_abs", "kl_ref_cand", "kl_cand_ref", "jsd"):
        assert np.all(getattr(found, name) == 0), name


def test_logit_that_was_not_stored_counts_as_the_lowest_stored_one() -> None:
    ours = np.linspace(0, 50, 500, dtype=np.float32)[None]
    theirs = ours.copy()
    theirs[0, 499] = -100.0  # the other side's first is far below its own stored top
    reference, candidate = traces(ours, theirs)
    found = pair_of_tops(reference, candidate)
    assert found.candidate_at_reference[0, 0] == candidate.topk_logits[0, -1]
    assert found.candidate_at_reference[0, 1] == ours[0, 498]


def test_other_tokens_or_other_positions_are_refused() -> None:
    rows = np.random.default_rng(4).normal(0, 5, (4, 500)).astype(np.float32)
    reference, candidate = traces(rows, rows)
    other = replace(candidate, fed_id=np.array([3, 3, 4, 3], np.int32))
    with pytest.raises(TraceMismatchError, match="same tokens"):
        pair_of_tops(reference, other)
    with pytest.raises(TraceMismatchError, match="same tokens"):
        pair_of_tops(reference, traces(rows[:3], rows[:3])[1])


def test_one_engine_is_compared_up_to_where_the_texts_part() -> None:
    rows = np.random.default_rng(4).normal(0, 5, (5, 500)).astype(np.float32)
    ours, theirs = traces(rows, rows)
    positions = [Position(0, i) for i in range(5)]
    assert common(ours, theirs, positions)[2:] == (positions, 0)
    parted = replace(theirs, fed_id=np.array([3, 3, 4, 3, 4], np.int32))
    left, right, kept, lost = common(ours, parted, positions)
    assert (len(left), len(right), kept, lost) == (2, 2, positions[:2], 3)
    assert np.array_equal(left.row_sha256, ours.row_sha256[:2])
    missing = [Position(1, 0), *positions]  # a prompt that neither side delivered stays expected
    assert common(ours, parted, missing)[2] == [Position(1, 0), *positions[:2]]
    with pytest.raises(TraceMismatchError, match="share no context"):
        common(ours, replace(theirs, fed_id=np.full(5, 9, np.int32)), positions)
    with pytest.raises(TraceMismatchError, match="scored other positions"):
        common(ours, traces(rows[:3], rows[:3])[1], positions)


def test_unknown_side_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown side"):
        rejudge("a", "b", "left")
