"""A seeded fault is held against how it has to end: survivors, wrong endings and silent lines are all named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.errors import FixtureError, RecordError
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.base.record import load_record, save_record
from parity_lib.base.toml_table import fixture_path
from parity_lib.faults.judge import Kill, KillMatrix, SeededFault, judge_kill, load_faults
from parity_lib.faults.names import known_faults
from parity_lib.records.verdicts import CellId, Divergence, RungResult, Verdict, conclude

CELL = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")
PLACES = {"block": 12, "last": 9, "cut": 49, "token": -3}
SEEDED = SeededFault("eps_x10@all", "a test", Outcome.DIVERGED, ("rung=T4", "prompt_idx=3"), "engine", needs_bias=False)
TEN = [
    "swapped_pairing",
    "dropped_bias=k",
    "rope_off_by_one",
    "token_off=2",
    "eps_x10@all",
    "swap_gate_up",
    "k_head_permuted@blk.12",
    "norm_weight_1pct@blk.12",
    "bf16_truncation",
    "stale_trace=file",
]


def verdict(t4: Outcome = Outcome.DIVERGED, *, worst: float = 0.5, pins: Outcome = Outcome.PARITY) -> Verdict:
    """Return a verdict of two rungs; T4 has the limit 0.25."""
    note = "llama.cpp commit" if pins is not Outcome.PARITY else ""
    rungs = (
        RungResult(Rung.T0, pins, 5, 5, None, None, "pins", note=note),
        RungResult(Rung.T4, t4, 7, 7, worst, 0.25, "logits"),
    )
    outcome, causes = conclude(rungs, required=())
    found = [Divergence(Rung.T4, Kind.TOP1, 0.25, 3, 17, delta=worst, delta_id=7)] if t4 is Outcome.DIVERGED else []
    return Verdict(CELL, outcome, rungs, tuple(found), {}, provisional=False, unpinned=False, causes=causes)


def test_caught_as_it_has_to_be() -> None:
    kill = judge_kill(SEEDED, verdict(), 7, 1.5)
    assert (kill.problem, kill.survived, kill.word) == ("", False, "caught")
    assert (kill.outcome, kill.caught_by, kill.lowest) == (Outcome.DIVERGED, (Rung.T4,), "T4")
    assert (kill.worst_margin, kill.rows_changed) == (0.5, 7)
    assert "prompt_idx=3 token_idx=17 kind=TOP1" in kill.line


@pytest.mark.parametrize(
    ("seeded", "found", "rows", "named"),
    [
        (SEEDED, verdict(Outcome.PARITY, worst=0.1), 7, "survived: expected DIVERGED"),
        (SEEDED, verdict(Outcome.PARITY, worst=0.1), 0, "it was not seeded"),
        (replace(SEEDED, blind="known"), verdict(Outcome.PARITY, worst=0.1), 0, "it was not seeded"),
        (SEEDED, verdict(Outcome.PARITY, worst=0.1, pins=Outcome.DIVERGED), 7, "ended INCOMPLETE, expected DIVERGED"),
        (replace(SEEDED, outcome=Outcome.INCOMPLETE), verdict(), None, "ended DIVERGED, expected INCOMPLETE"),
        (replace(SEEDED, words=("prompt_idx=4",)), verdict(), 7, "no line says 'prompt_idx=4'"),
        (replace(SEEDED, words=("rung=T4", "kind=KL")), verdict(), 7, "no line says 'rung=T4' and 'kind=KL'"),
    ],
)
def test_other_endings_are_problems_and_say_why(
    seeded: SeededFault, found: Verdict, rows: int | None, named: str
) -> None:
    kill = judge_kill(seeded, found, rows, 0.0)
    assert named in kill.problem
    assert kill.word == ("SURVIVED" if found.outcome is Outcome.PARITY else "UNEXPECTED")


def test_known_blind_spot_is_a_survivor_and_no_problem() -> None:
    kill = judge_kill(replace(SEEDED, blind="T3 sees it"), verdict(Outcome.PARITY, worst=0.1), 7, 0.0)
    assert (kill.survived, kill.word, kill.problem, kill.blind) == (True, "SURVIVED", "", "T3 sees it")
    assert kill.worst_margin == 2.5


def test_worst_case_that_is_not_finite_is_outside_of_every_limit() -> None:
    assert judge_kill(SEEDED, verdict(worst=math.nan), 7, 0.0).worst_margin == 0.0


def test_the_list_names_every_fault_of_the_engine_and_the_ten_that_have_to_be_shown() -> None:
    listed = load_faults(CELL, PLACES)
    names = {seeded.fault.split("=")[0].split("@")[0] for seeded in listed if seeded.at == "engine"}
    assert names == {name.split("=")[0].split("@")[0].split("[")[0] for name in known_faults()}
    assert set(TEN) <= {seeded.fault for seeded in listed}
    assert {seeded.outcome for seeded in listed} == {Outcome.DIVERGED, Outcome.INCOMPLETE}


def test_blind_spots_belong_to_the_models_that_they_name(tmp_path: Path) -> None:
    table = tmp_path / "faults.toml"
    spot = '[[blind]]\nfault = "eps_x10@blk.*"\nmodel = "smollm2-135m*"\nquant = "*"\nreason = "too small"\n'
    table.write_text(fixture_path("faults.toml").read_text() + "\n" + spot)

    def blind(cell: CellId) -> set[str]:
        return {seeded.fault for seeded in load_faults(cell, PLACES, table) if seeded.blind}

    assert "eps_x10@blk.12" in blind(CELL)
    assert blind(structs.replace(CELL, model="synthetic-llama")) == set()
    assert not set(TEN) & blind(CELL)
    assert not any(seeded.blind for seeded in load_faults(CELL, PLACES))  # none is known today


FAULT = '[[fault]]\nname = "die"\nwhat = "x"\noutcome = "INCOMPLETE"\nwords = ["SIGABRT"]\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'fault' is missing"),
        ("fault = []\n", "lacks the expected end"),
        (FAULT + FAULT, "twice: die"),
        (FAULT.replace('["SIGABRT"]', "[]"), "without words: die"),
        (FAULT.replace("die", "drop_row={lost}"), "an unknown place"),
        (FAULT.replace("INCOMPLETE", "PARITY"), "'outcome' has an unknown value"),
        (FAULT + 'where = "T4"\n', "unknown key 'where'"),
    ],
)
def test_a_list_that_says_nothing_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "faults.toml"
    path.write_text('schema = "parity/faults/1"\n' + text)
    with pytest.raises(FixtureError, match=named):
        load_faults(CELL, PLACES, path)


def matrix(*kills: Kill) -> KillMatrix:
    return KillMatrix(
        CELL,
        7,
        (Rung.T0, Rung.T4),
        4.5,
        208,
        kills,
        {"dropped_bias=q": "no biases"},
        "class",
        "2026-11-23T00:00:00",
        3.0,
    )


def test_matrix_counts_names_and_comes_back(tmp_path: Path) -> None:
    caught = judge_kill(SEEDED, verdict(worst=math.inf), 7, 1.0)
    parity = verdict(Outcome.PARITY, worst=0.1)
    blind = judge_kill(replace(SEEDED, fault="a", blind="known"), parity, 7, 1.0)
    lost = judge_kill(replace(SEEDED, fault="b"), parity, 7, 1.0)
    record = matrix(caught, blind, lost)
    assert [kill.fault for kill in record.survivors] == ["a", "b"]
    assert [kill.fault for kill in record.problems] == ["b"]
    assert record.caught() == {Rung.T0: 0, Rung.T4: 1}
    path = save_record(record, tmp_path / "kills.json")
    assert load_record(path, KillMatrix) == record


def test_a_matrix_without_a_fault_is_no_record(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="kills"):
        save_record(matrix(), tmp_path / "kills.json")
