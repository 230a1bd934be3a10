"""Squares with words: one group each, a second sign where it is over, what is outlined."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from parity_lib.pages.kit.heat_map import FAR, LOST, OVER, HeatMap, Line, Square, classes, heat_map

MAP = HeatMap(
    title="a <title>",
    lines=[
        Line("layer 0", [Square(0, "a"), Square(3, "b", href="#p0t1"), Square(1, "c", flip=True)]),
        Line("<b>", [Square(OVER, "d", starts=True), Square(FAR, "e"), Square(LOST, 'quoted "text"')], gap=8),
    ],
    legend=[(0, "small"), (OVER, "over")],
    marks=[("flip", "differs")],
    ticks={1: "-4"},
    boxes=[(0, 1, 2, 1), (1, 1, 1, 1)],
)


def test_each_square_has_its_class_its_words_and_its_signs() -> None:
    shown = heat_map(MAP, alt="what it shows", caption="how to read it")
    legend, svg = shown.html.split('role="img"')
    squares = re.findall(r"<title>(.*?)</title><rect class=\"b(\d)\"", svg)
    assert squares == [("a", "0"), ("b", "3"), ("c", "1"), ("d", "4"), ("e", "5"), ("quoted &#34;text&#34;", "6")]
    assert svg.count("<g>") + svg.count("<a ") == 6
    assert svg.count('<a href="#p0t1"') == svg.count('class="flip"') == svg.count('class="edge"') == 1
    assert svg.count('class="dot"') == 3
    assert svg.count('class="line"') == 2
    assert legend.count('class="dot"') == legend.count('class="flip"') == 1
    assert "a &lt;title&gt;" in legend
    assert "&lt;b&gt;" in svg
    assert 'aria-label="what it shows"' in svg
    assert "<figcaption>how to read it</figcaption>" in svg
    assert str(shown) == "what it shows"


def test_nothing_is_outlined_and_nothing_linked_unless_asked_for() -> None:
    line = Line("r", [Square(0, "w")])
    html = heat_map(replace(MAP, lines=[line], boxes=(), marks=(), ticks={}), alt="a", caption="").html
    assert not re.search(r'class="(line|flip|edge)"|<a |<figcaption', html)


def test_classes_of_squares() -> None:
    assert classes(np.array([0, 0.1, 0.2, 0.4, 1, 1.1, 100, 101, np.inf, np.nan]), (0.1, 0.25, 0.5, 1.0, 100.0)) == [
        *(0, 0, 1, 2, 3),
        *(OVER, OVER, FAR, LOST, LOST),
    ]
