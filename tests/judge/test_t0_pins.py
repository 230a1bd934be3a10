"""T0: what was not checked, or does not hold, leaves nothing judged."""

from __future__ import annotations

import pytest

from parity_lib.base.names import Outcome, Rung
from parity_lib.judge.t0_pins import PinCheck, check_any, check_commit, check_equal, judge_pins
from parity_lib.records.verdicts import conclude

COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"


def test_all_required_checks_that_hold_are_parity() -> None:
    checks = [check_equal("model", "ab", "ab"), check_commit("commit", COMMIT, "0c1e570-dirty")]
    rung = judge_pins(checks, required=["model", "commit"])
    assert (rung.rung, rung.outcome, rung.expected, rung.compared, rung.note) == (Rung.T0, Outcome.PARITY, 2, 2, "")


def test_a_check_beyond_the_required_ones_counts() -> None:
    assert judge_pins([check_equal("model", "ab", "ab")], required=[]).outcome is Outcome.PARITY
    assert judge_pins([check_equal("model", "ab", "cd")], required=[]).outcome is Outcome.INCOMPLETE


def test_a_mismatch_is_incomplete_and_says_expected_and_found() -> None:
    rung = judge_pins([check_equal("prompts", "ab12", "cd34")], required=["prompts"])
    assert rung.outcome is Outcome.INCOMPLETE
    assert rung.note == "prompts: expected ab12, found cd34"
    assert conclude([rung], required=[])[0] is Outcome.INCOMPLETE


def test_a_forgotten_check_is_incomplete() -> None:
    rung = judge_pins([check_equal("model", "ab", "ab")], required=["model", "commit"])
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.INCOMPLETE, 2, 1)
    assert rung.note == "commit was not checked"


def test_a_check_made_twice_or_none_at_all_is_incomplete() -> None:
    twice = [check_equal("model", "ab", "ab"), check_equal("model", "ab", "ab")]
    assert "model was checked twice" in judge_pins(twice, required=["model"]).note
    assert judge_pins([], required=[]).outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize(
    "found", [None, "", "0c1e57", "0c1e571", "dirty", "-dirty", "0c1e57098bba43ac29e6e3b677cdceebdd22334f0"]
)
def test_commits_that_are_not_the_pinned_one(found: str | None) -> None:
    assert not check_commit("commit", COMMIT, found).ok


@pytest.mark.parametrize("found", ["0c1e570", "0c1e570-dirty", COMMIT])
def test_abbreviations_of_the_pinned_commit(found: str) -> None:
    assert check_commit("commit", COMMIT, found).ok


def test_nothing_equals_nothing() -> None:
    assert not check_equal("lock", None, None).ok
    assert not check_equal("lock", "", "").ok
    assert str(check_equal("lock", "ab", None)) == "lock: expected ab, found nothing"


def test_one_of_several_known_digests() -> None:
    assert check_any("model", ["ab", "cd"], "cd").ok
    assert not check_any("model", ["ab", ""], "").ok
    assert not check_any("model", [], "ab").ok


def test_a_check_holds_what_it_says() -> None:
    assert judge_pins([PinCheck("target", "avx2", "avx2", ok=False)], required=["target"]).outcome is Outcome.INCOMPLETE
