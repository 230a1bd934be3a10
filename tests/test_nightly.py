"""A night from plan to exit status, with notebooks that end in every way a notebook can; no engine is needed."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from parity_lib import store
from parity_lib.errors import FixtureError, RecordError, UsageError
from parity_lib.names import Outcome
from parity_lib.night_record import Night, load_night
from parity_lib.nightly import NightOptions, run_night

MODEL = 'model = "synthetic-llama"\nquant = "Q8_0"\n'
PARAMETERS = """model: str = ""  # id
quant: str = ""  # quant
isa: str = ""  # leg
stack: str = ""  # stack
compute: str = ""  # policy
prompts: str = ""  # file
fault: str = ""  # fault
control: bool = False  # control
out_dir: str = ""  # folder"""
# A record as a real cell leaves it; ``outcome`` is set by the line before it.
RECORD = """from parity_lib import store
from parity_lib.names import Kind, Outcome, Rung
from parity_lib.traces import RunInfo
from parity_lib.verdicts import CellId, Divergence, RungResult, Verdict, conclude
run = RunInfo("burn", "0", "0", {}, "m.gguf", "0" * 64, {}, isa, "unproven", {}, 1, "F32", compute, stack, "0" * 64,
              "class", "host", seeded or None, "2026-11-23T00:00:00+00:00", 1.0, 1000)
bad = [Divergence(Rung.T4, Kind.TOP1, 0.5, 3, 17, delta=0.75, delta_id=7)] if broken else []
ok = Outcome.PARITY
rungs = [RungResult(rung, ok, 5, 5, None, None, "pins") for rung in (Rung.T0, Rung.T2)]
worst = 0.75 if broken else 0.25
rungs += [RungResult(Rung.T4, Outcome.DIVERGED if broken else ok, 5, compared, worst, 0.5, "logits", note=note)]
outcome, causes = conclude(rungs, required=(Rung.T4,))
verdict = Verdict(CellId(model, quant, isa, stack, compute), outcome, tuple(rungs), tuple(bad), {"candidate": run},
                  False, False, causes, control=control, created_at="2026-11-23T00:00:00+00:00")
store.save_verdict(verdict, out_dir)"""
SETUP = "broken, compared, seeded, note = bool(fault), 5, fault, ''"
ASSERT = "verdict.require_parity()"
SOUND = [SETUP, RECORD, ASSERT]


def notebook(path: Path, cells: list[str], parameters: str = PARAMETERS) -> None:
    found: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Test"}]
    for number, source in enumerate([parameters, *cells]):
        tags = ["parameters"] if number == 0 else ["raises-exception"] if source == ASSERT else []
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source}
        found.append(cell | {"outputs": [], "execution_count": None})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Return a folder with the three notebooks of a night, all sound."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook(folder / "02_logits.ipynb", SOUND)
    notebook(folder / "00_machine_and_pins.ipynb", ["1"], 'x: str = ""  # nothing')
    read = "from parity_lib.night_record import load_night\nprint(load_night(run_dir).outcome)"
    notebook(folder / "06_night.ipynb", [read], 'run_dir: str = ""  # folder')
    return folder


def plan(folder: Path, *cells: str) -> str:
    path = folder / "plan.toml"
    head = 'schema = "parity/plan/1"\ntitle = "a test"\nheadline = "crates.io burn"\n'
    path.write_text(head + "".join(f"[[cell]]\n{cell}" for cell in cells), encoding="utf-8")
    return str(path)


def night(books: Path, *cells: str, require_all: bool = False, only: str = "") -> tuple[Night, Path, str]:
    stream = io.StringIO()
    out = books.parent / "out"
    options = NightOptions(plan(books.parent, *cells), out, only, require_all, books)
    record, folder = run_night(options, stream)
    assert load_night(folder) == record  # what a reader finds later is what was decided
    return record, folder, stream.getvalue()


def test_night_at_parity_is_zero_and_leaves_everything(books: Path) -> None:
    record, folder, text = night(books, MODEL)
    assert (record.outcome, record.exit_status) == (Outcome.PARITY, 0)
    assert folder.name.endswith(record.plan_sha256[:8])
    cell = record.cells[0]
    assert cell.worst_margin == 2.0
    for name in (cell.html, cell.verdict, f"{cell.folder}/02_logits.ipynb", f"{cell.folder}/run.log", "index.html"):
        assert (folder / name).is_file(), name
    assert (folder / "night.log").read_text() == text
    assert (folder / "divergences.jsonl").read_text() == ""
    assert not list(folder.glob("cells/.*"))


