"""Whole pages, made by the notebooks' own looking cells on records: what is promised of every page is checked here."""

from __future__ import annotations

import ast
import json
import re
import types
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from parity_lib import pages
from parity_lib.base.names import Outcome
from parity_lib.pages.cell.positions import positions
from parity_lib.pages.kit import export as html
from parity_lib.pages.kit.text import Words
from parity_lib.records import store
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.night_record import Night
from parity_lib.records.traces import PairTrace
from parity_lib.records.verdicts import Verdict

from .kit.test_export import page_of

GOLDEN = Path(__file__).parent / "red_cell.txt"
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
COMPUTES = {"parameters", "compute", "record", "assert"}


def shown_page(name: str, names: dict[str, Any]) -> str:
    """Return the page of a notebook whose computing cells gave ``names``: its looking cells run as they are."""
    cells = []
    for number, cell in enumerate(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"], start=1):
        source, tags = "".join(cell["source"]), set(cell["metadata"].get("tags", []))
        shown = {"cell_type": cell["cell_type"], "metadata": cell["metadata"], "source": source}
        if cell["cell_type"] == "code":
            outputs = [] if tags & COMPUTES else [output(source, names)]
            shown |= {"outputs": outputs, "execution_count": number}
        cells.append(shown)
    return html.render(cells)


def output(source: str, names: dict[str, Any]) -> dict[str, Any]:
    *before, last = ast.parse(source).body
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(before, []), "cell", "exec"), names)  # noqa: S102 - our own notebook
    bundle = eval(compile(ast.Expression(last.value), "cell", "eval"), names)._repr_mimebundle_()  # noqa: S307
    data, marks = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {"output_type": "display_data", "metadata": marks, "data": data}


def cell_page(verdict: Verdict, pair: PairTrace, limits: DriftLimits, words: Words) -> str:
    prompts = [types.SimpleNamespace(idx=idx, name=name) for idx, name in words.prompts.items()]
    judgement = types.SimpleNamespace(twin=pair, limits=limits, token_text=words.tokens)
    cell = types.SimpleNamespace(suite=types.SimpleNamespace(prompts=prompts), out_dir=Path("reports/scratch"))
    return shown_page("02_logits", {"show": pages, "verdict": verdict, "judgement": judgement, "cell": cell})


@pytest.fixture(scope="module")
def red_cell(
    full_verdict: Callable[..., Verdict], red_verdict: Verdict, red_pair: PairTrace, limits: DriftLimits, words: Words
) -> str:
    """The page of a cell in which everything went wrong that can."""
    broken = full_verdict(red=True)
    t4 = next(rung for rung in red_verdict.rungs if rung.rung == "T4")
    verdict = structs.replace(
        broken,
        rungs=tuple(t4 if rung.rung == "T4" else rung for rung in broken.rungs),
        divergences=(*broken.divergences, *red_verdict.divergences),
        measured=structs.replace(broken.measured, ledger=red_verdict.measured.ledger),
    )
    return cell_page(verdict, red_pair, limits, words)


@pytest.fixture(scope="module")
def green_cell(full_verdict: Callable[..., Verdict], two_prompts: PairTrace, limits: DriftLimits, words: Words) -> str:
    return cell_page(full_verdict(), two_prompts, limits, words)


@pytest.fixture(scope="module")
def old_cell(make_verdict: Callable[..., Verdict], two_prompts: PairTrace, limits: DriftLimits, words: Words) -> str:
    """The page of a record from before there were T1, T5's gate, T6, a cache and seconds."""
    return cell_page(make_verdict(), two_prompts, limits, words)


