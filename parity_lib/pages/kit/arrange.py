"""Turns an executed notebook into reading order: headline, pictures and tables, then code and log, folded."""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from parity_lib.base.names import Outcome
from parity_lib.pages.kit.box import box
from parity_lib.pages.kit.fragment import EMPTY, HEADLINE, Fragment, details, joined, on_page, paragraph
from parity_lib.pages.kit.outcomes import style_of

Cell = dict[str, Any]

# Cells with one of these tags compute; what they print is a log and stands at the end of the page.
COMPUTING_TAGS = frozenset({"parameters", "injected-parameters", "compute", "record", "assert"})
_ASSIGNMENT = re.compile(r"^(\w+)(?:: \w+)? = (.*?)(?:  #.*)?$", re.MULTILINE)
_EMPTY = ('""', "''", "False")  # values of parameters that were left empty
_MARKER_TAG = "papermill-error-cell-tag"  # papermill's own red lines; the headline says it better
_BANNER_TAG = "parity-banner"  # what the runner wrote into a notebook that broke off, for JupyterLab
_EXPECTED_TAG = "raises-exception"  # the assert cell: its error is the verdict, which the headline shows


@dataclass(frozen=True, slots=True)
class Banner:
    """A failure that the runner saw and the notebook could not record: its kernel died, or ran out of time.

    Args:
        title: one line, ``kernel died (exit status 138)``.
        text: one sentence on what to do next.
        log_tail: the last lines of the log.
    """

    title: str
    text: str = ""
    log_tail: str = ""


def arrange(cells: Iterable[Cell], banner: Banner | None = None) -> list[Cell]:
    """Return the cells of the page, in reading order.

    A cell of the page is a markdown cell, a cell ``parity.part = "show"`` with outputs only, or
    ``"code"`` with its source and, where it computes, what it printed. A notebook that ended early
    opens with a box that says so, whatever its headline is: a page must never be greener than its run.
    """
    cells = deepcopy(list(cells))
    noted = [cell for cell in cells if _BANNER_TAG in _tags(cell)]
    cells = [cell for cell in cells if not _tags(cell) & {_BANNER_TAG, _MARKER_TAG}]
    numbers = list(range(1, len(cells) + 1))  # text counts too: the same numbers as in the causes and the log
    # The runner saw the process: its reason comes before what the cells show.
    trouble = EMPTY if noted and not banner else _banner(banner) if banner else _broken(cells, numbers)
    headline = [output for cell in cells for output in cell.get("outputs", []) if _role(output) == HEADLINE]
    if not headline and trouble.html:
        trouble = _asked(cells) + trouble
    title: list[Cell] = []
    body: list[Cell] = []
    code: list[Cell] = []
    for cell, number in zip(cells, numbers, strict=True):
        if cell["cell_type"] != "code":
            target = title if not title and cell["source"].lstrip().startswith("# ") else body
            (code if _tags(cell) & COMPUTING_TAGS else target).append(_part(cell, "text", number))
            continue
        computes = bool(_tags(cell) & COMPUTING_TAGS)
        shown = [output for output in cell["outputs"] if _role(output) != HEADLINE and not _is_record(output)]
        if shown and not computes:
            body.append(_part({**cell, "source": "", "outputs": shown}, "show", number))
        if cell["source"].strip():  # papermill's anchor cells are empty
            code.append(_part({**cell, "outputs": shown if computes else []}, "code", number))
    if not headline and not trouble.html and not noted:
        trouble = box(style_of(Outcome.INCOMPLETE), "This page has no headline: the notebook did not show a verdict.")
    top = [_part(cell, "banner", 0) for cell in noted] if not banner else []
    top += [_show(trouble)] if trouble.html else []
    if headline:
        top.append(_part({"cell_type": "code", "metadata": {}, "source": "", "outputs": headline}, "show", 0))
    page = [
        *title,
        *top,
        *(_without_empty_headings(body) if trouble.html or noted else body),
        _show(Fragment(Markup('<h2 id="code">Code and log</h2>'), "")),
        *code,
    ]
    return [{**cell, "id": f"page-{place}"} for place, cell in enumerate(page)]


def _without_empty_headings(body: list[Cell]) -> list[Cell]:
    """Return the body of a run that broke off, without the texts that announce what never came."""
    kinds = [cell["metadata"]["parity"]["part"] for cell in body]
    return [cell for i, cell in enumerate(body) if kinds[i] != "text" or kinds[i + 1 : i + 2] == ["show"]]


