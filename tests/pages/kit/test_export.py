from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parity_lib.base.errors import RecordError
from parity_lib.pages.cell.box import verdict_box
from parity_lib.pages.cell.ladder import rung_table
from parity_lib.pages.cell.position_map import heatmap
from parity_lib.pages.cell.position_tables import anchors, position_tables
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.cell.runs import run_table
from parity_lib.pages.cell.t5_literal import literal_table
from parity_lib.pages.kit import export as html
from parity_lib.pages.kit.figures import Gallery
from parity_lib.pages.kit.lines import lines_block
from parity_lib.pages.kit.text import Words
from parity_lib.records.verdicts import Verdict


class Page(HTMLParser):
    """Collects what the promises about a page are about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "source", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "br", "img", "source", "link", "input"):
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


page_of = cache(Page)  # each page is read by several tests


def cell(shown: Any) -> dict[str, Any]:
    bundle = shown._repr_mimebundle_()
    data, marks = bundle if isinstance(bundle, tuple) else (bundle, {})
    output = {"output_type": "display_data", "metadata": marks, "data": data}
    return {"cell_type": "code", "metadata": {}, "source": "show", "outputs": [output], "execution_count": 1}


@pytest.fixture(scope="module")
def red_page(red: Positions, red_gallery: Gallery, red_verdict: Verdict, words: Words) -> str:
    pieces = [
        verdict_box(red_verdict, words),
        rung_table(red_verdict, {"T4": "#positions"}),
        red_gallery,
        heatmap(red, words, anchors(red)),
        position_tables(red, red_verdict.divergences, words),
        literal_table(red_verdict),
        run_table(red_verdict),
        lines_block(red_verdict.lines()),
    ]
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# Logits\n", "\n", "burn against llama.cpp"]}
    anchor = {"cell_type": "markdown", "metadata": {}, "source": '<h2 id="positions">Positions</h2>'}
    return html.render([title, anchor, *map(cell, pieces)])


def test_page_loads_nothing_and_runs_nothing(red_page: str) -> None:
    page = page_of(red_page)
    assert page.open == []
    assert not page.all("script")
    assert not page.all("link")
    assert not page.all("iframe")
    addresses = [attrs.get(key) for _, attrs in page.tags for key in ("src", "srcset", "href", "xlink:href")]
    foreign = [a for a in addresses if a is not None and not a.startswith(("data:image/png;base64,", "#"))]
    assert foreign == []
    assert not re.findall(r"url\(|@import|https?://", red_page)
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]


def test_page_is_readable_for_everyone(red_page: str) -> None:
    page = page_of(red_page)
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("main")) == len(page.all("h1")) == 1
    assert "<title>DIVERGED · smollm2-135m · Q8_0</title>\n" in red_page
    assert page.all("meta")[1] == {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    images = page.all("img")
    assert len(images) == 10
    for image in images:
        assert re.match(r"Prompt \d+ \(\S+\): drift over \d+ positions\.", image["alt"] or "")
    assert [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert "prefers-color-scheme: dark" in red_page
    assert "@media print" in red_page


def test_every_link_inside_the_page_has_its_target(red_page: str) -> None:
    page = page_of(red_page)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.all("a") if a["href"]]
    assert len(links) > 900
    assert [link for link in links if link.removeprefix("#") not in ids] == []


def test_a_page_of_a_broken_model_stays_small(red_page: str) -> None:
    assert len(red_page.encode()) <= html.MAX_BYTES


def test_headline_is_the_first_thing_after_the_title(red_page: str) -> None:
    body = red_page[red_page.index("<main>") :]
    order = [body.index(mark) for mark in ("<h1", "DIVERGED at rung", '<h2 id="positions"', 'id="code"')]
    assert order == sorted(order)
    assert 'data-parity="lab"' not in red_page


def test_export_writes_the_page_and_leaves_nothing_else(tmp_path: Path, make_verdict: Callable[..., Verdict]) -> None:
    title = {"cell_type": "markdown", "metadata": {}, "source": "# T"}
    box = cell(verdict_box(make_verdict()))
    notebook = {"cells": [title, box], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(notebook))
    target = html.export(tmp_path / "a.ipynb", tmp_path / "out" / "a.html")
    assert "PARITY at 1,412 of 1,412 positions" in target.read_text()
    assert [p.name for p in target.parent.iterdir()] == ["a.html"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 3}', "{}"])
def test_a_file_that_is_no_notebook_gives_an_error_and_no_page(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(RecordError, match=r"a\.ipynb: the notebook cannot be read"):
        html.export(tmp_path / "a.ipynb", tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()


def test_foreign_text_in_outputs_stays_text() -> None:
    bad = "\x1b[31m<script>alert(1)</script>\x1b[0m"
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": [bad]},
        {"output_type": "error", "ename": "E", "evalue": bad, "traceback": [bad]},
        {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": [bad]}},
    ]
    source = {"cell_type": "code", "metadata": {}, "source": "<script>", "outputs": outputs, "execution_count": 1}
    page = html.render([source])
    assert "<script" not in page
    assert "\x1b" not in page
    assert page.count("&lt;script&gt;") >= 4
