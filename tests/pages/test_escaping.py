"""What a user or a file controls stays text on every page: planted in every field of the records, found escaped."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import pytest
from msgspec import Struct, structs

from parity_lib import pages
from parity_lib.cell.file_check import Pieces, TensorNumbers
from parity_lib.judge.t1_known_differences import KnownDifferences
from parity_lib.pages.files.fixtures import difference_table, spread_pin_table
from parity_lib.pages.files.machine import check_table, machine_header
from parity_lib.pages.files.tensors import tensor_table, type_table
from parity_lib.pages.files.tokens import case_table, prompt_pieces, token_differences, token_table
from parity_lib.pages.kit.arrange import Banner
from parity_lib.pages.kit.export import render
from parity_lib.pages.kit.heat_map import HeatMap, Line, Square, heat_map
from parity_lib.pages.kit.text import Words
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.night_record import Night
from parity_lib.records.self_spread_pins import load_spreads
from parity_lib.records.traces import PairTrace
from parity_lib.records.verdicts import Verdict

from .kit.test_export import cell
from .test_pages import cell_page, shown_page

EVIL = """<script>alert("&')</script>"""
WHOLE = ("created_at", "started_at", "run_id", "schema", "metric", "machine_class", "isa", "stack", "compute", "site")


def planted(value: Any, name: str = "") -> Any:
    """Return a record in which every text ends in ``EVIL``, but those whose form the code reads."""
    if isinstance(value, Enum) or name in WHOLE:
        return value
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, Struct):
        return structs.replace(value, **{f: planted(getattr(value, f), f) for f in value.__struct_fields__})
    if isinstance(value, Mapping):
        return {key: planted(one, str(key)) for key, one in value.items()}
    return type(value)(planted(one, name) for one in value) if isinstance(value, tuple | list) else value


def assert_escaped(page: str, least: int) -> None:
    assert "<script" not in page
    assert "&amp;lt;" not in page  # once is enough
    assert page.count("&lt;script&gt;") >= least


@pytest.fixture(scope="module")
def evil_words(words: Words) -> Words:
    tokens = {idx: EVIL.encode() + bytes([97 + idx % 26]) for idx in words.tokens}
    return Words(tokens, dict.fromkeys(words.prompts, EVIL))


def test_a_cell(
    full_verdict: Callable[..., Verdict],
    red_verdict: Verdict,
    red_pair: PairTrace,
    limits: DriftLimits,
    evil_words: Words,
) -> None:
    prompts = (2, 5, 8)  # those with flips and with a row that is not finite
    broken, rows = full_verdict(red=True), np.flatnonzero(np.isin(red_pair.reference.prompt_idx, prompts))
    found = [d for d in red_verdict.divergences if d.prompt_idx in prompts]
    verdict = structs.replace(broken, divergences=(*broken.divergences, *found))
    verdict = structs.replace(planted(verdict), causes=(EVIL,))
    assert_escaped(cell_page(verdict, red_pair.take(rows), limits, evil_words), 1_500)


def test_a_nightly_run(night: Night) -> None:
    assert_escaped(shown_page("06_night", {"show": pages, "night": planted(night), "run_dir": ""}), 60)


def test_a_run_that_broke_off() -> None:
    error = {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL]}
    given = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": f"model = '{EVIL}'"}
    broken = {**given, "metadata": {}, "source": EVIL}
    cells = [{**given, "outputs": [], "execution_count": 1}, {**broken, "outputs": [error], "execution_count": None}]
    assert render(cells).count("&lt;script&gt;") >= 5
    for page in (render(cells), render(cells, banner=Banner(EVIL, EVIL, EVIL))):
        assert "<script" not in page


def test_tables_of_files_and_the_machine(full_verdict: Callable[..., Verdict]) -> None:
    verdict, check = planted(full_verdict(red=True)), types.SimpleNamespace
    checks = [check(name=EVIL, ok=False, found=EVIL, next_step=EVIL, blocks=True)]
    tensor = TensorNumbers(EVIL, EVIL, (2, 2), 16, 1.0, 2.0, 0)
    shown = [
        *(machine_header(checks), check_table(checks)),
        *(tensor_table([tensor], verdict), type_table([tensor])),
        *(token_differences(verdict), token_table(verdict), case_table(verdict)),
        prompt_pieces([Pieces(EVIL, ((1, EVIL.encode()),))]),
        spread_pin_table(planted(load_spreads()), EVIL),
        difference_table(KnownDifferences((), EVIL)),
        heat_map(HeatMap(EVIL, [Line(EVIL, [Square(0, EVIL, href=EVIL)])], [(0, EVIL)]), alt=EVIL, caption=EVIL),
    ]
    assert_escaped(render([cell(one) for one in shown]), 20)
