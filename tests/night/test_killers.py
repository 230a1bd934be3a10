"""What kills a run in the middle, done for real inside one night: each ends with its own status and its own words.

abort, SIGKILL, ``sys.exit(0)``, a missing verdict, one of another cell, a wall-clock limit and signals to the night are
in ``test_nightly.py``; a cell past its limit and a night that is killed are in ``test_notebook.py``.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import threading
from pathlib import Path

import pytest

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Outcome
from parity_lib.night.job import TOKEN
from parity_lib.night.night import NightOptions, run_night
from parity_lib.records.night_record import Night, load_night

from .conftest import ASSERT, MODEL, RECORD, SETUP, SOUND, make_books, plan

pytestmark = pytest.mark.slow

MARK = "PARITY_TEST_NIGHT"  # inherited by every process of this file's night, and by no other night's
DIVERGING = [SETUP.replace("bool(fault)", "True"), RECORD, ASSERT]
# A process in a session of its own, of which nobody but the token knows.
STRAY = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
STRAY += "start_new_session=True)"
DEAD_WORKER = """import os, signal
from pathlib import Path
from parity_lib.models.ensure import ensure
from parity_lib.engines.worker.client import Worker
from parity_lib.records.pins import load_pins
with Worker("oracle", {"path": str(ensure(model, quant, load_pins())), "n_threads": 1}) as engine:
    assert engine.call("n_vocab") > 0  # it did work
    os.kill(engine.pid, signal.SIGKILL)
    engine.call("score", [[1, 2, 3]], Path(out_dir) / "rows.f32")"""
NO_MEMORY = """import os, resource
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**28, resource.RLIM_INFINITY))
kept = bytearray(2**32)"""
SMALL_FILES = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))"
SMALL_PAGE = """import os, resource
from IPython.display import HTML, display
resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (2**17, 2**17))
display(HTML("<p>" + "x" * 2**18 + "</p>"))"""
STOP_PARENT = "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)"
KILL_PARENT = "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(30)"
HANGING = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()"
SWALLOWED = [*DIVERGING[:2], f"try:\n    {ASSERT}\nexcept Exception:\n    print('all is well')"]
# Name of a notebook -> its cells, what comes out, and what its line must name.
GAP, BAD = Outcome.INCOMPLETE, Outcome.DIVERGED
KILLERS = {
    "segfault": ([*SOUND, "import ctypes\nctypes.string_at(1)"], GAP, "SIGSEGV"),
    "no_memory": ([NO_MEMORY, *SOUND], GAP, "MemoryError"),
    "exit_early": (["import os\nos._exit(0)", *SOUND], GAP, "the kernel died: exit status 0"),
    "exit_late": ([*SOUND, "import os\nos._exit(0)", "1"], GAP, "the kernel died: exit status 0"),
    "dead_worker": ([DEAD_WORKER, *SOUND], GAP, "WorkerDied"),
    "no_papermill": ([*SOUND, STRAY, KILL_PARENT], GAP, "the notebook's process ended with killed by SIGKILL"),
    "stopped": ([*SOUND, STRAY, STOP_PARENT, "1"], GAP, "wall-clock limit of 12 s"),
    "full_disk": ([SMALL_FILES, *SOUND], GAP, "File too large"),
    "full_page": ([*SOUND, SMALL_PAGE, "1"], GAP, "File too large"),
    "nothing": ([], GAP, "no verdict record"),
    "seen_then_killed": ([*DIVERGING, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"], BAD, "SIGKILL"),
    "swallowed": (SWALLOWED, BAD, "kind=TOP1"),
}
LIMITS = dict.fromkeys(KILLERS, "") | {"stopped": "limit_s = 12\n"}


def processes(mark: str) -> list[str]:
    """Return the command lines of the processes that carry the night's mark and a notebook's token."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = (folder / "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() in names and any(name.startswith(f"{TOKEN}=".encode()) for name in names):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Path, str, list[str], int]:
    """Return a night of killers, its folder, what it said, the processes left, and how many were seen on the way."""
    folder, stream, mark = tmp_path_factory.mktemp("killers"), io.StringIO(), secrets.token_hex(8)
    hanging = {"hanging": [*SOUND, HANGING]}
    books = make_books(folder, **{name: cells for name, (cells, _, _) in KILLERS.items()}, **hanging)
    cells = [MODEL + f'notebook = "{name}"\n{LIMITS.get(name, "")}' for name in [*KILLERS, *hanging]]
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.3):
            most = max(most, len(processes(mark)))

    watcher = threading.Thread(target=watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, mark)
        watcher.start()
        try:
            night, run = run_night(NightOptions(plan(folder, *cells), folder / "out", notebooks=books, jobs=2), stream)
        finally:
            ended.set()
            watcher.join()
    return night, run, stream.getvalue(), processes(mark), most


@pytest.mark.parametrize("name", KILLERS)
def test_killer_ends_with_its_status_and_a_line_that_names_it(
    killed: tuple[Night, Path, str, list[str], int], name: str
) -> None:
    night, folder, text, _, _ = killed
    _, outcome, named = KILLERS[name]
    cell = night.cells[list(KILLERS).index(name)]
    assert (cell.outcome, cell.good) == (outcome, False)
    assert any(named in line for line in cell.lines), cell.lines
    assert set(cell.lines) <= set(text.splitlines())
    assert (outcome is BAD) == any(line.startswith("DIVERGED model=") for line in cell.lines)
    assert (folder / cell.html).is_file()


def test_divergence_decides_the_night_of_killers_and_what_it_said_is_kept(
    killed: tuple[Night, Path, str, list[str], int],
) -> None:
    night, folder, _, _, _ = killed
    assert (night.outcome, night.exit_status) == (Outcome.DIVERGED, 1)  # beside gaps, a divergence is the news
    assert load_night(folder) == night
    assert len(night.cells) == len(KILLERS) + 1


def test_no_process_is_left(killed: tuple[Night, Path, str, list[str], int]) -> None:
    *_, left, most = killed
    assert most >= 2, "the processes of a night carry the mark: papermill and its kernel"
    assert left == []


def test_kernel_that_hangs_after_its_last_cell_holds_nothing_up(
    killed: tuple[Night, Path, str, list[str], int],
) -> None:
    """Every cell answered and the record is sound: the comparison was made, and the kernel is ended from outside."""
    night, folder, _, _, _ = killed
    cell = night.cells[-1]
    assert (cell.outcome, cell.causes) == (Outcome.PARITY, ())
    assert (folder / cell.verdict).is_file()


def test_notebook_without_a_cell_is_refused_before_anything_runs(tmp_path: Path) -> None:
    books = make_books(tmp_path)
    path = books / "02_logits.ipynb"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"cells": []}), encoding="utf-8")
    with pytest.raises(UsageError, match="no parameters cell") as caught:
        run_night(NightOptions(plan(tmp_path, MODEL), tmp_path / "out", notebooks=books), io.StringIO())
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()
