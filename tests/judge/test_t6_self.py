"""T6's judge: every expected row of every relation counts, a difference is named, a missing row is never green."""

from __future__ import annotations

import pytest

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.judge.t6_self import RELATIONS, Found, judge_self
from parity_lib.records.measured import Relation
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import CellId

ROWS = {Position(prompt, token): bytes([prompt, token + 9]) for prompt in (0, 1) for token in range(-2, 4)}
EXPECTED = {
    "decode": tuple(p for p in ROWS if p.token_idx >= 1),
    "restored": tuple(p for p in ROWS if p.token_idx >= 2),
    "alone": (Position(0, 0),),
    "permuted": (Position(0, 0), Position(1, 0)),
    "threads": tuple(p for p in ROWS if p.prompt_idx == 1),
}


def all_found() -> dict[str, dict[Position, bytes]]:
    return {name: {p: ROWS[p] for p in positions} for name, positions in EXPECTED.items()}


def test_rows_that_are_all_equal_are_parity_and_counted_by_relation() -> None:
    rung, divergences, measured = judge_self(ROWS, EXPECTED, all_found())
    assert (rung.rung, rung.outcome, rung.expected, rung.compared) == (Rung.T6, Outcome.PARITY, 19, 19)
    assert (rung.worst, rung.limit, rung.unit) == (0.0, 0.0, "rows")
    assert divergences == []
    decode = measured["decode"]
    assert decode == Relation(RELATIONS["decode"], expected=6, compared=6, equal=6, prompts=(0, 1))


def test_one_bit_of_one_row_diverges_and_is_named() -> None:
    found = all_found()
    found["restored"][Position(1, 2)] = b"other"
    found["restored"][Position(1, 3)] = b"other"
    rung, [divergence], measured = judge_self(ROWS, EXPECTED, found)
    assert (rung.outcome, rung.worst, rung.worst_where) == (Outcome.DIVERGED, 2.0, "restored: prompt 1 token 2")
    assert (divergence.rung, divergence.kind, divergence.where) == (Rung.T6, Kind.BITS, "restored")
    assert (divergence.prompt_idx, divergence.token_idx) == (1, 2)
    assert "2 of 2 rows" in divergence.note
    assert measured["restored"].equal == 2
    line = divergence.line(CellId("m", "Q8_0", "avx2", "crates-io", "f32"))
    assert "rung=T6 prompt_idx=1 token_idx=2 where=restored kind=BITS limit=0" in line


def test_each_relation_and_prompt_with_a_difference_has_its_own_line() -> None:
    found = all_found()
    for name, position in (("decode", Position(0, 3)), ("decode", Position(1, 1)), ("threads", Position(1, -2))):
        found[name][position] = b"other"
    _, divergences, _ = judge_self(ROWS, EXPECTED, found)
    assert [(d.where, d.prompt_idx, d.token_idx) for d in divergences] == [
        ("decode", 0, 3),
        ("decode", 1, 1),
        ("threads", 1, -2),
    ]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda found: found["decode"].pop(Position(0, 1)), "decode: 1 rows not made again: prompt 0 token 1"),
        (lambda found: found.pop("threads"), "threads: 6 rows not made again"),
        (lambda found: found["decode"].update({Position(0, -2): b""}), "decode: 1 rows not expected"),
        (lambda found: found.update(sideways={}), "no such relation: sideways"),
    ],
)
def test_a_missing_row_is_incomplete_and_named(change: object, named: str) -> None:
    found = all_found()
    change(found)  # type: ignore[operator]
    rung, divergences, _ = judge_self(ROWS, EXPECTED, found)
    assert rung.outcome is Outcome.INCOMPLETE
    assert named in rung.note
    assert divergences == []


def test_a_row_that_the_teacher_forced_pass_lost_is_incomplete() -> None:
    rows = {p: digest for p, digest in ROWS.items() if p != Position(1, 3)}
    rung, _, _ = judge_self(rows, EXPECTED, all_found())
    assert rung.outcome is Outcome.INCOMPLETE
    assert rung.compared == rung.expected - 3
    assert "decode: 1 rows not in the teacher-forced pass: prompt 1 token 3" in rung.note


def test_a_difference_is_not_hidden_by_a_missing_row() -> None:
    found = all_found()
    found["decode"].pop(Position(0, 1))
    found["decode"][Position(0, 2)] = b"other"
    rung, divergences, _ = judge_self(ROWS, EXPECTED, found)
    assert rung.outcome is Outcome.DIVERGED
    assert len(divergences) == 1


def test_a_relation_that_nobody_asked_for_is_missed() -> None:
    found = all_found()
    for name in RELATIONS:
        expected = {other: positions for other, positions in EXPECTED.items() if other != name}
        rung, _, _ = judge_self(ROWS, expected, found)
        assert rung.outcome is Outcome.INCOMPLETE
        assert f"{name} was not expected" in rung.note
        assert f"{name} is missing from what was expected" in rung.note


def test_a_single_prompt_has_no_others_to_be_compared_among() -> None:
    expected = {name: tuple(p for p in EXPECTED["decode"] if p.prompt_idx == 0) for name in RELATIONS}
    few = {name: expected[name] for name in ("decode", "restored", "threads")}
    rung, _, _ = judge_self(ROWS, few, {name: {p: ROWS[p] for p in positions} for name, positions in few.items()})
    assert rung.outcome is Outcome.PARITY


@pytest.mark.parametrize("expected", [{}, {"decode": ()}])
def test_nothing_expected_is_not_parity(expected: dict[str, tuple[Position, ...]]) -> None:
    found: Found = {name: {} for name in expected}
    rung, _, _ = judge_self(ROWS, expected, found)
    assert rung.expected == 0
    assert rung.outcome is Outcome.INCOMPLETE


def test_equal_rows_that_are_not_finite_show_nothing() -> None:
    lost = Position(0, 0)
    rung, divergences, measured = judge_self(ROWS, EXPECTED, all_found(), {lost})
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.INCOMPLETE, 19, 17)
    assert "alone: 1 rows are not finite: prompt 0 token 0" in rung.note
    assert divergences == []
    assert measured["permuted"].equal == 1
    found = all_found()
    found["alone"][lost] = b"other"
    assert judge_self(ROWS, EXPECTED, found, {lost})[0].outcome is Outcome.DIVERGED
