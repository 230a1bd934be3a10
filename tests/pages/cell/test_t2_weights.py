from __future__ import annotations

from collections.abc import Callable

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.pages.cell.t2_weights import weight_table
from parity_lib.records.verdicts import Divergence, RungResult, Verdict

MakeVerdict = Callable[..., Verdict]


def test_green_says_how_much_was_compared_with_what(make_verdict: MakeVerdict) -> None:
    assert weight_table(make_verdict()).plain == "272 of 272 tensors compared, 0 of them differ."


def test_tensors_that_differ_are_listed_and_many_are_folded(make_verdict: MakeVerdict) -> None:
    rung = RungResult(Rung.T2, Outcome.DIVERGED, 272, 272, 3.0, 0.0, "ULP", "blk.0", "bit-equal to gguf", "9 values")
    found = tuple(
        Divergence(Rung.T2, Kind.TENSOR, 0.0, where=f"blk.{i}.ffn_down.weight", delta=3.0, note="row 0")
        for i in range(23)
    )
    shown = weight_table(make_verdict(Outcome.DIVERGED, rungs=(rung,), divergences=found))
    assert shown.plain.splitlines()[0] == (
        "272 of 272 tensors compared, 23 of them differ: bit-equal to gguf; 9 values."
    )
    assert shown.html.count('class="bad"') == 20
    assert "<summary>3 more tensors</summary>" in shown.html


def test_a_cell_that_ended_earlier_says_so(make_verdict: MakeVerdict) -> None:
    assert "not in this record" in weight_table(make_verdict(Outcome.INCOMPLETE, rungs=())).plain
