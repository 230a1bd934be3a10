"""Rung T1's judge: counts, excuses, stale entries, and what a difference looks like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from parity_lib.base.errors import FixtureError
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.judge.t1_known_differences import KnownDifference, KnownDifferences, load_differences
from parity_lib.judge.t1_tokens import (
    REFUSED,
    BytesResult,
    Ids,
    TextResult,
    TokenizerPair,
    describe,
    join_rungs,
    judge_tokens,
)
from parity_lib.records.measured import TextClass

DIGEST = "a" * 64
GOOD = BytesResult(4, 4, ())


def listed(rule: str = "no-nfc", name: str = "composed", groups: tuple[str, ...] = ("marks",)) -> KnownDifferences:
    return KnownDifferences((KnownDifference(name, ("qwen2",), rule, groups, (DIGEST,), "it is so"),), "0" * 64)


NOTHING_LISTED = KnownDifferences((), "0" * 64)


def text(name: str, group: str, reference: Ids, candidate: Ids, **more: Any) -> TextResult:
    return TextResult(name, group, reference, candidate, **more)


def pair(*texts: TextResult, expected: dict[str, int] | None = None, found: BytesResult = GOOD) -> TokenizerPair:
    counts = expected if expected is not None else dict(Counter(item.group for item in texts))
    return TokenizerPair(DIGEST, counts, texts, found, {"pre": "qwen2"})


SAME = text("insulin", "prompts", (1, 2, 3), (1, 2, 3))
OTHER = text("marks/000", "marks", (1, 9, 3), (1, 2, 3), following={"no-nfc": (1, 9, 3)})


def test_equal_texts_are_at_parity_and_counted() -> None:
    rung, divergences, record = judge_tokens(pair(SAME), NOTHING_LISTED)
    assert (rung.rung, rung.outcome, rung.expected, rung.compared, rung.worst) == (Rung.T1, Outcome.PARITY, 1, 1, 0.0)
    assert divergences == []
    assert record.classes["prompts"] == TextClass(expected=1, texts=1, tokens=3, different=0, listed=0)


def test_a_difference_that_is_not_listed_diverges_with_place_and_ids() -> None:
    rung, (line,), _ = judge_tokens(pair(SAME, OTHER), NOTHING_LISTED)
    assert rung.outcome is Outcome.DIVERGED
    assert rung.worst == 1.0
    assert (line.kind, line.where) == (Kind.TOKENS, "marks/000")
    assert "number 1: llama.cpp [1 9 3] of 3, tokenizers [1 2 3] of 3" in line.note


def test_a_listed_difference_that_its_rule_explains_is_excused_and_reported() -> None:
    rung, divergences, record = judge_tokens(pair(SAME, OTHER), listed())
    assert rung.outcome is Outcome.PARITY
    assert divergences == []
    assert record.known[0].texts == 1
    assert record.classes["marks"].listed == 1


def test_a_listed_difference_that_its_rule_does_not_explain_diverges() -> None:
    unexplained = text("marks/000", "marks", (1, 9, 3), (1, 2, 3), following={"no-nfc": (1, 2, 4)})
    explained = text("marks/001", "marks", (7,), (8,), following={"no-nfc": (7,)})
    rung, (line,), _ = judge_tokens(pair(unexplained, explained), listed())
    assert rung.outcome is Outcome.DIVERGED
    assert line.where == "marks/000"


def test_two_listed_rules_may_explain_a_text_together() -> None:
    first, second = listed().entries[0], listed("unicode-15", "letters").entries[0]
    both = KnownDifferences((first, second), "0" * 64)
    mixed = text("marks/000", "marks", (5,), (6,), following={"no-nfc": (6,), "unicode-15": (6,)})
    assert judge_tokens(pair(mixed), both)[0].outcome is Outcome.DIVERGED
    mixed = text("marks/000", "marks", (5,), (6,), following={"no-nfc+unicode-15": (5,)})
    assert not judge_tokens(pair(mixed), both)[1]


def test_a_prompt_and_a_vocabulary_case_are_never_excused() -> None:
    following = {"no-nfc": (1,)}
    for group, more in (("prompts", {}), ("cases", {"expected": (1,)}), ("invalid", {})):
        item = text("x", group, (1,), (2,), following=following, **more)
        assert judge_tokens(pair(item), listed(groups=(group,)))[0].outcome is Outcome.DIVERGED


def test_a_vocabulary_case_holds_both_sides_to_the_expected_ids() -> None:
    wrong = text("case/00", "cases", (1, 2), (1, 2), expected=(1, 3))
    rung, (line,), _ = judge_tokens(pair(wrong), NOTHING_LISTED)
    assert rung.outcome is Outcome.DIVERGED
    assert "expected [1 3] of 2" in line.note


def test_a_stale_entry_leaves_the_rung_incomplete_and_is_named() -> None:
    equal = text("marks/000", "marks", (1,), (1,))
    rung, divergences, _ = judge_tokens(pair(equal), listed())
    assert rung.outcome is Outcome.INCOMPLETE
    assert divergences == []
    assert "the listed difference 'composed' is gone" in rung.note


def test_an_entry_that_was_never_seen_with_this_tokenizer_is_not_stale() -> None:
    elsewhere = KnownDifference("composed", ("qwen2",), "no-nfc", ("marks",), ("b" * 64,), "it is so")
    equal = text("marks/000", "marks", (1,), (1,))
    assert judge_tokens(pair(equal), KnownDifferences((elsewhere,), "0" * 64))[0].outcome is Outcome.PARITY


def test_a_refusal_must_be_shared() -> None:
    assert judge_tokens(pair(text("x", "invalid", REFUSED, REFUSED)), NOTHING_LISTED)[0].outcome is Outcome.PARITY
    alone = text("x", "invalid", REFUSED, (1,))
    assert "llama.cpp refuses the text" in judge_tokens(pair(alone), NOTHING_LISTED)[1][0].note


def test_what_was_not_tokenised_is_named() -> None:
    for broken, cause in (
        (pair(SAME, expected={"prompts": 2}), "prompts: tokenised 1 of 2 texts"),
        (pair(SAME, SAME), "insulin was tokenised 2 times"),
        (pair(SAME, found=BytesResult(4, 3, ())), "compared the bytes of 3 of 4 tokens"),
        (pair(SAME, found=BytesResult(0, 0, ())), "compared the bytes of 0 of 0 tokens"),
    ):
        rung, _, _ = judge_tokens(broken, NOTHING_LISTED)
        assert rung.outcome is Outcome.INCOMPLETE
        assert cause in rung.note


def test_other_bytes_of_a_token_diverge() -> None:
    found = BytesResult(4, 4, ((2, b" a", b"a"),))
    rung, (line,), _ = judge_tokens(pair(SAME, found=found), NOTHING_LISTED)
    assert rung.outcome is Outcome.DIVERGED
    assert line.where == "token/2"


def test_many_texts_of_one_class_are_one_line() -> None:
    many = [text(f"digits/{i:03d}", "digits", (1,), (2,)) for i in range(30)]
    rung, (line,), _ = judge_tokens(pair(*many), NOTHING_LISTED)
    assert rung.worst == 30.0
    assert line.note.endswith("30 texts of digits differ")


def test_a_longer_list_differs_where_the_shorter_ends() -> None:
    assert describe(text("x", "digits", (1, 2), (1, 2, 3))).startswith("the first id that differs is number 2")


def test_warning_of_the_tokenizer_stands_in_the_note_and_changes_no_outcome() -> None:
    sound = pair(SAME)
    warned = replace(sound, facts={**sound.facts, "warning": "no family is named"})
    plain = judge_tokens(sound, NOTHING_LISTED)[0]
    assert judge_tokens(warned, NOTHING_LISTED)[0] == structs.replace(plain, note=f"{plain.note}; no family is named")


def test_joined_rungs_add_up_and_keep_the_worst_outcome() -> None:
    good = judge_tokens(pair(SAME), NOTHING_LISTED)[0]
    bad = judge_tokens(pair(OTHER), NOTHING_LISTED)[0]
    joined = join_rungs([good, bad])
    assert (joined.outcome, joined.expected, joined.compared, joined.worst) == (Outcome.DIVERGED, 2, 2, 1.0)


def test_the_list_of_this_repository_loads_and_gives_reasons() -> None:
    known = load_differences()
    names = {"qwen2-composed-form", "unicode-16", "lost-bytes", "control-by-name"}
    assert names == {entry.name for entry in known.entries}
    assert all(len(entry.reason) > 80 for entry in known.entries)


ENTRY = """
[[difference]]
name = "a"
pre = ["qwen2"]
rule = "no-nfc"
classes = ["{group}"]
seen = ["aa"]
reason = "because"
"""


@pytest.mark.parametrize("group", ["prompts", "cases", "invalid"])
def test_a_list_that_excuses_what_must_be_exact_does_not_load(tmp_path: Path, group: str) -> None:
    path = tmp_path / "list.toml"
    path.write_text('schema = "parity/token-differences/1"\n' + ENTRY.format(group=group))
    with pytest.raises(FixtureError, match="cannot be excused"):
        load_differences(path)


def test_a_name_twice_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "list.toml"
    path.write_text('schema = "parity/token-differences/1"\n' + 2 * ENTRY.format(group="marks"))
    with pytest.raises(FixtureError, match="same name"):
        load_differences(path)
