from __future__ import annotations

from collections.abc import Callable

from parity_lib.pages.cell.steps import cache_words, step_seconds, step_table
from parity_lib.records.verdicts import Verdict


def test_steps_stand_in_the_order_in_which_they_ran(full_verdict: Callable[..., Verdict]) -> None:
    lines = step_table(full_verdict()).plain.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "check pins",
        "compare tokens",
        "capture reference",
        "judge",
        "the whole cell",
    ]
    assert "21 s" in lines[4]
    assert "22%" in lines[4]
    assert "96 s" in lines[6]


def test_where_the_reference_comes_from_is_said_with_every_note(full_verdict: Callable[..., Verdict]) -> None:
    assert cache_words(full_verdict()) == (
        "llama.cpp's rows: generated text and its rows computed again, bit-equal; the F32 twin cached. "
        "The disk is full."
    )


def test_an_old_record_says_that_it_has_neither(make_verdict: Callable[..., Verdict]) -> None:
    verdict = make_verdict()
    assert step_seconds(verdict) == {}
    assert step_table(verdict).plain.count("not in this record") == 2
