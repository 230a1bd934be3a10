from __future__ import annotations

from parity_lib.pages.kit.lines import lines_block


def test_lines_are_copied_as_they_are() -> None:
    line = 'DIVERGED model=m note="a < b & c"'
    shown = lines_block([line])
    assert shown.plain == line
    assert "<span>DIVERGED model=m note=&#34;a &lt; b &amp; c&#34;\n</span>" in shown.html


def test_many_lines_are_folded_and_the_rest_is_counted() -> None:
    shown = lines_block([f"DIVERGED line={i}" for i in range(1000)])
    assert "<summary>990 more lines</summary>" in shown.html
    assert "800 further lines are in <code>divergences.jsonl</code>" in shown.html
    assert "line=199\n" in shown.html
    assert "line=200\n" not in shown.html
    assert shown.plain.count("\n") == 999


def test_no_line_is_said_in_words() -> None:
    assert "no line to grep for" in lines_block([]).plain
