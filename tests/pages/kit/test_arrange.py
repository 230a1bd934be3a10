from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parity_lib.base.names import Outcome
from parity_lib.pages.cell.box import verdict_box
from parity_lib.pages.kit.arrange import Banner, arrange, page_title
from parity_lib.records.verdicts import Verdict

Cell = dict[str, Any]


def text(source: str, *tags: str) -> Cell:
    return {"cell_type": "markdown", "id": "m", "metadata": {"tags": list(tags)}, "source": source}


def code(source: str, *outputs: dict[str, Any], tags: tuple[str, ...] = (), count: int | None = 1) -> Cell:
    marks = {"tags": list(tags)}
    return {
        "cell_type": "code",
        "id": "c",
        "metadata": marks,
        "source": source,
        "outputs": list(outputs),
        "execution_count": count,
    }


def stream(words: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": words}


def error(name: str, value: str) -> dict[str, Any]:
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": [f"{name}: {value}"]}


def html(words: str) -> dict[str, Any]:
    return {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/html": words}}


def headline(verdict: Verdict) -> dict[str, Any]:
    data, marks = verdict_box(verdict)._repr_mimebundle_()
    return {"output_type": "display_data", "metadata": marks, "data": data}


def shown(cells: list[Cell]) -> list[str]:
    """Return what a reader meets, one word a cell of the page."""
    found = []
    for cell in cells:
        marks = cell["metadata"]["parity"]
        outputs = " ".join(str(o.get("data", {}).get("text/html", o.get("text", ""))) for o in cell.get("outputs", []))
        found.append(f"{marks['part']}: {cell['source'] or outputs}")
    return found


def notebook(verdict: Verdict) -> list[Cell]:
    return [
        text("# Logits"),
        code("model: str = 'm'", tags=("parameters",)),
        code("judge()", stream("log"), tags=("compute",)),
        code("show.verdict_box(verdict)", headline(verdict)),
        text("## Rungs"),
        code("show.rung_table(verdict)", html("<table>rungs</table>")),
        code("verdict.require_parity()", tags=("assert", "raises-exception")),
    ]


def test_headline_comes_right_after_the_title_and_code_last(make_verdict: Callable[..., Verdict]) -> None:
    page = shown(arrange(notebook(make_verdict())))
    assert page[0] == "text: # Logits"
    assert "PARITY at 1,412" in page[1]
    assert page[2:4] == ["text: ## Rungs", "show: <table>rungs</table>"]
    assert "Code and log" in page[4]
    assert [p.partition(":")[0] for p in page[5:]] == ["code"] * 5


def test_what_computing_cells_print_is_a_log_below_their_code(make_verdict: Callable[..., Verdict]) -> None:
    page = arrange(notebook(make_verdict()))
    judge = next(cell for cell in page if cell["source"] == "judge()")
    assert judge["metadata"]["parity"]["number"] == 3
    assert judge["outputs"][0]["text"] == "log"


def test_the_alarm_of_the_assert_cell_is_no_second_failure(make_verdict: Callable[..., Verdict]) -> None:
    cells = notebook(make_verdict(Outcome.DIVERGED))
    cells[-1]["outputs"] = [error("ParityFailure", "DIVERGED: ...")]
    page = arrange(cells)
    assert "DIVERGED at rung T4" in shown(page)[1]
    assert not any("raised" in words for words in shown(page))
    assert page[-1]["metadata"]["parity"] == {"part": "code", "number": 7, "failed": True, "open": False}


def test_another_error_in_the_assert_cell_is_a_failure(make_verdict: Callable[..., Verdict]) -> None:
    cells = notebook(make_verdict())
    cells[-1]["outputs"] = [error("NameError", "verdict")]
    assert "INCOMPLETE: cell 7 raised NameError" in shown(arrange(cells))[1]


def test_a_run_that_broke_off_opens_with_the_cause_and_shows_no_empty_heading() -> None:
    cells = [
        text("# Logits"),
        code("open_cell()", error("PinError", "file: expected <a>, found b"), tags=("compute",)),
        text("## Rungs"),
        code("show.rung_table(verdict)", count=None),
    ]
    page = shown(arrange(cells))
    assert "INCOMPLETE: cell 2 raised PinError" in page[1]
    assert "expected &lt;a&gt;, found b" in page[1]
    assert "1 of 2 code cells did not run (4)" in page[1]
    assert "text: ## Rungs" not in page


def test_a_page_without_headline_says_what_was_asked_for() -> None:
    source = "model: str = 'a'  # id\nquant: str = 'Q8_0'  # quant\nfault: str = ''  # none"
    given = code(source, tags=("parameters",))
    injected = code("model = 'b'", tags=("injected-parameters",))
    page = shown(arrange([text("# T"), given, injected, code("judge()", error("PinError", "x"), tags=("compute",))]))
    assert "Asked for: model b · quant Q8_0</p>" in page[1]


def test_a_green_headline_never_hides_that_later_cells_did_not_run(make_verdict: Callable[..., Verdict]) -> None:
    cells = notebook(make_verdict())
    cells[-1]["execution_count"] = None
    page = shown(arrange(cells))
    assert "INCOMPLETE: 1 of 5 code cells did not run" in page[1]
    assert "PARITY at 1,412" in page[2]


def test_what_the_runner_saw_comes_before_everything_else(make_verdict: Callable[..., Verdict]) -> None:
    banner = Banner("the kernel died (exit status 138)", "Run it again", "GGML_ASSERT(x) failed")
    page = shown(arrange(notebook(make_verdict()), banner))
    assert "INCOMPLETE: the kernel died (exit status 138)" in page[1]
    assert "GGML_ASSERT(x) failed" in page[1]
    assert "No part of this page is a result of a complete run." in page[1]


def test_the_runners_note_in_the_notebook_is_shown_once() -> None:
    note = text("**INCOMPLETE: this run broke off.**", "parity-banner", "papermill-error-cell-tag")
    marker = text("<span>An Exception was encountered</span>", "papermill-error-cell-tag")
    cells = [marker, text("# T"), note, code("x", count=None)]
    assert shown(arrange(cells))[:2] == ["text: # T", "banner: **INCOMPLETE: this run broke off.**"]
    with_banner = shown(arrange(cells, Banner("the kernel died")))
    assert "the kernel died" in with_banner[1]
    assert not any("this run broke off" in words for words in with_banner)


def test_a_page_without_headline_says_so() -> None:
    assert "This page has no headline" in shown(arrange([text("# T"), code("1 + 1", stream("2"))]))[1]


def test_values_for_programs_are_not_shown(make_verdict: Callable[..., Verdict]) -> None:
    value = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"application/scrapbook.scrap.json+json": {"name": "n", "data": 1}},
    }
    page = arrange([text("# T"), code("box", headline(make_verdict())), code("record()", value)])
    assert sum(len(cell.get("outputs", [])) for cell in page) == 2


def test_the_tab_is_named_after_the_headline_or_the_title(make_verdict: Callable[..., Verdict]) -> None:
    assert page_title(notebook(make_verdict())) == "PARITY · smollm2-135m · Q8_0"
    assert page_title([text("# Machine and pins\nmore")]) == "INCOMPLETE · Machine and pins"