def page_title(cells: Iterable[Cell]) -> str:
    """Return what the browser's tab says: the headline's own title, else the first heading of what broke off."""
    cells = list(cells)
    for cell in cells:
        for output in cell.get("outputs", []):
            if _role(output) == HEADLINE and output["metadata"]["parity"].get("title"):
                return str(output["metadata"]["parity"]["title"])
    for cell in cells:
        if cell["cell_type"] == "markdown" and cell["source"].lstrip().startswith("# "):
            return f"INCOMPLETE · {cell['source'].lstrip().splitlines()[0].removeprefix('# ').strip()}"
    return "INCOMPLETE"


def _asked(cells: list[Cell]) -> Fragment:
    """Return the parameters of a run that came to no headline, so that its page says what it was about."""
    found: dict[str, str] = {}
    for cell in cells:
        if _tags(cell) & {"parameters", "injected-parameters"}:
            found |= {name: value for name, value in _ASSIGNMENT.findall(cell["source"]) if value not in _EMPTY}
    words = " · ".join(f"{name} {value.strip(chr(34) + chr(39))}" for name, value in found.items())
    return paragraph(f"Asked for: {words}" if words else "")


def _banner(banner: Banner) -> Fragment:
    tail = Fragment(Markup("<pre>{}</pre>").format(banner.log_tail), banner.log_tail)
    more = details("end of the log", tail, is_open=True) if banner.log_tail else EMPTY
    sentences = [*filter(None, [banner.text]), "No part of this page is a result of a complete run."]
    return box(style_of(Outcome.INVALID), f"INCOMPLETE: {banner.title}", sentences=sentences, more=more)


def _broken(cells: list[Cell], numbers: list[int]) -> Fragment:
    """Return a box that says what broke and what did not run; empty where every cell ran and raised no other error."""
    errors = [
        (number, output)
        for cell, number in zip(cells, numbers, strict=True)
        for output in cell.get("outputs", [])
        if output["output_type"] == "error" and not _is_alarm(cell, output)
    ]
    code = [(c, n) for c, n in zip(cells, numbers, strict=True) if c["cell_type"] == "code" and c["source"].strip()]
    late = [number for cell, number in code if cell.get("execution_count") is None]
    if not errors and not late:
        return EMPTY
    word = f"{len(late)} of {len(code)} code cells did not run"
    title = f"cell {errors[0][0]} raised {errors[0][1]['ename']}" if errors else word
    more = joined(_error(number, output) for number, output in errors)
    if late:
        more += paragraph(f"{word} ({', '.join(map(str, late))}): this page has no result of theirs.")
    return box(style_of(Outcome.INVALID if errors else Outcome.INCOMPLETE), f"INCOMPLETE: {title}", more=more)


def _error(number: int, output: Cell) -> Fragment:
    link = Markup('<a href="#cell-{0}">code and traceback of cell {0}</a>').format(number)
    return Fragment(Markup("<pre>{}</pre>").format(output["evalue"]), output["evalue"]) + paragraph(link)


def _is_alarm(cell: Cell, output: Cell) -> bool:
    """Return whether an error is the assert cell's own: it is the verdict, and the headline shows it."""
    return _EXPECTED_TAG in _tags(cell) and output.get("ename") == "ParityFailure"


def _show(shown: Fragment) -> Cell:
    output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": on_page(shown.html)}}
    return _part({"cell_type": "code", "metadata": {}, "source": "", "outputs": [output]}, "show", 0)


def _part(cell: Cell, part: str, number: int) -> Cell:
    """Return a cell of the page; its marks tell the template what it is."""
    outputs = cell.get("outputs", [])
    failed = any(output["output_type"] == "error" for output in outputs)
    expected = _EXPECTED_TAG in _tags(cell)
    # A last expression and a display() are alike on the page.
    shown = [{**o, "output_type": "display_data"} if o["output_type"] == "execute_result" else o for o in outputs]
    marks = {"part": part, "number": number, "failed": failed, "open": failed and not expected}
    own = {"outputs": shown, "execution_count": None} if cell["cell_type"] == "code" else {}
    return {**cell, **own, "metadata": {**cell["metadata"], "parity": marks}}


def _tags(cell: Cell) -> set[str]:
    return set(cell.get("metadata", {}).get("tags", []))


def _role(output: Cell) -> str:
    return str(output.get("metadata", {}).get("parity", {}).get("role", ""))


def _is_record(output: Cell) -> bool:
    """Return whether an output is for programs only; ``records.read_records`` reads it."""
    mimes = output.get("data", {}).keys()
    return bool(mimes) and all(mime.startswith("application/scrapbook.scrap") for mime in mimes)
