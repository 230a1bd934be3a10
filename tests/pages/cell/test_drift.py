from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from parity_lib.pages.cell.drift import drift
from parity_lib.pages.cell.positions import positions
from parity_lib.pages.kit.figures import Gallery
from parity_lib.pages.kit.text import Words
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.traces import PairTrace


def colours(png: bytes) -> set[tuple[int, ...]]:
    found = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 16)
    assert found is not None
    return {colour for n, colour in found if n > 3}


def near(png: bytes, wanted: tuple[int, int, int]) -> bool:
    return any(max(abs(a - b) for a, b in zip(c, wanted, strict=True)) < 24 for c in colours(png))


@pytest.fixture(scope="module")
def green_gallery(green_pair: PairTrace, limits: DriftLimits, words: Words) -> Gallery:
    """Three prompts, the last one long."""
    three = green_pair.take(np.flatnonzero(green_pair.reference.prompt_idx < 3))
    return drift(positions(three, limits), words)


def test_one_picture_for_each_prompt_with_its_finding_in_words(red_gallery: Gallery) -> None:
    pictures = red_gallery.pictures
    assert len(pictures) == 10
    assert pictures[2].alt.startswith("Prompt 2 (long-1): drift over 230 positions. Largest |delta| ")
    assert "top-1 differs at tokens" in pictures[2].alt
    assert "at tokens 2" in pictures[5].alt


def test_red_is_drawn_in_another_colour_and_green_is_not(red_gallery: Gallery, green_gallery: Gallery) -> None:
    orange = (192, 74, 0)
    assert near(red_gallery.pictures[2].png, orange)
    assert not near(green_gallery.pictures[2].png, orange)


def test_light_and_dark_have_their_own_ground(green_gallery: Gallery) -> None:
    shown = green_gallery.pictures[0]
    assert (255, 255, 255) in colours(shown.png)
    assert (255, 255, 255) not in colours(shown.png_dark)


def test_pictures_are_small_and_the_same_each_time(
    green_gallery: Gallery, two_prompts: PairTrace, limits: DriftLimits, words: Words
) -> None:
    again = drift(positions(two_prompts, limits), words).pictures
    assert len(again) == 2
    assert [(p.png, p.png_dark) for p in again] == [(p.png, p.png_dark) for p in green_gallery.pictures[:2]]
    assert all(len(p.png) < 20_000 for p in green_gallery.pictures)


def test_every_sign_is_explained(green_gallery: Gallery) -> None:
    html = green_gallery._repr_mimebundle_()["text/html"]
    assert html.count("<li><b") == 8
    assert "▽ top-1 differs; ◇ only the top-5 set differs" in str(green_gallery)


def test_without_a_limit_nothing_is_over_it(two_prompts: PairTrace, words: Words) -> None:
    none = positions(two_prompts, None)
    shown = drift(none, words).pictures[0]
    assert np.isnan(none.share).all()
    assert not near(shown.png, (192, 74, 0))
    assert "no flip" in shown.alt