def test_divergence_is_one_with_a_greppable_line_everywhere(books: Path) -> None:
    notebook(books / "02_logits.ipynb", [SETUP.replace("bool(fault)", "True"), RECORD, ASSERT, "print('drill-down')"])
    record, folder, text = night(books, MODEL)
    assert (record.outcome, record.exit_status) == (Outcome.DIVERGED, 1)
    line = next(line for line in text.splitlines() if line.startswith("DIVERGED model=synthetic-llama quant=Q8_0"))
    assert "prompt_idx=3 token_idx=17 kind=TOP1" in line
    assert line in (folder / "night.log").read_text().splitlines()
    assert store.load_divergences(folder / "divergences.jsonl")[0]["line"] == line
    assert "drill-down" in (folder / record.cells[0].folder / "02_logits.ipynb").read_text()


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (["import os\nos.abort()", *SOUND], "SIGABRT"),
        ([*SOUND, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"], "SIGKILL"),
        (["import sys\nsys.exit(0)", *SOUND], "sys.exit(0)"),
        (["1 + 1"], "no verdict record"),
        ([*SOUND, "raise ValueError('late')"], "ValueError: late"),
        ([SETUP, RECORD.replace("CellId(model", "CellId('another'"), ASSERT], "of another cell"),
        ([SETUP.replace("fault, ''", "'eps', ''"), RECORD, ASSERT], "ran with fault 'eps'"),
        ([SETUP.replace("5, fault, ''", "4, fault, ''"), RECORD, ASSERT], "compared 4 of 5"),
        ([SETUP, RECORD.replace("(Rung.T0, Rung.T2)", "(Rung.T0,)"), ASSERT], "T2 weights: did not run"),
        ([SETUP, RECORD + "\nopen(out_dir + '/verdict.json', 'a').write('x')", ASSERT], "verdict.json"),
    ],
    ids=["abort", "kill", "exit", "missing", "late", "other-cell", "fault", "dropped", "rung", "damaged"],
)
def test_no_way_to_a_false_green(books: Path, cells: list[str], named: str) -> None:
    notebook(books / "02_logits.ipynb", cells)
    record, folder, text = night(books, MODEL)
    assert (record.outcome, record.exit_status) == (Outcome.INCOMPLETE, 3)
    lines = [line for line in text.splitlines() if line.startswith("INCOMPLETE model=synthetic-llama quant=Q8_0")]
    assert any(named in line for line in lines), text
    assert any(named in cause for cause in record.cells[0].causes)
    assert (folder / record.cells[0].html).is_file()


def test_parity_in_the_record_does_not_survive_a_raising_assert_cell(books: Path) -> None:
    lie = ASSERT + "\nfrom parity_lib.errors import ParityFailure\nraise ParityFailure('no')"
    notebook(books / "02_logits.ipynb", [SETUP, RECORD, lie])
    book = json.loads((books / "02_logits.ipynb").read_text())
    book["cells"][-1]["metadata"]["tags"] = ["raises-exception"]
    (books / "02_logits.ipynb").write_text(json.dumps(book))
    record, _, _ = night(books, MODEL)
    assert record.exit_status == 3
    assert any("assert cell raised" in cause for cause in record.cells[0].causes)


def test_wall_clock_limit_of_a_cell(books: Path) -> None:
    notebook(books / "02_logits.ipynb", ["import time\ntime.sleep(600)", *SOUND])
    record, _, _ = night(books, MODEL + "limit_s = 8\n")
    assert record.exit_status == 3
    assert any("wall-clock limit of 8 s" in cause for cause in record.cells[0].causes)


def test_divergence_that_broke_off_later_stays_a_divergence(books: Path) -> None:
    notebook(books / "02_logits.ipynb", [SETUP.replace("bool(fault)", "True"), RECORD, "import os\nos.abort()"])
    record, _, text = night(books, MODEL)
    assert (record.outcome, record.exit_status) == (Outcome.DIVERGED, 1)
    assert any("SIGABRT" in cause for cause in record.cells[0].causes)
    assert any(line.startswith("INCOMPLETE") and "SIGABRT" in line for line in text.splitlines())


def test_expected_divergence_is_zero_and_its_end_is_one(books: Path) -> None:
    expected = MODEL + 'expect = "diverged"\nreason = "a known finding"\n'
    record, _, _ = night(books, expected)
    assert (record.cells[0].outcome, record.exit_status) == (Outcome.PARITY, 1)
    assert "a known finding" in record.cells[0].causes[0]
    notebook(books / "02_logits.ipynb", [SETUP.replace("bool(fault)", "True"), RECORD, ASSERT])
    record, _, _ = night(books, expected)
    assert (record.cells[0].outcome, record.cells[0].good, record.exit_status) == (Outcome.DIVERGED, True, 0)


def test_control_caught_is_zero_and_its_lines_say_control(books: Path) -> None:
    record, _, text = night(books, MODEL, MODEL + 'control = true\nfault = "eps x10"\n')
    assert (record.exit_status, [cell.good for cell in record.cells]) == (0, [True, True])
    assert any(line.startswith("CONTROL model=") and "prompt_idx=3" in line for line in text.splitlines())
    assert not any(line.startswith("DIVERGED") for line in text.splitlines())
    assert "red control 1/1 caught" in text


