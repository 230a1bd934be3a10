from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from parity_lib.judge.align import align
from parity_lib.judge.literal import literal_report
from parity_lib.pages.cell.bf16 import bf16_table, bf16_words
from parity_lib.pages.cell.box import verdict_box
from parity_lib.pages.cell.t5_native import native_section
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import Bf16, NonFinite, PairReport
from parity_lib.records.traces import expected_positions
from parity_lib.records.verdicts import Verdict

from ..conftest import LENGTHS, noisy


@pytest.fixture(scope="module")
def bf16_verdict(make_verdict: Callable[..., Verdict]) -> Verdict:
    """A cell in bf16 as it is reported: three distances over real rows."""
    expected = expected_positions([p for p, _ in LENGTHS], [g for _, g in LENGTHS])
    sizes = ((1, 0.02), (2, 0.021), (3, 0.02))
    told = Bf16(*(literal_report(align(noisy(seed, size), expected)) for seed, size in sizes))
    base = make_verdict()
    cell = structs.replace(base.cell, compute="bf16")
    return structs.replace(base, cell=cell, measured=structs.replace(base.measured, bf16=told))


def test_three_distances_over_both_kinds_of_positions(bf16_verdict: Verdict) -> None:
    lines = bf16_table(bf16_verdict).plain.splitlines()
    assert [line.split("  ")[0] for line in lines[2:8:2]] == [
        "llama.cpp on the F32 twin: the BF16 band",
        "burn, bf16",
        "burn, f32",
    ]
    assert "1,025" in lines[2]
    assert "0.0210" in lines[4]
    assert "not gated" in lines[-1]


def test_the_headline_says_them_in_one_sentence(bf16_verdict: Verdict) -> None:
    words = bf16_words(bf16_verdict)
    assert words.startswith(
        "From llama.cpp on the BF16 twin, rms over the rows' std: burn 0.0210; the BF16 band 0.0200"
    )
    assert words in verdict_box(bf16_verdict).plain


def test_the_section_says_that_no_gate_stands(bf16_verdict: Verdict) -> None:
    assert "No gate: " in native_section(bf16_verdict).plain


def test_a_cell_of_another_arithmetic_has_none(make_verdict: Callable[..., Verdict], bf16_verdict: Verdict) -> None:
    assert bf16_table(make_verdict()).plain == bf16_words(make_verdict()) == ""
    empty = PairReport(None, None, (), NonFinite(0, 0))
    for told in (None, Bf16(empty, empty, empty)):
        odd = structs.replace(bf16_verdict, measured=Measured(bf16=told))
        assert bf16_words(odd) == ""
        assert bf16_table(odd).plain
