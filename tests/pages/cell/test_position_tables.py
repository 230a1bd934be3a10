from __future__ import annotations

import re

from parity_lib.pages.cell.position_tables import anchors, around, position_tables
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.text import Words
from parity_lib.records.verdicts import Verdict


def opened(html: str) -> str:
    """Return what stands outside of the folded tables."""
    return html[: html.index("<details>")]


def test_green_shows_the_ten_worst_and_folds_the_rest(green: Positions, words: Words) -> None:
    shown = position_tables(green, (), words)
    assert shown.plain.startswith("No divergence; the 10 worst positions")
    assert len(re.findall(r"<tr id=", opened(shown.html))) == 10
    assert len(re.findall(r"<details>", shown.html)) == 10
    assert len(re.findall(r"<tr id=", shown.html)) == len(green)


def test_every_row_has_its_own_anchor(red: Positions, red_verdict: Verdict, words: Words) -> None:
    html = position_tables(red, red_verdict.divergences, words).html
    ids = re.findall(r'<tr id="(p\d+t-?\d+)"', html)
    assert len(ids) == len(set(ids)) == len(red)
    assert set(ids) == anchors(red)


def test_a_diverging_position_shows_both_top5s_kind_and_class(
    red: Positions, red_verdict: Verdict, words: Words
) -> None:
    html = position_tables(red, red_verdict.divergences, words).html
    row = html[html.index('<tr id="p2t17" class="bad">') :]
    row = row[: row.index("</tr>")]
    assert "prompt 2 (long-1)<br>token 17<br><b>top-1 unexplained</b>" in row
    assert row.count("<li>") == 10
    assert row.count("<b>") >= 3
    for words_ in ("delta ", "limit ", "x over", "margin "):
        assert words_ in row


def test_a_row_that_is_not_finite_says_so(red: Positions, red_verdict: Verdict, words: Words) -> None:
    html = position_tables(red, red_verdict.divergences, words).html
    row = html[html.index('<tr id="p8t30"') :]
    assert "not finite" in row[: row.index("</tr>")]


def test_fed_text_is_shown_with_visible_whitespace(green: Positions) -> None:
    fed = green.pair.reference.fed_id
    words = Words({int(token): b" ab\n" for token in fed})
    rows = opened(position_tables(green, (), words).html)
    assert '<td data-label="fed so far, last token at the end">' in rows
    assert rows.count("␣ab↵&#34;</td>") == 10


def test_neighbours_stand_around_the_first_divergence(red: Positions, green: Positions, words: Words) -> None:
    first = int(red.listed.argmax())
    caption = f"Around the first divergence: prompt {words.prompt(int(red.prompt_idx[first]))}, token "
    assert around(red, words).plain.startswith(caption + str(int(red.token_idx[first])))
    assert around(red, words).html.count('class="here"') == 1
    assert around(green, words).plain.startswith("Around the worst position")
    assert 9 <= around(green, words).html.count("<tr>") + 1 <= 18