def test_control_not_caught_is_three_whatever_else_happened(books: Path) -> None:
    notebook(books / "02_logits.ipynb", [SETUP.replace("bool(fault)", "not control"), RECORD, ASSERT])
    record, _, text = night(books, MODEL, MODEL + 'control = true\nfault = "eps x10"\n')
    assert [cell.outcome for cell in record.cells] == [Outcome.DIVERGED, Outcome.INVALID]
    assert (record.outcome, record.exit_status) == (Outcome.INVALID, 3)
    assert any(line.startswith("INVALID model=") and "eps x10" in line for line in text.splitlines())


def test_hole_has_a_reason_and_a_required_one_is_a_gap(books: Path) -> None:
    production = 'model = "llama-3-8b"\nquant = "Q4_K_M"\n'
    record, _, text = night(books, MODEL, production + "required = false\n")
    assert ([cell.outcome for cell in record.cells], record.exit_status) == ([Outcome.PARITY, Outcome.HOLE], 0)
    assert "not staged" in record.cells[1].causes[0]
    assert any(line.startswith("HOLE model=llama-3-8b") for line in text.splitlines())
    assert night(books, MODEL, production + "required = false\n", require_all=True)[0].exit_status == 3
    assert night(books, MODEL, production)[0].exit_status == 3


def test_leg_that_the_machine_lacks_is_a_hole_that_names_the_flags(books: Path) -> None:
    foreign = "neon" if os.uname().machine == "x86_64" else "avx2"
    record, _, _ = night(books, MODEL, MODEL + f'isa = "{foreign}"\nrequired = false\n')
    assert record.cells[1].outcome is Outcome.HOLE
    assert "cannot run the leg" in record.cells[1].causes[0]


def test_night_of_holes_alone_is_no_parity(books: Path) -> None:
    record, _, _ = night(books, 'model = "llama-3-8b"\nquant = "Q4_K_M"\nrequired = false\n')
    assert (record.outcome, record.exit_status) == (Outcome.INCOMPLETE, 3)


def test_page_that_breaks_off_is_a_gap_and_still_drawn(books: Path) -> None:
    notebook(books / "06_night.ipynb", ["import os\nos.abort()"], 'run_dir: str = ""  # folder')
    record, folder, _ = night(books, MODEL)
    assert (record.cells[0].outcome, record.exit_status) == (Outcome.PARITY, 3)
    assert "SIGABRT" in " ".join(record.pages[-1].causes)
    assert "SIGABRT" in (folder / "index.html").read_text()


def test_only_chooses_cells_and_refuses_what_matches_none(books: Path) -> None:
    record, _, _ = night(books, MODEL, MODEL.replace("Q8_0", "Q4_K_M"), only="Q4_K_M")
    assert [cell.cell.quant for cell in record.cells] == ["Q4_K_M"]
    with pytest.raises(UsageError, match="no cell of the plan"):
        night(books, MODEL, only="Q3")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "plan is empty"),
        (MODEL.replace("synthetic-llama", "sintetic-llama"), "did you mean synthetic-llama"),
        (MODEL.replace("Q8_0", "Q9_0"), "unknown quant"),
        (MODEL + 'stack = "overlai"\n', "unknown stack"),
        (MODEL + 'isa = "sse"\n', "'isa' has an unknown value"),
        (MODEL + 'notebook = "09_missing"\n', "names a notebook that is not there"),
        (MODEL + 'expect = "diverged"\n', "reason"),
        (MODEL + "control = true\n", "a red control seeds a fault"),
        (MODEL + "limits = 3\n", "unknown key 'limits'"),
        (MODEL + "[[cell]]\n" + MODEL, "twice"),
    ],
)
def test_bad_plan_is_refused_before_anything_runs(books: Path, cell: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        night(books, *([cell] if cell else []))
    assert caught.value.exit_status == 2
    assert isinstance(caught.value, FixtureError | UsageError)
    assert not (books.parent / "out").exists()


def test_output_folder_that_cannot_be_made(books: Path) -> None:
    (books.parent / "out").write_text("a file")
    with pytest.raises(RecordError, match="cannot be made"):
        night(books, MODEL)


def test_interrupt_keeps_what_was_finished(books: Path) -> None:
    slow = "import time\nif quant == 'Q4_K_M':\n    time.sleep(600)"
    notebook(books / "02_logits.ipynb", [slow, *SOUND])
    out = books.parent / "out"
    code = (
        "import sys\nfrom pathlib import Path\nfrom parity_lib.nightly import NightOptions, run_night\n"
        f"options = NightOptions({plan(books.parent, MODEL, MODEL.replace('Q8_0', 'Q4_K_M'))!r}, Path({str(out)!r}), "
        f"notebooks=Path({str(books)!r}))\nsys.exit(run_night(options)[0].exit_status)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/cells/.*Q4_K_M*/02_logits.ipynb")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 3
    record = load_night(next(out.iterdir()))
    assert record.interrupted
    assert [cell.outcome for cell in record.cells] == [Outcome.PARITY, Outcome.INCOMPLETE]
    assert (next(out.iterdir()) / record.cells[0].verdict).is_file()
    assert "interrupted" in record.cells[1].causes[0]
