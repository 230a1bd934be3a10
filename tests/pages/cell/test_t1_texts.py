from __future__ import annotations

from collections.abc import Callable

from parity_lib.pages.cell.t1_texts import text_section
from parity_lib.pages.kit.text import Words
from parity_lib.records.verdicts import Verdict

FullVerdict = Callable[..., Verdict]


def test_classes_of_texts_are_counted_with_the_tokenizer_named(full_verdict: FullVerdict, words: Words) -> None:
    lines = text_section(full_verdict(), words).plain.splitlines()
    assert lines[0] == (
        "Tokenizer built from the file's metadata: pre smollm, n_merges 48900. "
        "Bytes of 49,152 of 49,152 ids compared: all equal."
    )
    assert lines[2].split() == ["prompts", "10", "10", "30", "0", "0"]
    assert lines[3].split() == ["digits", "1", "1", "3", "0", "0"]


def test_a_text_that_differs_comes_first_and_says_where(full_verdict: FullVerdict) -> None:
    shown = text_section(full_verdict(red=True))
    assert shown.plain.splitlines()[2].split() == ["digits", "1", "1", "3", "1", "0"]
    assert shown.html.count('class="bad"') == 1
    assert "the first id that differs is number 2" in shown.html


def test_listed_differences_stand_with_their_reason(full_verdict: FullVerdict) -> None:
    html = text_section(full_verdict()).html
    assert "listed in fixtures/token_differences.toml</summary>" in html
    assert "Unicode 16.0" in html


def test_each_prompt_says_how_much_of_it_is_new(full_verdict: FullVerdict, words: Words) -> None:
    lines = text_section(full_verdict(), words).plain.splitlines()
    row = next(line for line in lines if line.startswith("2 (long-1)"))
    assert row.split()[2:] == ["230", "42", "20.3", "%"]
    assert next(line for line in lines if line.startswith("0 (fact-1)")).split()[2:] == ["58", "58", "100", "%"]


def test_an_old_record_says_what_it_lacks(make_verdict: Callable[..., Verdict]) -> None:
    lines = text_section(make_verdict()).plain.splitlines()
    assert "(rung T1): not in this record." in lines[0]
    assert lines[1] == "How much the generated texts repeat themselves: not in this record."
