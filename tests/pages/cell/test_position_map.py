from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from parity_lib.pages.cell.position_map import heatmap, row_anchor
from parity_lib.pages.cell.position_tables import anchors
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.text import Words


def parsed(shown: object) -> ElementTree.Element:
    """Return the SVG of a map, without its legend."""
    (svg,) = re.findall(r'<svg [^>]*role="img".*</svg>', shown.html, re.DOTALL)  # type: ignore[attr-defined]
    return ElementTree.fromstring(svg)  # noqa: S314 - the text is our own


def test_every_position_is_a_square_with_words_and_a_link(red: Positions, words: Words) -> None:
    root = parsed(heatmap(red, words, anchors(red)))
    links = root.findall("a")
    assert len(links) == len(red)
    assert links[0].attrib["href"] == "#p0t-8"
    titles = {link.attrib["href"]: link.findtext("title") or "" for link in links}
    assert titles["#p2t17"].endswith("x limit top-1 differs")
    assert titles["#p8t30"].endswith("not finite")
    assert " after " in titles["#p0t0"]


def test_a_square_without_a_row_has_words_but_no_link(green: Positions) -> None:
    root = parsed(heatmap(green, linked=["p0t0"]))
    assert [link.attrib["href"] for link in root.findall("a")] == ["#p0t0"]
    assert len(root.findall("g")) == len(green) - 1


def test_what_is_over_its_limit_has_a_second_sign_besides_colour(red: Positions, green: Positions) -> None:
    def dots(shown: Positions) -> int:
        root = parsed(heatmap(shown))
        return sum(rect.get("class") == "dot" for square in root.findall("g") for rect in square)

    assert dots(red) == int((red.share > 1).sum())
    assert dots(green) == 0


def test_the_words_say_the_same(red: Positions) -> None:
    shown = heatmap(red)
    n_over = int((red.share > 1).sum())
    assert shown.plain.startswith(
        f"Map of 1,025 positions by |delta| as a share of its limit: {n_over:,} over the limit"
    )
    assert f'aria-label="{shown.plain}"' in shown.html
    assert row_anchor(3, -4) == "p3t-4"


def test_a_tokens_text_cannot_break_the_map(green: Positions) -> None:
    fed = int(green.pair.reference.fed_id[0])
    hostile = Words({fed: b'</title><script>"&'}, {0: "<b>"})
    root = parsed(heatmap(green, hostile))
    assert '</title><script>"&' in (root.find("g").findtext("title") or "")  # type: ignore[union-attr]
