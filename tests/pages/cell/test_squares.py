from __future__ import annotations

import numpy as np
import pytest

from parity_lib.pages.cell.drift import drift
from parity_lib.pages.cell.position_map import LONG, heatmap, kept_rows, row_anchor, squares_of
from parity_lib.pages.cell.position_tables import anchors, position_tables
from parity_lib.pages.cell.positions import Positions, positions
from parity_lib.pages.kit.figures import Picture
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.verdicts import Verdict

from ..conftest import make_rows, pair_of

LENGTHS = ((9, 50), (2000, 50))


@pytest.fixture(scope="module")
def long(limits: DriftLimits) -> Positions:
    """A short prompt, and one of 2,049 positions with one large delta in it."""
    reference, candidate, places, fed = make_rows(LENGTHS)
    row = int(np.flatnonzero((places == (1, -777)).all(axis=1))[0])
    candidate[row, int(reference[row].argmax())] += 0.05
    return positions(pair_of(reference, candidate, places, fed), limits)


def test_a_short_prompt_has_one_square_for_each_position(long: Positions) -> None:
    squares = squares_of(long, 0)
    assert [square.rows for square in squares] == [(row,) for row in range(58)]


def test_a_long_prompt_is_binned_without_losing_a_position_and_generation_starts_a_square(long: Positions) -> None:
    squares = squares_of(long, 1)
    assert len(squares) <= 194
    assert [row for square in squares for row in square.rows] == long.of_prompt(1).tolist()
    assert any(long.token_idx[square.rows[0]] == 0 for square in squares)
    (worst,) = [square for square in squares if long.token_idx[square.worst] == -777]
    assert worst.worst in worst.rows


def test_the_worst_of_a_square_is_linked_and_has_its_row(long: Positions) -> None:
    svg = heatmap(long, linked=anchors(long)).html
    assert '<a href="#p1t-777" tabindex="-1"><title>tokens -' in svg
    assert "the worst: prompt 1 token -777: " in svg
    assert svg.count("<a href") == len(squares_of(long, 0)) + len(squares_of(long, 1))
    html = position_tables(long, ()).html
    assert all(f'id="{anchor}"' in html for anchor in anchors(long))
    assert "the worst of each square of the map" in html


def test_the_page_stays_small_whatever_the_context(long: Positions) -> None:
    squares = len(squares_of(long, 0)) + len(squares_of(long, 1))
    assert len(kept_rows(long)) == squares
    shown = heatmap(long, linked=anchors(long))
    assert len(shown.html) + len(position_tables(long, ()).html) < 300_000
    assert "up to 11 in a square of a long prompt" in shown.html


def test_a_long_prompt_gets_a_line_of_its_own(long: Positions) -> None:
    gallery = drift(long)
    assert len(long.of_prompt(1)) > LONG
    assert gallery.wide == {1}
    html = gallery._repr_mimebundle_()["text/html"]
    assert html.count('<figure class="wide">') == 1
    assert isinstance(gallery.pictures[1], Picture)
    assert "drift over 2,049 positions" in gallery.pictures[1].alt


def test_every_listed_position_is_kept(red: Positions, red_verdict: Verdict) -> None:
    kept = {row_anchor(int(red.prompt_idx[row]), int(red.token_idx[row])) for row in kept_rows(red)}
    listed = {row_anchor(d.prompt_idx, d.token_idx or 0) for d in red_verdict.divergences if d.prompt_idx is not None}
    assert listed <= kept
