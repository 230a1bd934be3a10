from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.errors import RecordError
from parity_lib.base.names import Outcome
from parity_lib.pages.kit.figures import Gallery
from parity_lib.pages.kit.fragment import Fragment
from parity_lib.pages.night.trend import _steps, trend
from parity_lib.records import store
from parity_lib.records.night_record import HISTORY, Night
from parity_lib.records.verdicts import Verdict


@pytest.fixture
def run_dir(night: Night, tmp_path: Path, make_verdict: Callable[..., Verdict]) -> Path:
    entries = []
    for day in range(19, 24):
        green, red = make_verdict(), make_verdict(Outcome.DIVERGED)
        verdict = red if day == 23 else green
        runs = {name: structs.replace(run, machine_class=night.machine_class) for name, run in verdict.runs.items()}
        run_id = f"202611{day}T020000Z-5e1c0a1b"
        tonight = structs.replace(verdict, runs=runs, created_at=f"2026-11-{day}T02:10:44+00:00")
        entries.append(store.history_entry(run_id, tonight))
        entries.append(store.history_entry(run_id, verdict))  # another class of machine
        entries.append(store.history_entry(run_id, structs.replace(tonight, control=True)))
    store.append_history(entries, tmp_path / HISTORY)
    return tmp_path / night.run_id


def test_each_cell_of_tonight_with_a_past_gets_a_picture(night: Night, run_dir: Path) -> None:
    shown = trend(night, run_dir)
    assert isinstance(shown, Gallery)
    (picture,) = shown.pictures
    assert picture.alt == (
        "smollm2-135m Q8_0 over 5 nightly runs: 1 diverged; this run DIVERGED, margin 0.0029. "
        "Steps: margin from 11-23, flips from 11-23."
    )
    assert shown.pictures[0].png.startswith(b"\x89PNG")
    assert night.machine_class in shown.caption


def test_other_machines_and_later_nights_are_no_past(night: Night, run_dir: Path) -> None:
    elsewhere = structs.replace(night, machine_class="another")
    early = structs.replace(night, run_id="20261119T020000Z-5e1c0a1b")
    for alone in (elsewhere, early):
        shown = trend(alone, run_dir)
        assert isinstance(shown, Fragment)
        assert shown.plain.startswith("No trend yet")


def test_no_history_is_said_and_a_damaged_one_is_an_error(night: Night, tmp_path: Path) -> None:
    assert str(trend(night, tmp_path / "run")).startswith("No trend yet")
    assert str(trend(None)).startswith("No trend yet")
    (tmp_path / HISTORY).write_text('{"schema": "parity/history/1"}\n')
    with pytest.raises(RecordError):
        trend(night, tmp_path / "run")


def test_a_step_is_marked_where_it_starts_and_one_odd_night_is_none() -> None:
    assert _steps("margin", [4.5, 4.5, 2.2, 2.2, 2.2]) == [2]
    assert _steps("margin", [4.5, 4.5, 2.2, 4.5, 4.5]) == []
    assert _steps("margin", [4.5, 4.6, 4.4, 4.5]) == []
    assert _steps("flips", [0, 0, 0, 3]) == [3]
    assert _steps("minutes", [1.0, 1.3, 1.1, 1.4]) == []
    assert _steps("KL", [None, 0.002, None, 0.004, 0.004]) == [3]
