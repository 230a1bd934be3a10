from __future__ import annotations

import re
from collections.abc import Callable

from msgspec import structs

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.cell.ladder import rung_table
from parity_lib.records.measured import Measured, Power
from parity_lib.records.verdicts import Verdict

MakeVerdict = Callable[..., Verdict]


def test_failing_rungs_come_first(make_verdict: MakeVerdict) -> None:
    lines = rung_table(make_verdict(Outcome.DIVERGED)).plain.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["rung", "T4", "T0", "T2", "T5"]
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
    line = rung_table(make_verdict()).plain.splitlines()[4]
    assert re.split(r"\s{2,}", line)[4:7] == ["no gate", "–", "· reported"]


def test_rungs_that_did_not_run_are_named(make_verdict: MakeVerdict) -> None:
    assert "Not part of this cell: T1 tokens, T3 ops, T6 self, T7 ISA." in rung_table(make_verdict()).html


def test_a_long_source_is_folded_and_says_everything_once(make_verdict: MakeVerdict) -> None:
    verdict = make_verdict()
    common = "llama.cpp 0c1e570 strict on the F32 twin, against float64 numpy; 2026-11-23; parity bands smollm2-135m"
    rungs = tuple(structs.replace(r, source=f"8 x 1e-6; {common}; 8 x 2e-6; {common}") for r in verdict.rungs)
    html = rung_table(structs.replace(verdict, rungs=rungs)).html
    assert f"<details><summary>source of the limit</summary>8 x 1e-6; {common}; 8 x 2e-6</details>" in html


def test_the_row_of_the_deployed_file_says_what_it_did_literally(make_verdict: MakeVerdict) -> None:
    assert "literally, generated tokens: top-1 97.1 %, top-5 set 85.4 %" in rung_table(make_verdict()).html
    assert "literally, gen" not in rung_table(make_verdict(measured=Measured())).html


def test_below_the_ladder_stands_how_sure_it_is(make_verdict: MakeVerdict) -> None:
    power = Power(positions=374, detectable_flip_rate=0.00798, confidence=0.95)
    plain = rung_table(make_verdict(measured=Measured(power=power))).plain
    assert "374 effective positions would have caught a flip rate of 0.80 % with probability 0.95." in plain
    assert "Red control: not part of this cell" in plain
    assert "is not in this record" in rung_table(make_verdict()).plain


def test_rows_link_to_their_details_and_carry_words_besides_colour(make_verdict: MakeVerdict) -> None:
    html = rung_table(make_verdict(Outcome.DIVERGED), {Rung.T4: "#positions"}).html
    assert '<a href="#positions"><abbr title="is the whole model right, on the F32 twin?">T4 twin</abbr></a>' in html
    assert "✗</span> DIVERGED" in html
    assert 'class="bad"' in html
