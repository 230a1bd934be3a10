from __future__ import annotations

import math

import pytest

from parity_lib.pages.kit.text import (
    NONE,
    Words,
    count,
    duration,
    margin,
    number,
    percent,
    quoted,
    short,
    signed,
    size,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.068, "0.068"),
        (2e-4, "2.0e-04"),
        (0.94, "0.94"),
        (1.6, "1.6"),
        (22093.0, "2.2e+04"),
        (340.4, "340"),
        (0.0, "0"),
        (None, NONE),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
    ],
)
def test_number_has_as_many_digits_as_it_is_worth(value: float | None, text: str) -> None:
    assert number(value) == text


def test_sign_of_a_delta_is_always_written() -> None:
    assert (signed(0.0678), signed(-3.33), signed(None), signed(math.inf)) == ("+0.0678", "-3.33", NONE, "+inf")


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.99999, "99.9 %"), (0.971, "97.1 %"), (1e-6, "0.1 %"), (0.0, "0 %"), (None, NONE)],
)
def test_only_exactly_all_is_a_hundred_per_cent(share: float | None, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("worst", "limit", "text"),
    [
        (4.4e-5, 2e-4, "4.5x inside"),
        (6.8e-2, 2e-4, "340x over"),
        (-6.8e-2, 2e-4, "340x over"),
        (2e-4, 2e-4, "1.0x inside"),
        (2.002e-4, 2e-4, "1.001x over"),
        (0.0, 0.0, "equal"),
        (1.0, 0.0, "over"),
        (math.nan, 1.0, "over"),
        (1.0, math.nan, NONE),
        (None, 1.0, NONE),
    ],
)
def test_margin_says_inside_or_over(worst: float | None, limit: float | None, text: str) -> None:
    assert margin(worst, limit) == text


def test_whitespace_and_stray_bytes_of_a_token_are_visible() -> None:
    assert quoted(b" the\n\t") == '"␣the↵⇥"'
    assert quoted(b"\xe4\xb8") == '"\\xe4\\xb8"'
    assert quoted("\x00") == '"\\u0000"'
    assert quoted("\n        return") == '"↵␣×8return"'


def test_a_token_without_text_is_its_id() -> None:
    words = Words({578: b" the"}, {3: "long-1"})
    assert (words.token(578), words.token(7), words.prompt(3), words.prompt(4)) == (
        '578 "␣the"',
        "7",
        "3 (long-1)",
        "4",
    )


def test_a_long_token_is_cut_and_whole_in_its_title() -> None:
    shown = Words({1: b"<" * 60}).brief(1)
    assert shown.startswith('<span title="1 &#34;&lt;')
    assert "…" in shown
    assert shown.count("&lt;") == 60 + 19


def test_counts_times_sizes_and_hashes() -> None:
    assert (count(1412), size(98_362_432), size(12), size(2_500_000_000)) == ("1,412", "98.4 MB", "12 bytes", "2.50 GB")
    assert [duration(s) for s in (0.42, 48.2, 200, 3900)] == ["0.4 s", "48 s", "3 min 20 s", "1 h 05 min"]
    assert short("source " + "ab" * 32) == "source abababababab…"
    assert short("0c1e570-dirty") == "0c1e570-dirty"
