"""Choosing by ``--only``."""

from __future__ import annotations

import pytest

from parity_lib.base.choice import choose
from parity_lib.base.errors import UsageError

NAMED = [("eps_x10", 1), ("bias", 2), ("bias", 3), ("rope", 4)]


def no_bias(thing: int) -> str:
    return "it has no biases" if thing in (2, 3) else ""


def test_a_word_matches_anywhere_and_a_pattern_the_whole_name() -> None:
    assert choose("", NAMED, "fault", "model") == ((1, 2, 3, 4), {})
    assert choose("ps_", NAMED, "fault", "model") == ((1,), {})
    assert choose("[br]*", NAMED, "fault", "model") == ((2, 3, 4), {})


def test_what_does_not_fit_is_left_out_with_its_reason() -> None:
    assert choose("[br]*", NAMED, "fault", "model", no_bias) == ((4,), {"bias": "it has no biases"})


def test_nothing_left_is_a_usage_error_with_the_names_that_fit() -> None:
    with pytest.raises(UsageError, match="no fault matches --only") as refused:
        choose("ropes", NAMED, "fault", "model", no_bias)
    assert refused.value.expected == "eps_x10, rope"
    with pytest.raises(UsageError) as refused:
        choose("bias", NAMED, "fault", "model", no_bias)
    assert refused.value.found == "bias; bias: it has no biases"
