"""Verdicts: what concludes to what, what the greppable line says, and that JSON gives back an equal record."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import ParityFailure, RecordError
from parity_lib.base.json_text import encode
from parity_lib.base.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.base.record import decode_record
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import NonFinite, PairReport
from parity_lib.records.runs import BurnRun
from parity_lib.records.verdicts import CellId, Divergence, PinnedFiles, RungResult, Verdict, conclude, margin_words
from tests.run_info import run_info

CELL = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")
OURS = ((791, 18.2231), (578, 18.1553))
THEIRS = ((578, 18.2230), (791, 18.1554))
FLIP = Divergence(
    Rung.T4,
    Kind.TOP1,
    0.0002,
    prompt_idx=3,
    token_idx=17,
    top5_burn=OURS,
    top5_llamacpp=THEIRS,
    delta=0.0677,
    delta_id=791,
    ledger=LedgerClass.UNEXPLAINED,
)
RUN = run_info(
    "burn",
    model_sha256="ab" * 32,
    seconds=math.nan,
    isa_requested="avx512",
    lock_sha256="cd" * 32,
)


def rung(which: Rung, outcome: Outcome = Outcome.PARITY, expected: int = 9, compared: int = 9) -> RungResult:
    return RungResult(which, outcome, expected, compared, None, None, "pins", note="why")


def verdict(
    outcome: Outcome, rungs: Sequence[RungResult], divergences: Sequence[Divergence] = (), **changes: object
) -> Verdict:
    made = Verdict(
        CELL, outcome, tuple(rungs), tuple(divergences), {"candidate": RUN}, provisional=True, unpinned=False
    )
    return replace(made, **changes)


T0, T2, T4 = rung(Rung.T0), rung(Rung.T2), rung(Rung.T4)
LOST = Measured(native=PairReport(None, None, (), NonFinite(3, 0)))
RED = rung(Rung.T4, Outcome.DIVERGED)


@pytest.mark.parametrize(
    ("rungs", "outcome", "words"),
    [
        ([T0, T2, T4], Outcome.PARITY, ""),
        ([T0, T2, RED], Outcome.DIVERGED, ""),
        ([rung(Rung.T0, Outcome.INCOMPLETE), T2, RED], Outcome.INCOMPLETE, "T0 pins: why"),
        ([rung(Rung.T0, Outcome.DIVERGED), T2, T4], Outcome.INCOMPLETE, ""),
        ([T0, rung(Rung.T2, Outcome.INCOMPLETE), RED], Outcome.DIVERGED, "T2 weights: why"),
        ([T0, T2], Outcome.INCOMPLETE, "T4 twin: did not run"),
        ([T0, T2, rung(Rung.T4, compared=8)], Outcome.INCOMPLETE, "T4 twin: compared 8 of 9"),
        ([T0, T2, rung(Rung.T4, compared=10)], Outcome.INCOMPLETE, "T4 twin: compared 10 of 9"),
        ([T0, T2, rung(Rung.T4, expected=0, compared=0)], Outcome.INCOMPLETE, "no case was expected"),
        ([T0, T2, rung(Rung.T4, Outcome.NOT_RUN)], Outcome.INCOMPLETE, "T4 twin: why"),
        ([T0, T2, rung(Rung.T4, Outcome.INVALID)], Outcome.INCOMPLETE, "T4 twin: why"),
        ([T0, T2, T4, rung(Rung.T5, Outcome.REPORTED)], Outcome.PARITY, ""),
        ([T0, T2, T4, rung(Rung.T5, Outcome.REPORTED, compared=3)], Outcome.INCOMPLETE, "T5 native: compared 3 of 9"),
        ([T0, T2, rung(Rung.T4, expected=1, compared=1)], Outcome.PARITY, ""),
        ([], Outcome.INCOMPLETE, "T0 pins: did not run"),
    ],
)
def test_conclude(rungs: list[RungResult], outcome: Outcome, words: str) -> None:
    found, causes = conclude(rungs, required=[Rung.T0, Rung.T2, Rung.T4])
    assert found is outcome
    assert words in "; ".join(causes)
    assert bool(words) == bool(causes) or rungs[0].outcome is not Outcome.PARITY


def test_nothing_judged_is_no_parity_even_where_nothing_is_required() -> None:
    for rungs in ([], [rung(Rung.T5, Outcome.REPORTED)]):
        assert conclude(rungs, required=[]) == (Outcome.INCOMPLETE, ("no rung was judged",))


def test_the_line_is_the_users_tuple_by_its_own_names() -> None:
    assert FLIP.line(CELL) == (
        "DIVERGED model=smollm2-135m quant=Q8_0 isa=avx512 stack=crates-io compute=f32 rung=T4 prompt_idx=3 "
        "token_idx=17 kind=TOP1 top5_burn=[(791,18.2231),(578,18.1553)] top5_llamacpp=[(578,18.2230),(791,18.1554)] "
        "delta=+0.0677 delta_id=791 limit=0.0002 ledger=UNEXPLAINED"
    )


def test_a_red_control_says_so_and_a_note_stays_in_its_line() -> None:
    line = replace(FLIP, note='a "quoted"\nnote').line(CELL, control=True)
    assert line.startswith("CONTROL model=")
    assert "\n" not in line
    assert line.endswith(r'note="a \"quoted\"\nnote"')


def test_a_tensor_has_a_place_and_no_position() -> None:
    line = Divergence(Rung.T2, Kind.TENSOR, 0.0, where="blk.0.ffn_down.weight", delta=math.inf).line(CELL)
    assert "where=blk.0.ffn_down.weight kind=TENSOR delta=+inf limit=0" in line
    assert "prompt_idx" not in line
    assert "top5" not in line


def test_causes_are_lines_too() -> None:
    lines = verdict(Outcome.INCOMPLETE, [T0], causes=("T4 twin: did not run",)).lines()
    assert lines == [f'INCOMPLETE {CELL.fields()} cause="T4 twin: did not run"']


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.PARITY])
def test_only_parity_passes_the_assert_cell(outcome: Outcome) -> None:
    verdict(Outcome.PARITY, [T0, T4]).require_parity()
    with pytest.raises(ParityFailure, match=outcome.value) as caught:
        verdict(outcome, [T0, RED], [FLIP] * 9).require_parity()
    assert caught.value.exit_status == 1
    assert "and 4 more lines" in str(caught.value)
    assert str(caught.value).count("DIVERGED model=") == 5
    with pytest.raises(ParityFailure) as caught:
        verdict(outcome, [T0, RED], [FLIP] * 5).require_parity()
    assert "more lines" not in str(caught.value)


def test_a_rung_is_found_by_its_name() -> None:
    made = verdict(Outcome.DIVERGED, [T0, RED], [FLIP])
    assert made.rung(Rung.T4) is RED
    assert made.rung(Rung.T2) is None
    assert not made.control


@pytest.mark.parametrize(
    "made",
    [
        verdict(Outcome.PARITY, [T0, T2, T4], measured=Measured(seconds={"a": math.nan, "b": math.inf}), seconds=3.5),
        verdict(
            Outcome.DIVERGED,
            [T0, replace(RED, worst=math.nan, limit=2e-4)],
            [
                FLIP,
                replace(FLIP, delta=math.nan, kind=Kind.NON_FINITE, ledger=None),
                replace(FLIP, top5_burn=((1, math.nan), (2, -math.inf))),
                Divergence(Rung.T4, Kind.RMS, 0.0, where="pooled over all positions", note="你"),
            ],
            control=True,
        ),
        verdict(Outcome.INCOMPLETE, [], causes=("x",), runs={}, pins=PinnedFiles(prompts_sha256="ab" * 32)),
    ],
)
def test_json_gives_back_an_equal_record(made: Verdict) -> None:
    text = json.dumps(encode(made), allow_nan=False)
    back = decode_record(json.loads(text), Verdict, "here")
    assert encode(back) == encode(made)  # NaN is not equal to itself, its JSON is
    assert back.lines() == made.lines()
    assert [type(r.rung) for r in back.rungs] == [Rung] * len(made.rungs)
    assert back.cell == made.cell


def test_run_info_with_another_field_is_refused() -> None:
    data = encode(RUN)
    with pytest.raises(RecordError, match="unknown field `gpu`"):
        decode_record(data | {"gpu": "none"}, BurnRun, "here")
    del data["fault"]
    with pytest.raises(RecordError, match="missing required field `fault`"):
        decode_record(data, BurnRun, "here")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (verdict(Outcome.PARITY, []), "PARITY without a rung"),
        (verdict(Outcome.PARITY, [T0, RED], [FLIP]), "a rung diverged and the outcome is PARITY"),
        (verdict(Outcome.PARITY, [T0, rung(Rung.T4, compared=8)]), "PARITY although: T4 twin: compared 8 of 9"),
        (verdict(Outcome.PARITY, [T0, T4], causes=("a gap",)), "PARITY although: a gap"),
        (verdict(Outcome.PARITY, [T0, replace(T4, limit=math.inf)]), "its limit is not finite"),
        (verdict(Outcome.PARITY, [T0, replace(T4, worst=math.nan)]), "its worst case or its limit is not finite"),
        (
            verdict(Outcome.PARITY, [T0, T4], measured=Measured(native=PairReport(None, None, (), NonFinite(3, 0)))),
            "not finite",
        ),
        (verdict(Outcome.PARITY, [T0, T4], [FLIP]), "rungs with a divergence listed"),
        (verdict(Outcome.INCOMPLETE, [T0, RED], [FLIP]), "a rung diverged and the outcome is INCOMPLETE"),
        (verdict(Outcome.DIVERGED, [T0, T4]), "DIVERGED although no rung diverged"),
        (verdict(Outcome.DIVERGED, [T0, RED]), "rungs that diverged"),
    ],
)
def test_a_record_that_denies_its_own_outcome(made: Verdict, words: str) -> None:
    assert words in "; ".join(made.contradictions())


@pytest.mark.parametrize(
    "made",
    [
        verdict(Outcome.PARITY, [T0, T2, T4]),
        verdict(Outcome.DIVERGED, [T0, RED], [FLIP]),
        verdict(Outcome.INCOMPLETE, [], causes=("killed",)),
        verdict(Outcome.INCOMPLETE, [rung(Rung.T0, Outcome.INCOMPLETE), RED], [FLIP], causes=("T0 pins: why",)),
        verdict(Outcome.INVALID, [T0, T4], control=True),
    ],
)
def test_sound_records(made: Verdict) -> None:
    assert made.contradictions() == []


def test_the_margin_is_how_often_the_worst_case_fits_into_its_limit() -> None:
    result = replace(T4, worst=1e-5, limit=4.5e-5)
    assert result.margin == pytest.approx(4.5)
    for without in (replace(result, worst=0.0), replace(result, worst=math.nan), replace(result, limit=None)):
        assert without.margin is None


def test_the_lowest_broken_rung_is_named_whatever_the_order() -> None:
    made = verdict(Outcome.DIVERGED, [RED, rung(Rung.T5, Outcome.REPORTED), rung(Rung.T2, Outcome.DIVERGED), T0])
    assert made.lowest_broken is not None
    assert made.lowest_broken.rung is Rung.T2
    assert verdict(Outcome.PARITY, [T0, T4]).lowest_broken is None


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        (4.53, "4.5x inside"),
        (1.0, "1.0x inside"),
        (1.04, "1.040x inside"),
        (0.00012, "8,333x over"),
        (1e-7, "1e7x over"),
        (0.0, "over"),  # equality was asked for: no factor says how far
    ],
)
def test_margin_is_said_in_words(margin: float, words: str) -> None:
    assert margin_words(margin) == words
