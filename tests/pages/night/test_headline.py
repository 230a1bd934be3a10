from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.errors import RecordError
from parity_lib.pages.night import find as module
from parity_lib.pages.night.find import open_night
from parity_lib.pages.night.headline import NO_NIGHT, cost_table, gap_table, night_header, night_lines
from parity_lib.pages.night.matrix import night_matrix
from parity_lib.pages.night.sure import sure_table
from parity_lib.records.night_record import Night


def test_header_says_outcome_counts_not_run_control_and_what_next(night: Night) -> None:
    lines = night_header(night).plain.splitlines()
    assert lines[1] == "Nightly run 2026-11-23: DIVERGED"
    assert "crates.io burn, not the fork" in lines[2]
    assert lines[3] == "8 cells: 2 DIVERGED (1 as expected), 1 INCOMPLETE, 2 not run, 3 ok."
    assert lines[4].startswith("Not run: llama-3-8b Q4_K_M, llama-3-8b Q8_0 (the file is not staged")
    assert "Red control: 1 of 1 caught." in lines
    assert lines[-1].startswith("Next: read the page of smollm2-135m · Q8_0")
    assert '<a href="cells/smollm2-135m-Q8_0-avx512-crates-io-f32-0a1b2c3d/02_logits.html">smollm2-135m · Q8_0' in (
        night_header(night).html
    )


def test_gaps_have_all_their_reasons_failing_first(night: Night) -> None:
    plain = gap_table(night).plain
    assert plain.splitlines()[1].startswith("smollm2-135m Q8_0")
    assert "lowest broken rung T4 340x over" in plain
    assert "SIGABRT; cell 8 broke off: the kernel died" in plain
    assert plain.count("parity models stage llama-3-8b") == 2


def test_costs_sum_to_the_night(night: Night) -> None:
    lines = cost_table(night).plain.splitlines()
    assert "2 min 11 s" in lines[1]
    assert lines[-1].split()[-5:] == ["s", "100%", "–", "812.0", "MB"]
    shares = [int(word.rstrip("%")) for line in lines[1:-1] for word in line.split() if word.endswith("%")]
    assert 97 <= sum(shares) <= 103


def test_cells_side_by_side_take_more_seconds_than_the_night_and_leave_no_rest(night: Night) -> None:
    plain = cost_table(structs.replace(night, seconds=200.0)).plain
    assert "start-up" not in plain
    assert "the whole run" in plain


def test_a_night_that_is_not_of_one_piece_says_so(night: Night) -> None:
    kept = structs.replace(night.cells[0], kept=True)
    resumed = structs.replace(
        night, cells=(kept, *night.cells[1:]), resumed=("2026-11-23T04:15:00+00:00",), interrupted=True
    )
    marks = night_header(resumed).plain.splitlines()[2]
    assert marks.startswith("interrupted · resumed at 04:15 UTC, 1 cell kept from before · ")
    assert "· kept from before" in cost_table(resumed).plain


def test_what_programs_read_is_linked_where_it_is(night: Night, tmp_path: Path) -> None:
    assert "junit.xml" not in night_header(night, tmp_path).html
    (tmp_path / "junit.xml").write_text("<testsuites/>")
    assert '<a href="junit.xml">JUnit</a>' in night_header(night, tmp_path).html


def test_lines_of_all_cells_are_there(night: Night) -> None:
    assert len(night_lines(night)) == 3
    assert all(line.startswith("DIVERGED model=") for line in night_lines(night))


def test_without_a_night_the_pages_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUNS", tmp_path)
    assert open_night() is None
    assert night_header(None).plain == NO_NIGHT
    assert [f(None).plain for f in (night_matrix, gap_table, cost_table, sure_table)] == [""] * 4
    assert night_lines(None) == []


def test_the_newest_night_is_opened_and_a_named_one_must_exist(
    night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUNS", tmp_path)
    for run_id in ("20261121T020000Z-5e1c0a1b", "20261123T020000Z-5e1c0a1b"):
        (tmp_path / run_id).mkdir()
        structs.replace(night, run_id=run_id).save(tmp_path / run_id)
    newest = open_night()
    assert newest is not None
    assert newest.run_id == "20261123T020000Z-5e1c0a1b"
    with pytest.raises(RecordError, match="cannot be read"):
        open_night(tmp_path / "no-such-run")
