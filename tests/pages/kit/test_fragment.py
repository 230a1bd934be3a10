from __future__ import annotations

import pytest

from parity_lib.pages.kit.fragment import HEADLINE, Column, Fragment, Picture, plain_table, table

COLUMNS = (Column("token <i>"), Column("delta", numeric=True), Column("verdict", markup=True))


def test_cells_are_escaped_unless_they_are_markup() -> None:
    html = table(COLUMNS, [["<script>", "1.0", "<b>ok</b>"]], caption="a & b")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<div><b>ok</b></div>" in html
    assert "<caption>a &amp; b</caption>" in html
    assert 'data-label="token &lt;i&gt;"' in html


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table(COLUMNS, [["a", "b"]])


def test_plain_text_is_aligned() -> None:
    lines = plain_table(COLUMNS, [["a", "1.0", "ok"], ["bbbb", "22.0", "no"]]).splitlines()
    assert lines == ["token <i>  delta  verdict", "a            1.0  ok", "bbbb        22.0  no"]


def test_only_a_headline_carries_the_style_for_jupyterlab() -> None:
    plain, _ = Fragment("<p>x</p>", "x")._repr_mimebundle_()
    first, marks = Fragment("<p>x</p>", "x", role=HEADLINE, title="t")._repr_mimebundle_()
    assert plain == {"text/html": '<div class="parity"><p>x</p></div>', "text/plain": "x"}
    assert first["text/html"].startswith('<style data-parity="lab">')
    assert marks["parity"] == {"role": HEADLINE, "title": "t"}


def test_a_picture_says_what_it_shows() -> None:
    data, marks = Picture(png=b"\x89PNG", png_dark=b"dark", alt="a flat line")._repr_mimebundle_()
    assert data == {"image/png": "iVBORw==", "text/plain": "a flat line"}
    assert (marks["image/png"]["alt"], marks["parity"]["dark"]) == ("a flat line", "ZGFyaw==")
