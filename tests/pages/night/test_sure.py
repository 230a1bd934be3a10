from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.names import Outcome
from parity_lib.pages.night.sure import sure_table
from parity_lib.records import store
from parity_lib.records.night_record import Night
from parity_lib.records.verdicts import Verdict


@pytest.fixture
def run_dir(night: Night, full_verdict: Callable[..., Verdict], tmp_path: Path) -> Path:
    """A night's folder with the record of its first cell."""
    record = night.cells[0]
    store.save_verdict(structs.replace(full_verdict(), cell=record.cell), tmp_path / record.folder)
    return tmp_path


def test_each_compared_cell_says_what_it_would_have_caught(night: Night, run_dir: Path) -> None:
    lines = sure_table(night, run_dir).plain.splitlines()
    first = lines[1]
    assert first.startswith("smollm2-135m Q4_1 ")
    assert "0.36 %" in first
    assert "0.95" in first
    assert "computed again, bit-equal" in first
    assert "bit-equal, 200 rows" in first


def test_a_record_that_cannot_be_read_is_no_assurance(night: Night, run_dir: Path) -> None:
    lines = sure_table(night, run_dir).plain.splitlines()
    assert "the record cannot be read" in lines[2]
    assert "llama-3-8b" not in "".join(lines[:6])


def test_controls_are_told_with_their_rung_and_a_missed_one_in_capitals(night: Night, tmp_path: Path) -> None:
    assert "Red controls: 1 of 1 caught. synthetic-llama Q8_0 with eps_x10@blk.12: caught at T4." in (
        sure_table(night, tmp_path).plain
    )
    missed = structs.replace(night.cells[-1], outcome=Outcome.INVALID, good=False)
    assert ": MISSED." in sure_table(structs.replace(night, cells=(missed,)), tmp_path).plain
    none = structs.replace(night, cells=night.cells[:1])
    assert "no evidence that it would catch a fault" in sure_table(none, tmp_path).plain


def test_what_is_not_measured_is_said_and_not_drawn(night: Night, tmp_path: Path) -> None:
    shown = sure_table(night, tmp_path)
    assert "Not measured by a nightly run: the false-positive rate" in shown.plain
    assert "<img" not in shown.html
