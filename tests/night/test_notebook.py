"""Each way in which a notebook can end, done for real: a child process, a kernel, a signal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from parity_lib.base.errors import UsageError
from parity_lib.night.job import NotebookEnd, NotebookJob, run_notebook
from parity_lib.night.result import NotebookResult, inspect_run, repair

pytestmark = pytest.mark.slow

PARAMETERS = (
    'model: str = "a"  # an id\ndigest: str = "0"  # hex\nn: int = 1  # a number\nscale: float = 1.0  # a factor'
)
LIMIT_S = 120.0


def write_notebook(path: Path, cells: list[str], parameters: str | None = PARAMETERS, tag: str = "") -> Path:
    """Write a notebook: a title, the parameters cell, one code cell for each text; ``tag`` marks the last one."""
    found: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Test"}]
    sources = ([] if parameters is None else [parameters]) + cells
    for number, source in enumerate(sources):
        tags = ["parameters"] if source is parameters else [tag] if tag and number == len(sources) - 1 else []
        found.append(
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {"tags": tags},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
        )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def run(
    folder: Path,
    cells: list[str],
    *,
    parameters: dict[str, Any] | None = None,
    limit_s: float = LIMIT_S,
    cell_limit_s: int | None = None,
    tag: str = "",
) -> tuple[NotebookEnd, NotebookResult]:
    source = write_notebook(folder / "source.ipynb", cells, tag=tag)
    job = NotebookJob(source, folder / "out" / "run.ipynb", parameters or {}, folder / "run.log", limit_s, cell_limit_s)
    end = run_notebook(job)
    result = inspect_run(end)
    repair(end, result)
    return end, result


def outputs(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "run.ipynb").read_text())["cells"]


def page_text(folder: Path) -> str:
    return (folder / "out" / "run.ipynb").read_text()


def test_sound_run_has_no_cause_and_digests_stay_strings(tmp_path: Path) -> None:
    check = "assert (digest, n, scale) == ('85e1234', 3, 2) and type(digest) is str, (digest, n, scale)"
    end, result = run(tmp_path, [check, "print(model)"], parameters={"digest": "85e1234", "n": 3, "scale": 2})
    assert (end.status, end.timed_out, result.causes) == (0, False, ())
    assert result.ran == result.expected == 4  # with the cell that papermill injects


def test_paths_with_braces_and_spaces_are_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a {model} b"
    folder.mkdir()
    end, result = run(folder, ["1 + 1"])
    assert (end.status, result.causes) == (0, ())


def test_abort_names_the_signal_and_the_cell_and_leaves_the_stack(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["print('before')", "import os\nos.abort()", "print('after')"])
    assert end.status != 0
    assert any("SIGABRT" in cause and "import os" in cause for cause in result.causes)
    assert "os.abort()" in page_text(tmp_path)
    assert "Fatal Python error: Aborted" in end.crash
    assert "Nothing on this page is a result" in page_text(tmp_path)
    assert result.ran == result.expected - 2


def test_sigkill_of_the_kernel_is_named(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "1"])
    assert end.status != 0
    assert any("SIGKILL" in cause and "out of memory" in cause for cause in result.causes)


def test_segmentation_fault_is_named(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["import ctypes\nctypes.string_at(1)"])
    assert end.status != 0
    assert any("SIGSEGV" in cause for cause in result.causes)
    assert "string_at" in end.crash


def test_sys_exit_zero_is_not_an_end(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["import sys\nsys.exit(0)", "print('verdict')"])
    assert end.status == 0  # what papermill says
    assert any("sys.exit(0)" in cause for cause in result.causes)
    assert any("1 of 3 code cells did not finish, the first is cell 4" in cause for cause in result.causes)


def test_exception_is_named_with_its_cell(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["raise ValueError('boom <b>')", "1"])
    assert end.status != 0
    assert any("ValueError: boom <b>" in cause for cause in result.causes)


def test_assert_cell_lets_the_later_cells_run_and_is_no_cause(tmp_path: Path) -> None:
    raising = "class ParityFailure(Exception): pass\nraise ParityFailure('DIVERGED')"
    end, result = run(tmp_path, [raising], tag="raises-exception")
    assert end.status != 0
    assert result.asserted
    assert result.causes == ()


def test_another_error_in_the_assert_cell_is_a_cause(tmp_path: Path) -> None:
    _, result = run(tmp_path, ["verdict"], tag="raises-exception")
    assert not result.asserted
    assert any("NameError" in cause for cause in result.causes)


def test_cell_past_its_limit_is_named(tmp_path: Path) -> None:
    end, result = run(tmp_path, ["import time\ntime.sleep(600)", "1"], cell_limit_s=2)
    assert end.status != 0
    assert not end.timed_out
    assert any("cell's limit of 2 s" in cause for cause in result.causes)


def test_wall_clock_limit_ends_the_run_and_shows_where_it_stood(tmp_path: Path) -> None:
    stuck = "import time\ndef stuck():\n    time.sleep(600)\nstuck()"
    for limit_s in (8, 32, 128):  # on a busy machine a kernel alone may take longer than 8 s to start
        end, result = run(tmp_path, [stuck, "1"], limit_s=limit_s)
        assert end.timed_out
        assert limit_s <= end.seconds < 600
        assert any(f"wall-clock limit of {limit_s} s" in cause for cause in result.causes)
        if "in stuck" in end.crash:
            break
    assert "in stuck" in end.crash


def test_a_process_in_a_session_of_its_own_does_not_outlive_the_run(tmp_path: Path) -> None:
    start = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))"
    )
    run(tmp_path, [start])
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_sigterm_to_papermill_is_an_incomplete_run(tmp_path: Path) -> None:
    kill_parent = "import os, signal, time\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)"
    end, result = run(tmp_path, [kill_parent, "1"])
    assert end.status == 143
    assert any("143" in cause for cause in result.causes)
    assert any("did not finish" in cause for cause in result.causes)


def test_sigkill_of_papermill_is_an_incomplete_run_with_a_readable_notebook(tmp_path: Path) -> None:
    kill_parent = "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(30)"
    end, result = run(tmp_path, ["print('kept')", kill_parent, "1"])
    assert end.status == -9
    assert any("SIGKILL" in cause for cause in result.causes)
    assert any("kept" in str(cell.get("outputs")) for cell in outputs(tmp_path))


def test_the_run_ends_when_the_night_is_killed(tmp_path: Path) -> None:
    source = write_notebook(
        tmp_path / "source.ipynb",
        [f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"],
    )
    code = (
        "from pathlib import Path\nfrom parity_lib.night.job import NotebookJob, run_notebook\n"
        f"run_notebook(NotebookJob(Path({str(source)!r}), Path({str(tmp_path / 'o.ipynb')!r}), {{}}, "
        f"Path({str(tmp_path / 'log')!r}), 600))"
    )
    night = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    night.kill()
    night.wait()
    kernel = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_running(kernel))
    assert night.returncode == -9


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that ended and that nobody asked for its status does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.1)


def test_unknown_parameter_is_refused_before_a_kernel_starts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown parameter.*modle|modle.*unknown parameter") as caught:
        run(tmp_path, [f"open({str(tmp_path / 'ran')!r}, 'w')"], parameters={"modle": "x"})
    assert "model, digest, n, scale" in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "run.ipynb").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("digest", 851234), ("n", "3"), ("n", True), ("n", 2.0), ("scale", "1.0"), ("model", None)]
)
def test_parameter_of_another_type_is_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(UsageError, match="wrong type") as caught:
        run(tmp_path, ["1"], parameters={name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_notebook_without_parameters_cell_is_refused(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "source.ipynb", ["1"], parameters=None)
    with pytest.raises(UsageError, match="no parameters cell"):
        run_notebook(NotebookJob(source, tmp_path / "o.ipynb", {}, tmp_path / "log", LIMIT_S))


def test_missing_and_broken_notebook_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such notebook"):
        run_notebook(NotebookJob(tmp_path / "none.ipynb", tmp_path / "o.ipynb", {}, tmp_path / "log", LIMIT_S))
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        run_notebook(NotebookJob(tmp_path / "broken.ipynb", tmp_path / "o.ipynb", {}, tmp_path / "log", LIMIT_S))


def test_run_that_left_no_notebook_is_shown_from_its_source(tmp_path: Path) -> None:
    source = write_notebook(tmp_path / "source.ipynb", ["1"])
    (tmp_path / "log").write_text("first\nlast words\n")
    job = NotebookJob(source, tmp_path / "out.ipynb", {}, tmp_path / "log", LIMIT_S)
    end = NotebookEnd(job, -9, timed_out=False, seconds=1.0, crash="")
    result = inspect_run(end)
    repair(end, result)
    assert any("no executed notebook" in cause for cause in result.causes)
    assert result.ran == 0
    text = job.output.read_text()
    assert "last words" in text
    assert "did not finish" in text


def test_cell_without_reply_is_not_run_whatever_papermill_says(tmp_path: Path) -> None:
    """A notebook in which papermill marks each cell as completed, as it does after a dead kernel."""
    end, _ = run(tmp_path, ["1"])
    notebook = json.loads(end.job.output.read_text())
    del notebook["cells"][-1]["metadata"]["parity_reply"]
    assert notebook["cells"][-1]["metadata"]["papermill"]["status"] == "completed"
    end.job.output.write_text(json.dumps(notebook))
    result = inspect_run(end)
    assert any("did not finish" in cause for cause in result.causes)


def test_fewer_cells_than_the_source_is_a_cause(tmp_path: Path) -> None:
    end, _ = run(tmp_path, ["1", "2", "3"])
    notebook = json.loads(end.job.output.read_text())
    notebook["cells"] = notebook["cells"][:2]
    end.job.output.write_text(json.dumps(notebook))
    assert any("fewer code cells" in cause for cause in inspect_run(end).causes)
