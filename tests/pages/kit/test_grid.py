"""Squares with words: one group each, a second sign where it is over, what is outlined."""

from __future__ import annotations

import re

from parity_lib.pages.kit.grid import FAR, LOST, OVER, Grid, grid_picture

GRID = Grid(
    title="a <title>",
    rows=["layer 0", "layer 1"],
    ticks={1: "-4"},
    bins=[[0, 3, 1], [OVER, FAR, LOST]],
    titles=[["a", "b", "c"], ["d", "e", 'quoted "text"']],
    legend=[(0, "small"), (OVER, "over")],
    column=1,
    cell=(1, 1),
)


def test_each_square_has_its_class_and_its_words() -> None:
    picture = grid_picture(GRID, alt="what it shows", caption="how to read it")
    squares = re.findall(r"<g><title>(.*?)</title><rect class=\"b(\d)\"", picture.svg)
    assert squares == [("a", "0"), ("b", "3"), ("c", "1"), ("d", "4"), ("e", "5"), ("quoted &quot;text&quot;", "6")]
    assert picture.svg.count('class="dot"') == 4  # three squares and the legend's
    assert picture.svg.count('class="line"') == 2
    assert "a &lt;title&gt;" in picture.svg
    assert 'role="img" aria-label="what it shows"' in picture.svg
    assert (picture.alt, picture.caption) == ("what it shows", "how to read it")
    assert picture.png.startswith(b"\x89PNG")


def test_nothing_is_outlined_unless_asked_for() -> None:
    plain = Grid("t", ["r"], {}, [[0]], [["w"]], [(0, "l")])
    assert 'class="line"' not in grid_picture(plain, alt="a", caption="").svg
    assert plain.size[0] >= plain.left + 96
