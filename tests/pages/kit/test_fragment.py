from __future__ import annotations

import pytest
from markupsafe import Markup

from parity_lib.pages.kit.figures import Gallery, Picture
from parity_lib.pages.kit.fragment import HEADLINE, Fragment, details, paragraph
from parity_lib.pages.kit.table import Column, plain_table, table

COLUMNS = (Column("token <i>"), Column("delta", numeric=True), Column("verdict"))


def test_a_cell_is_escaped_unless_it_is_markup() -> None:
    html = table(COLUMNS, [["<script>", "1.0", Markup("<b>ok</b>")]], caption="a & b").html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<div><b>ok</b></div>" in html
    assert "<caption>a &amp; b</caption>" in html
    assert 'data-label="token &lt;i&gt;"' in html


def test_a_text_that_is_given_as_html_is_escaped() -> None:
    assert Fragment("<script>", "").html == "&lt;script&gt;"  # type: ignore[arg-type]
    assert (paragraph("<i>") + details("<b>", paragraph("&"))).html == (
        "<p>&lt;i&gt;</p><details><summary>&lt;b&gt;</summary><p>&amp;</p></details>"
    )


def test_a_row_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table(COLUMNS, [["a", "b"]])


def test_rows_carry_their_id_and_class() -> None:
    html = table(COLUMNS, [["a", "1", "b"], ["c", "2", "d"]], ids=["p0t1", ""], marks=["bad", ""]).html
    assert html.count("<tr>") == 2  # the header's and the second
    assert '<tr id="p0t1" class="bad">' in html


def test_plain_text_is_aligned_and_has_no_tags() -> None:
    rows = [["a", "1.0", Markup("<b>ok</b><br>&lt;")], ["bbbb", "22.0", "no"]]
    lines = plain_table(COLUMNS, rows).splitlines()
    assert lines == ["token <i>  delta  verdict", "a            1.0  ok · <", "bbbb        22.0  no"]


def test_only_a_headline_carries_the_style_for_jupyterlab() -> None:
    plain, _ = paragraph("x")._repr_mimebundle_()
    first, marks = Fragment(paragraph("x").html, "x", role=HEADLINE, title="t")._repr_mimebundle_()
    assert plain == {"text/html": '<div class="parity"><p>x</p></div>', "text/plain": "x"}
    assert first["text/html"].startswith('<style data-parity="lab">')
    assert marks["parity"] == {"role": HEADLINE, "title": "t"}


def test_terminal_colours_do_not_reach_a_page() -> None:
    data, _ = paragraph("\x1b[31mred\x1b[0m\x00")._repr_mimebundle_()
    assert data["text/html"] == '<div class="parity"><p>red</p></div>'


def test_a_picture_says_what_it_shows() -> None:
    shown = Gallery((Picture(b"\x89PNG", b"dark", 'a "flat" line'),), "<caption>", key=(("•", "a dot"),))
    data = shown._repr_mimebundle_()
    assert 'src="data:image/png;base64,iVBORw=="' in data["text/html"]
    assert 'srcset="data:image/png;base64,ZGFyaw=="' in data["text/html"]
    assert 'alt="a &#34;flat&#34; line"' in data["text/html"]
    assert "&lt;caption&gt;" in data["text/html"]
    assert data["text/plain"] == '<caption>\n• a dot\na "flat" line'