@pytest.fixture(scope="module")
def night_page(night: Night, full_verdict: Callable[..., Verdict], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nights") / night.run_id
    for record in night.cells[:3]:
        verdict = structs.replace(full_verdict(), cell=record.cell)
        store.save_verdict(verdict, folder / record.folder)
        runs = {n: structs.replace(run, machine_class=night.machine_class) for n, run in verdict.runs.items()}
        for run_id in ("20261122T020000Z-5e1c0a1b", night.run_id):
            entry = store.history_entry(run_id, structs.replace(verdict, runs=runs))
            store.append_history([entry], folder.parent / "history.jsonl")
    return shown_page("06_night", {"show": pages, "night": night, "run_dir": str(folder)})


@pytest.fixture(params=["red_cell", "green_cell", "old_cell", "night_page"])
def page(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


class Prose(HTMLParser):
    """Collects what a page says in its own words, each sentence once, numbers as #; no cell of a table, no code."""

    SAYS = ("h1", "h2", "h3", "p", "th", "caption", "figcaption", "summary")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.said: dict[str, None] = {}
        self.feed(page[page.index("<main>") : page.index('id="code"')])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SAYS:
            self.inside.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SAYS and (text := " ".join(self.inside.pop().split())):
            self.said[re.sub(r"(?<![\w-])-?\d+(?:[.,]\d+)*(?:e[-+]\d+)?", "#", text)] = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.inside[-1] += data


def test_the_words_of_a_red_page_are_the_pinned_ones(red_cell: str, tmp_path: Path) -> None:
    """The one test of sentences; the other tests of pages are about numbers, links and marks."""
    found = "\n".join(Prose(red_cell).said) + "\n"
    (tmp_path / GOLDEN.name).write_text(found)
    assert found == GOLDEN.read_text(), f"read the difference; if it is meant: cp {tmp_path / GOLDEN.name} {GOLDEN}"


def test_a_page_is_small_sound_and_loads_nothing(page: str) -> None:
    parsed = page_of(page)
    assert parsed.open == []
    assert len(page.encode()) <= html.MAX_BYTES
    assert not parsed.all("script")
    assert not re.findall(r"@import|https?://", page)


def test_every_picture_has_words_and_every_square_a_title(page: str) -> None:
    parsed = page_of(page)
    images = parsed.all("img")
    assert images
    assert all(len(image.get("alt") or "") > 20 for image in images)
    for svg in re.findall(r'<svg [^>]*role="img".*?</svg>', page, re.DOTALL):
        squares = re.findall(r"<(?:a|g)[ >].*?</(?:a|g)>", svg)
        assert squares
        assert all(square.count("<title>") == 1 for square in squares)


def test_every_link_leads_somewhere(page: str) -> None:
    parsed = page_of(page)
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = [a["href"] for a in parsed.all("a") if (a.get("href") or "").startswith("#")]
    assert [link for link in inside if link is not None and link[1:] not in ids] == []


def test_headings_go_down_one_step_at_a_time(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in page_of(page).tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))


def test_a_red_page_opens_with_where_how_large_and_what_shape(red_cell: str) -> None:
    top = red_cell[: red_cell.index("<h2")]
    for words in ("DIVERGED at rung T1 tokens", "Reproduce: <code>parity run", "Profile: "):
        assert words in top
    ladder = red_cell[red_cell.index('class="stack rungs"') :]
    order = re.findall(r'<a href="#(\w+)"><abbr', ladder[: ladder.index("</table>")])
    assert order == ["tokens", "ops", "positions", "literal", "self", "ran", "weights", "isa"]


def test_a_green_page_shows_every_rung_with_its_section(green_cell: str) -> None:
    for title in (
        "Gate: distance over llama.cpp's self-spread",
        "llama.cpp against itself",
        "Ledger of flips",
        "effective positions would have caught a flip rate of",
        "decoded by a new session that took over a saved state",
        "Bytes of 49,152 of 49,152 ids compared: all equal.",
        "computed again, bit-equal",
        "_mm512_fmadd_ps",
        "Where the time went",
    ):
        assert title in green_cell, title
    lacking = set(re.findall(r">([^<>]*): not in this record", green_cell))
    assert lacking == {"The same relations of llama.cpp"}


def test_an_old_record_says_what_it_lacks_and_never_breaks(old_cell: str) -> None:
    assert "PARITY at 1,412 of 1,412 positions" in old_cell
    assert old_cell.count("not in this record") >= 6
    assert 'alt="Prompt ' in old_cell


def test_a_cell_of_another_arithmetic_claims_no_equality(
    make_verdict: Callable[..., Verdict], two_prompts: PairTrace, limits: DriftLimits, words: Words
) -> None:
    base = make_verdict()
    told = tuple(structs.replace(r, outcome=Outcome.REPORTED, limit=None) if r.rung == "T4" else r for r in base.rungs)
    verdict = structs.replace(base, cell=structs.replace(base.cell, compute="bf16"), rungs=told)
    top = cell_page(verdict, two_prompts, limits, words)
    top = top[: top.index("<h2")]
    assert "PARITY at rungs T0, T2; T4, T5 reported, not gated" in top
    assert "Top-1 and top-5 set equal" not in top


def test_no_position_at_all_is_a_page_too(
    full_verdict: Callable[..., Verdict], green_pair: PairTrace, limits: DriftLimits, words: Words
) -> None:
    empty = green_pair.take(positions(green_pair, limits).of_prompt(99))
    page = cell_page(full_verdict(), empty, limits, words)
    assert page.count("No position was compared.") >= 2


def test_the_night_says_how_sure_it_is_and_what_it_cost(night_page: str) -> None:
    order = [night_page.index(word) for word in ("Models and quants", "Lines to grep", "Trend", "Time and", "How sure")]
    assert order == sorted(order)
    assert "over 2 nightly runs" in night_page
    assert "capture reference, 21 s" in night_page
    assert "bit-equal, 200 rows" in night_page
