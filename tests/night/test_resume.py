"""Nights that stop and go on, run side by side, meet in one folder, or are refused as a whole."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import FixtureError, UsageError
from parity_lib.base.files import hold_folder
from parity_lib.base.names import Outcome
from parity_lib.night import night as nightly
from parity_lib.night.night import NightOptions, run_night
from parity_lib.night.pool import share_cores
from parity_lib.records import store
from parity_lib.records.night_record import Night, load_night

from .conftest import ASSERT, FOREIGN, MODEL, PRODUCTION, RECORD, SETUP, SOUND, make_books, notebook, plan

pytestmark = pytest.mark.slow

SECOND = MODEL.replace("Q8_0", "Q4_K_M")


def night(books: Path, plan_file: str, **options: object) -> tuple[Night, Path, str]:
    stream = io.StringIO()
    found = NightOptions(plan=plan_file, out=books.parent / "out", notebooks=books, **options)  # type: ignore[arg-type]
    record, folder = run_night(found, stream)
    return record, folder, stream.getvalue()


def interrupted(books: Path, plan_file: str) -> Path:
    """Kill a night without warning while its second cell runs; return its folder."""
    out = books.parent / "out"
    code = (
        "import sys\nfrom pathlib import Path\nfrom parity_lib.night.night import NightOptions, run_night\n"
        f"run_night(NightOptions(plan={plan_file!r}, out=Path({str(out)!r}), notebooks=Path({str(books)!r})))"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/cells/.*Q4_K_M*/02_logits.ipynb")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)
    process.kill()
    process.communicate(timeout=60)
    (folder,) = out.glob("2*")
    return folder


def slow(folder: Path) -> str:
    """Return a cell that sleeps in the second model for as long as there is a file."""
    there = f"Path({str(folder / 'slow')!r}).exists()"
    return f"import time\nfrom pathlib import Path\nwhile quant == 'Q4_K_M' and {there}:\n    time.sleep(1)"


def killed_night(folder: Path) -> tuple[Path, str, Path]:
    """Kill a night of two cells in its second one; return its notebooks, its plan and its folder."""
    books = make_books(folder)
    notebook(books / "02_logits.ipynb", [slow(folder), *SOUND])
    plan_file = plan(folder, MODEL, SECOND)
    (folder / "slow").touch()
    return books, plan_file, interrupted(books, plan_file)


def test_a_killed_night_goes_on_with_what_it_had_finished(tmp_path: Path) -> None:
    books, plan_file, folder = killed_night(tmp_path)
    first = load_night(folder)
    assert (first.interrupted, [cell.outcome for cell in first.cells]) == (True, [Outcome.PARITY])
    written = (folder / first.cells[0].verdict).stat().st_mtime_ns
    (tmp_path / "slow").unlink()
    record, again, text = night(books, plan_file, resume="newest")
    assert again == folder
    assert (record.outcome, record.exit_status, record.interrupted) == (Outcome.PARITY, 0, False)
    assert [cell.kept for cell in record.cells] == [True, False]
    assert (folder / record.cells[0].verdict).stat().st_mtime_ns == written
    assert len(record.resumed) == 1
    assert "1 finished cells are kept" in text
    assert not list(folder.glob("cells/.*"))
    assert len(store.load_history(folder.parent / "history.jsonl")) == 2
    with pytest.raises(UsageError, match="no unfinished nightly run"):
        night(books, plan_file, resume="newest")
    with pytest.raises(UsageError, match="this nightly run is finished"):
        night(books, plan_file, resume=folder.name)


def test_a_night_killed_before_it_drew_a_page_draws_it_when_it_goes_on(tmp_path: Path) -> None:
    books, plan_file, folder = killed_night(tmp_path)
    first = load_night(folder)
    replace(first, cells=tuple(replace(cell, html="") for cell in first.cells)).save(folder)
    for page in folder.glob("cells/*/*.html"):
        page.unlink()
    (tmp_path / "slow").unlink()
    record, _, _ = night(books, plan_file, resume="newest")
    assert (record.outcome, [cell.kept for cell in record.cells]) == (Outcome.PARITY, [True, False])
    assert all((folder / cell.html).read_text().startswith("<!DOCTYPE html>") for cell in record.cells)


def test_a_changed_notebook_or_plan_resumes_nothing_stale(tmp_path: Path) -> None:
    books, plan_file, folder = killed_night(tmp_path)
    (tmp_path / "slow").unlink()
    notebook(books / "02_logits.ipynb", ["'another first cell'", *SOUND])
    record, _, _ = night(books, plan_file, resume=folder.name)
    assert [cell.kept for cell in record.cells] == [False, False]
    with pytest.raises(UsageError, match="no unfinished nightly run of this plan"):
        night(books, plan(tmp_path, SECOND), resume="newest")


def test_cells_side_by_side_keep_their_lines_whole_and_the_plans_order(tmp_path: Path) -> None:
    wait = "import time\ntime.sleep(3 if quant == 'Q8_0' else 0)"
    books = make_books(tmp_path, late=[wait, SETUP.replace("bool(fault)", "True"), RECORD, ASSERT])
    cells = [f'{model}notebook = "late"\n' for model in (MODEL, SECOND)]
    record, folder, text = night(books, plan(tmp_path, *cells), jobs=2)
    assert [cell.cell.quant for cell in record.cells] == ["Q8_0", "Q4_K_M"]
    assert (record.outcome, record.exit_status) == (Outcome.DIVERGED, 1)
    lines = text.splitlines()
    for quant in ("Q8_0", "Q4_K_M"):
        (at,) = [n for n, line in enumerate(lines) if line.startswith("DIVERGED model=") and f"quant={quant}" in line]
        assert f"synthetic-llama-{quant}-" in lines[at + 1]
        assert "DIVERGED" in lines[at + 1]
    assert len(store.load_divergences(folder / "divergences.jsonl")) == 2


@pytest.mark.parametrize(("jobs", "last"), [(1, "synthetic-qwen2"), (2, "synthetic-llama")])
def test_tonights_fresh_cell_begins_first_where_the_plan_has_cells_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, last: str
) -> None:
    books = make_books(tmp_path)
    began = tmp_path / "began.txt"
    notebook(
        books / "02_logits.ipynb", [f"with open({str(began)!r}, 'a') as file:\n    print(model, file=file)", *SOUND]
    )
    plan_file = plan(tmp_path, MODEL, SECOND, MODEL.replace("llama", "qwen2"), head=f"jobs = {jobs}\n")
    monkeypatch.setattr(nightly._Run, "_fresh", lambda _, cells: cells[-1])
    record, _, _ = night(books, plan_file)
    assert record.outcome is Outcome.PARITY
    assert [cell.cell.model for cell in record.cells] == ["synthetic-llama", "synthetic-llama", "synthetic-qwen2"]
    assert began.read_text().split()[-1] == last


def test_a_plan_without_jobs_is_refused(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    with pytest.raises(FixtureError, match="jobs"):
        night(books, plan(tmp_path, MODEL, head="jobs = 0\n"))
    assert not (tmp_path / "out").exists()


def test_no_core_is_in_two_slots() -> None:
    assert share_cores([0, 1, 2, 3, 4], 2) == [(0, 2, 4), (1, 3)]
    assert share_cores([0, 1], 1) == [()]
    assert len(share_cores([0, 1], 8)) == 2


def test_no_jobs_are_refused(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    with pytest.raises(UsageError, match="no cell can run with this many jobs"):
        night(books, plan(tmp_path, MODEL), jobs=0)
    assert not (tmp_path / "out").exists()


def test_two_runs_into_one_folder_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    plan_file = plan(tmp_path, MODEL)
    record, folder, _ = night(books, plan_file)
    before = (folder / "night.json").read_bytes()
    with hold_folder(folder, "wait for it"), pytest.raises(UsageError, match="still running"):
        night(books, plan_file, resume=folder.name)
    assert (folder / "night.json").read_bytes() == before
    assert record.exit_status == 0


def test_junit_has_a_case_for_each_cell_and_page(tmp_path: Path) -> None:
    books = make_books(tmp_path, gone=["1 + 1"])
    cells = [
        MODEL,
        SECOND + 'control = true\nfault = "eps_x10@all"\n',
        MODEL + 'fault = "swap_gate_up"\n',
        MODEL + 'notebook = "gone"\n',
        PRODUCTION + "required = false\n",
    ]
    _, folder, _ = night(books, plan(tmp_path, *cells))
    root = ElementTree.parse(folder / "junit.xml").getroot()  # noqa: S314 - written by the line above
    (suite,) = root.findall("testsuite")
    assert {key: root.attrib[key] for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = suite.findall("testcase")
    assert {case.attrib["classname"] for case in cases} == {"synthetic-llama", "llama-3-8b", "pages"}
    failure = cases[2].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert failure.text.startswith("DIVERGED model=synthetic-llama quant=Q8_0")
    skipped = cases[4].find("skipped")
    assert skipped is not None
    assert "not staged" in skipped.attrib["message"]
    assert "swap_gate_up" in (folder / "summary.md").read_text()


def test_a_plan_that_needs_everything_is_refused_with_one_list(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    path = Path(plan(tmp_path, MODEL, PRODUCTION, MODEL + f'isa = "{FOREIGN}"\n'))
    path.write_text(path.read_text().replace("headline =", "complete = true\nheadline =", 1))
    record, folder, text = night(books, str(path))
    assert (record.exit_status, [cell.folder for cell in record.cells]) == (3, ["", "", ""])
    refused = text[text.index("refused: ") :]
    assert refused.startswith("refused: 2 of 3 required cells cannot run on this machine")
    assert "llama-3-8b.Q4_K_M.gguf is not staged" in refused
    assert f"cannot run the ISA target {FOREIGN}" in refused
    assert "parity models stage llama-3-8b Q4_K_M FILE" in refused
    assert not list((folder / "cells").iterdir())


@pytest.mark.parametrize(
    ("fault", "words"),
    [("eps_x9@all", "did you mean eps_x10"), ("rope_base=wide", "unknown fault"), ("dropped_bias=w", "unknown fault")],
)
def test_an_unknown_fault_in_a_plan_is_a_usage_error(fault: str, words: str, tmp_path: Path) -> None:
    books = make_books(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        night(books, plan(tmp_path, MODEL + f'fault = "{fault}"\n'))
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_a_notebook_that_takes_other_parameters_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    notebook(books / "02_logits.ipynb", SOUND, 'modell: str = ""  # mistyped')
    with pytest.raises(UsageError, match="model"):
        night(books, plan(tmp_path, MODEL))
    assert not (tmp_path / "out").exists()
