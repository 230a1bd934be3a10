"""The guard of the markers, in a run of its own: what a test or its fixture starts, its markers have to name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.marks import QUICK

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import subprocess, sys, types
import pytest
from tests.marks import NOTEBOOK, SERVER

def start(name):
    subprocess.Popen([sys.executable, "-c", "", name]).wait()

@pytest.fixture(scope="module")
def shared():
    start(SERVER)

@pytest.mark.engine
def test_engine_of_a_fixture_marked(shared): pass
def test_engine_of_a_fixture(shared): pass
@pytest.mark.slow
def test_slow_may_start_an_engine(): start(SERVER)
def test_engine(): start(SERVER)
def test_notebook(): start(NOTEBOOK)
@pytest.mark.engine
def test_notebook_as_an_engine(): start(NOTEBOOK)
@pytest.mark.slow
def test_notebook_marked(): start(NOTEBOOK)
def test_library_in_this_process(): sys.modules["burn_gguf"] = types.ModuleType("burn_gguf")
def test_other_process(): start("other")
def test_nothing(): pass
"""
WRONG = {
    "test_engine_of_a_fixture": "engine",
    "test_engine": "engine",
    "test_notebook": "slow",
    "test_notebook_as_an_engine": "slow",
    "test_library_in_this_process": "engine",
}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Return a run of pytest with the guard."""
    env = os.environ | {"COLUMNS": "200"}  # room for the whole line
    command = [sys.executable, "-m", "pytest", "-p", "tests.marks", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    return subprocess.run([*command, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def test_a_quick_run_imports_no_file_in_which_every_test_has_a_marker(tmp_path: Path) -> None:
    marked = "import pytest\npytestmark = pytest.mark.slow\nraise RuntimeError('imported')\n"
    (tmp_path / "test_marked.py").write_text(marked)
    (tmp_path / "test_quick.py").write_text("def test_nothing(): pass\n")
    assert " 1 passed" in run("-m", QUICK, str(tmp_path)).stdout
    assert "RuntimeError: imported" in run(str(tmp_path)).stdout
    assert f'QUICK      := -m "{QUICK}"' in (ROOT / "Makefile").read_text()


def test_a_test_that_starts_what_it_does_not_name_fails(tmp_path: Path) -> None:
    path = tmp_path / "test_made.py"
    path.write_text(TESTS)
    done = run(str(path))
    named = re.findall(r"^FAILED \S*::(\w+) - .*add pytest\.mark\.(\w+)$", done.stdout, re.MULTILINE)
    assert dict(named) == WRONG, done.stdout + done.stderr
    assert len(named) == len(WRONG)
    assert f"{len(WRONG)} failed, {TESTS.count('def test_') - len(WRONG)} passed" in done.stdout
