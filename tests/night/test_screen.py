"""What a night shows: plain lines where nobody watches, one moving line in a terminal, the log always whole."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from parity_lib.base.progress import CellProgress
from parity_lib.night import screen as night_screen
from parity_lib.night.screen import PROGRESS_FILE, Screen, read_progress

LINE = "DIVERGED model=m quant=Q8_0"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_stream_and_log_hold_the_same_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    screen = Screen(tmp_path / "night.log", 3, stream)
    screen.begin("a-cell")
    screen.tick("a-cell", tmp_path)
    screen.say(LINE)
    screen.note("only in the log")
    screen.close()
    assert stream.getvalue() == f"{LINE}\n"
    assert (tmp_path / "night.log").read_text() == f"{LINE}\nonly in the log\n"


def test_slow_cell_gets_a_plain_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_screen, "PLAIN_SECONDS", -1.0)
    stream = io.StringIO()
    screen = Screen(tmp_path / "night.log", 3, stream)
    (tmp_path / PROGRESS_FILE).write_text(json.dumps({"step": "burn scores", "done": 1200, "total": 1452}))
    for name in ("first", "second"):
        screen.begin(name)
    screen.tick("first", tmp_path)
    screen.end("first")
    screen.tick("second", tmp_path)
    screen.close()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("  0/3 first: burn scores 1,200 of 1,452, ")
    assert second.startswith("  1/3 second: burn scores 1,200 of 1,452, ")
    assert "\r" not in stream.getvalue()


def test_terminal_gets_a_bar_that_moves_and_leaves_no_trace(tmp_path: Path) -> None:
    stream = Terminal()
    screen = Screen(tmp_path / "night.log", 4, stream)
    screen.begin("a-cell")
    screen.tick("a-cell", tmp_path)
    assert "0/4 |" in stream.getvalue()
    assert "a-cell: starting" in stream.getvalue()
    screen.end("a-cell")
    screen.begin("b-cell")
    screen.tick("b-cell", tmp_path)
    assert "1/4 |" in stream.getvalue()
    screen.say(LINE)
    screen.close()
    assert [line.rpartition("\r")[2].strip() for line in stream.getvalue().splitlines()][-1:] in ([LINE], [""])
    assert (tmp_path / "night.log").read_text() == f"{LINE}\n"


def test_reader_that_went_away_does_not_end_the_night(tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    screen = Screen(tmp_path / "night.log", 1, Closed())
    screen.say(LINE)
    screen.close()
    assert (tmp_path / "night.log").read_text() == f"{LINE}\n"


def test_a_cell_reports_where_a_night_reads_and_prints_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PROGRESS_FILE).write_text("{}")
    assert read_progress(tmp_path) == "starting"
    CellProgress(tmp_path).step("llama.cpp generates")
    assert read_progress(tmp_path) == "llama.cpp generates"
    assert capsys.readouterr() == ("", "")


def test_a_cell_by_itself_prints_a_line_when_it_takes_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parity_lib.base.progress.LINE_SECONDS", 0.0)
    CellProgress(tmp_path).step("burn scores")(100, 1452)
    assert capsys.readouterr().err.startswith("burn scores: 100 of 1,452 rows")
    assert not (tmp_path / PROGRESS_FILE).exists()
