"""The table of rung T3 on a cell's page: what is over a limit first, and nothing pretended where there is no record."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from parity_lib.base.json_text import dump_line
from parity_lib.base.record import decode_record
from parity_lib.judge.t3_ops import Replayed, kinds
from parity_lib.pages.cell.t3_ops import op_kinds
from parity_lib.records.measured import Measured, Ops
from parity_lib.records.verdicts import Verdict

from ..conftest import OPS_TOLD, replayed_ops


def record(*replays: Replayed) -> Measured:
    told = decode_record(json.loads(dump_line(Ops((OPS_TOLD,), kinds(replays)))), Ops, "here")
    return Measured(ops=told)


@pytest.mark.parametrize(("factor", "word"), [(1.01, "x"), (float("nan"), "over")])
def test_what_is_over_its_limit_stands_first_and_is_marked(
    make_verdict: Callable[..., Verdict], factor: float, word: str
) -> None:
    table = op_kinds(replace(make_verdict(), measured=record(replayed_ops(factor))))
    rows = [line for line in table.plain.splitlines() if "prefill" in line or "decode" in line][1:]
    assert "layer 1" in rows[0]
    assert word in rows[0]
    assert table.html.count('class="bad"') == 1
    assert "20 rows prefilled, 1 decoded; weights of products: 7 from CPU_Mapped" in table.plain


def test_sound_ops_are_not_marked(make_verdict: Callable[..., Verdict]) -> None:
    assert 'class="bad"' not in op_kinds(replace(make_verdict(), measured=record(replayed_ops(1.0)))).html


def test_a_record_without_the_rung_says_so(make_verdict: Callable[..., Verdict]) -> None:
    assert "not in this record" in op_kinds(replace(make_verdict(), measured=Measured())).plain
