"""A night from plan to exit status, with notebooks that end in every way a notebook can; no engine is needed."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError, RecordError, UsageError
from parity_lib.base.names import Outcome
from parity_lib.engines.machine import host_target
from parity_lib.night.night import NightOptions, run_night
from parity_lib.records import store
from parity_lib.records.night_record import Night, load_night

from .conftest import ASSERT, FOREIGN, MODEL, PRODUCTION, RECORD, SETUP, SOUND, make_books, notebook, plan

pytestmark = pytest.mark.slow

DIVERGING = [SETUP.replace("bool(fault)", "True"), RECORD, ASSERT, "print('after the alarm')"]
LYING = ASSERT + "\nfrom parity_lib.base.errors import ParityFailure\nraise ParityFailure('no')"
# Name of a notebook -> its cells, and what the cause must name. Each would be green if one check were missing.
FALSE_GREENS = {
    "abort": (["import os\nos.abort()", *SOUND], "SIGABRT"),
    "kill": ([*SOUND, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"], "SIGKILL"),
    "exit": (["import sys\nsys.exit(0)", *SOUND], "sys.exit(0)"),
    "missing": (["1 + 1"], "no verdict record"),
    "late": ([*SOUND, "raise ValueError('late')"], "ValueError: late"),
    "other_cell": ([SETUP, RECORD.replace("CellId(model", "CellId('another'"), ASSERT], "of another cell"),
    "fault": ([SETUP.replace("fault, ''", "'eps', ''"), RECORD, ASSERT], "ran with fault 'eps'"),
    "dropped": ([SETUP.replace("5, fault, ''", "4, fault, ''"), RECORD, ASSERT], "compared 4 of 5"),
    "rung": ([SETUP, RECORD.replace("Rung.T0, Rung.T2,", "Rung.T0,"), ASSERT], "T2 weights: did not run"),
    "stale": (
        [SETUP, RECORD.replace("datetime.now(UTC)", "datetime(2026, 1, 1, tzinfo=UTC)"), ASSERT],
        "older than this run",
    ),
    "contradicting": (
        [
            SETUP.replace("bool(fault)", "True"),
            RECORD.replace("= conclude(", "= Outcome.PARITY, () and conclude("),
            "1",
        ],
        "RecordError",
    ),
    "damaged": ([SETUP, RECORD + "\nopen(out_dir + '/verdict.json', 'a').write('x')", ASSERT], "verdict.json"),
    "lying": ([SETUP, RECORD, LYING], "assert cell raised"),
    "slow": (["import time\ntime.sleep(600)", *SOUND], "wall-clock limit of 8 s"),
}


@pytest.fixture
def books(tmp_path: Path) -> Path:
    return make_books(tmp_path)


def night(books: Path, *cells: str, require_all: bool = False, only: str = "") -> tuple[Night, Path, str]:
    stream = io.StringIO()
    options = NightOptions(plan(books.parent, *cells), books.parent / "out", only, require_all, books)
    record, folder = run_night(options, stream)
    assert load_night(folder) == record  # what a reader finds later is what was decided
    return record, folder, stream.getvalue()


def test_night_at_parity_is_zero_and_leaves_everything(books: Path) -> None:
    record, folder, text = night(books, MODEL, PRODUCTION + "required = false\n")
    assert (record.outcome, record.exit_status) == (Outcome.PARITY, 0)
    assert folder.name.endswith(record.plan_sha256[:8])
    cell, not_run = record.cells
    assert cell.worst_margin == 2.0
    for name in (cell.html, cell.verdict, f"{cell.folder}/02_logits.ipynb", f"{cell.folder}/run.log", "index.html"):
        assert (folder / name).is_file(), name
    assert (folder / "night.log").read_text() == text
    assert (folder / "divergences.jsonl").read_text() == ""
    assert not list(folder.glob("cells/.*"))
    assert [entry.run_id for entry in store.load_history(folder.parent / "history.jsonl")] == [folder.name]
    assert (not_run.outcome, not_run.good, not_run.folder) == (Outcome.NOT_RUN, True, "")
    assert "not staged" in not_run.causes[0]
    assert any(line.startswith("NOT_RUN model=llama-3-8b quant=Q4_K_M") for line in text.splitlines())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Path, str]:
    """Return a night with a divergence, a caught control, an expected divergence and one that broke off later."""
    late = [SETUP.replace("bool(fault)", "True"), RECORD, "import os\nos.abort()"]
    swallowed = [*DIVERGING[:2], f"try:\n    {ASSERT}\nexcept Exception:\n    print('all is well')"]
    books = make_books(tmp_path_factory.mktemp("mixed"), diverging=DIVERGING, late=late, swallowed=swallowed)
    return night(
        books,
        MODEL + 'notebook = "diverging"\n',
        MODEL + 'control = true\nfault = "eps_x10@all"\n',
        MODEL.replace("Q8_0", "Q4_K_M") + 'notebook = "diverging"\nexpect = "diverged"\nat = "T4"\nreason = "known"\n',
        MODEL + 'notebook = "late"\n',
        MODEL + f'isa = "{FOREIGN}"\nrequired = false\n',
        MODEL + 'notebook = "swallowed"\n',
    )


def test_divergence_is_one_with_a_greppable_line_everywhere(mixed: tuple[Night, Path, str]) -> None:
    record, folder, text = mixed
    assert (record.outcome, record.exit_status) == (Outcome.DIVERGED, 1)
    line = next(line for line in text.splitlines() if line.startswith("DIVERGED model=synthetic-llama quant=Q8_0"))
    assert "prompt_idx=3 token_idx=17 kind=TOP1" in line
    assert line in (folder / "night.log").read_text().splitlines()
    assert store.load_divergences(folder / "divergences.jsonl")[0].greppable == line
    assert "after the alarm" in (folder / record.cells[0].folder / "diverging.ipynb").read_text()


def test_control_that_was_caught_is_good_and_its_lines_say_control(mixed: tuple[Night, Path, str]) -> None:
    record, _, text = mixed
    assert (record.cells[1].outcome, record.cells[1].good) == (Outcome.DIVERGED, True)
    assert any(line.startswith("CONTROL model=") and "prompt_idx=3" in line for line in text.splitlines())
    assert "red control 1/1 caught" in text


def test_expected_divergence_is_good(mixed: tuple[Night, Path, str]) -> None:
    assert (mixed[0].cells[2].outcome, mixed[0].cells[2].good) == (Outcome.DIVERGED, True)


def test_divergence_that_broke_off_later_stays_a_divergence(mixed: tuple[Night, Path, str]) -> None:
    record, _, text = mixed
    assert (record.cells[3].outcome, record.cells[3].good) == (Outcome.DIVERGED, False)
    assert any("SIGABRT" in cause for cause in record.cells[3].causes)
    assert any(line.startswith("INCOMPLETE") and "SIGABRT" in line for line in text.splitlines())


def test_notebook_that_swallows_the_alarm_is_no_parity(mixed: tuple[Night, Path, str]) -> None:
    cell = mixed[0].cells[5]
    assert (cell.outcome, cell.good) == (Outcome.DIVERGED, False)


def test_target_that_the_machine_lacks_is_not_run_and_is_named(mixed: tuple[Night, Path, str]) -> None:
    assert mixed[0].cells[4].outcome is Outcome.NOT_RUN
    assert f"cannot run the ISA target {FOREIGN}: llama.cpp: this CPU lacks" in mixed[0].cells[4].causes[0]


@pytest.fixture(scope="module")
def false_greens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Path, str]:
    books = make_books(tmp_path_factory.mktemp("false"), **{name: cells for name, (cells, _) in FALSE_GREENS.items()})
    limits = dict.fromkeys(FALSE_GREENS, "") | {"slow": "limit_s = 8\n"}
    return night(books, *(MODEL + f'notebook = "{name}"\n{limits[name]}' for name in FALSE_GREENS))


@pytest.mark.parametrize("name", FALSE_GREENS)
def test_no_way_to_a_false_green(false_greens: tuple[Night, Path, str], name: str) -> None:
    record, folder, text = false_greens
    named = FALSE_GREENS[name][1]
    cell = record.cells[list(FALSE_GREENS).index(name)]
    assert (cell.outcome, cell.good, record.exit_status) == (Outcome.INCOMPLETE, False, 3)
    assert any(named in cause for cause in cell.causes)
    lines = [line for line in text.splitlines() if line.startswith("INCOMPLETE model=synthetic-llama quant=Q8_0")]
    assert any(named in line for line in lines)
    assert (folder / cell.html).is_file()


def test_control_not_caught_is_three_and_a_finding_that_went_away_is_named(tmp_path: Path) -> None:
    seen = SETUP.replace("bool(fault)", "not control and quant == 'Q8_0'")
    books = make_books(tmp_path, blind=[seen, RECORD, ASSERT])
    blind = 'notebook = "blind"\n'
    gone = MODEL.replace("Q8_0", "Q4_K_M") + blind + 'expect = "diverged"\nat = "T4"\nreason = "a known finding"\n'
    record, _, text = night(books, MODEL + blind, MODEL + blind + 'control = true\nfault = "eps_x10@all"\n', gone)
    assert [cell.outcome for cell in record.cells] == [Outcome.DIVERGED, Outcome.INVALID, Outcome.PARITY]
    assert [cell.good for cell in record.cells] == [False, False, False]
    assert (record.outcome, record.exit_status) == (Outcome.INVALID, 3)
    assert any(line.startswith("INVALID model=") and "eps_x10@all" in line for line in text.splitlines())
    assert any(line.startswith("UNEXPECTED model=") and "a known finding" in line for line in text.splitlines())


def test_divergence_at_another_rung_than_the_planned_one_is_not_the_planned_one(tmp_path: Path) -> None:
    books = make_books(tmp_path, diverging=[SETUP.replace("bool(fault)", "True"), RECORD, ASSERT])
    known = MODEL + 'notebook = "diverging"\nexpect = "diverged"\nreason = "known"\nat = "T6"\n'
    record, _, text = night(books, known)
    assert (record.cells[0].outcome, record.cells[0].good) == (Outcome.DIVERGED, False)
    assert (record.outcome, record.exit_status) == (Outcome.DIVERGED, 1)
    [line] = [line for line in text.splitlines() if line.startswith("UNEXPECTED model=")]
    assert "a divergence was expected at T6 and not below, found at T4: known" in line


def test_required_cell_that_cannot_run_is_a_gap_and_so_is_any_with_require_all(books: Path) -> None:
    for cell, require_all in ((PRODUCTION, False), (PRODUCTION + "required = false\n", True)):
        record, _, text = night(books, cell, require_all=require_all)
        assert (record.cells[0].outcome, record.exit_status) == (Outcome.INCOMPLETE, 3)
        assert any(line.startswith("INCOMPLETE model=llama-3-8b") for line in text.splitlines())


def test_unproven_target_is_not_run_at_its_rung_and_a_gap_where_it_was_named(tmp_path: Path) -> None:
    not_run = (
        "\nrungs[5] = RungResult(Rung.T7, Outcome.NOT_RUN, 2, 1, None, None, 'proofs', note='unproven: no sampler')"
    )
    record_cell = RECORD.replace("\nworst =", f"{not_run}\nworst =")
    assert record_cell != RECORD
    books = make_books(tmp_path, unproven=[SETUP, record_cell, ASSERT])
    cell = MODEL + 'notebook = "unproven"\n'
    named = cell + f'isa = "{host_target()}"\n'
    ends = [night(books, cell), night(books, named), night(books, cell, require_all=True)]
    assert [record.cells[0].outcome for record, _, _ in ends] == [Outcome.PARITY, *[Outcome.INCOMPLETE] * 2]
    assert [record.exit_status for record, _, _ in ends] == [0, 3, 3]
    assert all("is not proven, as the plan requires: unproven: no sampler" in text for _, _, text in ends[1:])


def test_page_that_breaks_off_is_a_gap_and_still_drawn(books: Path) -> None:
    notebook(books / "06_night.ipynb", ["import os\nos.abort()"], 'run_dir: str = ""  # folder')
    record, folder, _ = night(books, MODEL)
    assert (record.cells[0].outcome, record.exit_status) == (Outcome.PARITY, 3)
    assert "SIGABRT" in " ".join(record.pages[-1].causes)
    assert "SIGABRT" in (folder / "index.html").read_text()


def test_night_whose_cells_are_all_not_run_is_not_at_parity_and_only_chooses_cells(books: Path) -> None:
    record, _, _ = night(books, MODEL, PRODUCTION + "required = false\n", only="llama-3*")
    assert [cell.cell.model for cell in record.cells] == ["llama-3-8b"]
    assert (record.outcome, record.exit_status) == (Outcome.INCOMPLETE, 3)
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
        (MODEL + 'expect = "diverged"\nreason = "known"\n', "its rung"),
        (MODEL + 'at = "T3"\n', "its rung"),
        (MODEL + 'expect = "diverged"\nreason = "known"\nat = "T9"\n', "'at' has an unknown value"),
        (MODEL + "control = true\n", "a red control has no 'expect'"),
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_finished(books: Path, number: signal.Signals) -> None:
    slow = "import time\nif quant == 'Q4_K_M':\n    time.sleep(600)"
    notebook(books / "02_logits.ipynb", [slow, *SOUND])
    out = books.parent / "out"
    code = (
        "import sys\nfrom pathlib import Path\nfrom parity_lib.night import plan\n"
        f"plan.NOTEBOOKS = Path({str(books)!r})\nfrom parity_lib.cli.app import main\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["nightly", "--plan", plan(books.parent, MODEL, MODEL.replace("Q8_0", "Q4_K_M")), "--out", str(out)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", code, *words], env=env, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(out.glob("*/cells/.*Q4_K_M*/02_logits.ipynb")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)
    process.send_signal(number)
    process.communicate(timeout=120)
    assert process.returncode == 3
    folder = next(path.parent for path in out.glob("*/night.json"))
    record = load_night(folder)
    assert record.interrupted
    assert [cell.outcome for cell in record.cells] == [Outcome.PARITY, Outcome.INCOMPLETE]
    assert (folder / record.cells[0].verdict).is_file()
    assert "interrupted" in record.cells[1].causes[0]
