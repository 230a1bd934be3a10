from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from parity_lib.display.ladder import rung_table
from parity_lib.names import Outcome, Rung
from parity_lib.verdicts import Verdict

MakeVerdict = Callable[..., Verdict]


def test_failing_rungs_come_first(make_verdict: MakeVerdict) -> None:
    lines = rung_table(make_verdict(Outcome.DIVERGED)).plain.splitlines()
    assert [line.split()[0] for line in lines] == ["rung", "T4", "T0", "T2", "T5"]
    assert re.split(r"\s{2,}", lines[1])[:7] == [
        "T4 twin",
        "1,412",
        "1,412",
        "0.068 rms/std",
        "2.0e-04 rms/std",
        "340x over",
        "✗ DIVERGED",
    ]


def test_a_rung_without_gate_has_no_margin(make_verdict: MakeVerdict) -> None:
    line = rung_table(make_verdict()).plain.splitlines()[-1]
    assert re.split(r"\s{2,}", line)[4:7] == ["no gate", "–", "· reported"]


def test_rungs_that_did_not_run_are_named(make_verdict: MakeVerdict) -> None:
    assert "Not part of this cell: T1 tokens, T3 ops, T6 self, T7 ISA." in rung_table(make_verdict()).html


def test_a_long_source_is_folded_and_complete(make_verdict: MakeVerdict) -> None:
    verdict = make_verdict()
    source = "8 x 1.5e-07; " * 20
    rungs = tuple(dataclasses.replace(r, source=source) for r in verdict.rungs)
    html = rung_table(dataclasses.replace(verdict, rungs=rungs)).html
    assert f"<details><summary>limit from</summary>{source}</details>" in html


def test_rows_link_to_their_details_and_carry_words_besides_colour(make_verdict: MakeVerdict) -> None:
    html = rung_table(make_verdict(Outcome.DIVERGED), {Rung.T4: "#positions"}).html
    assert '<a href="#positions"><abbr title="is the whole model right, on the F32 twin?">T4 twin</abbr></a>' in html
    assert "✗</span> DIVERGED" in html
    assert 'class="bad"' in html
