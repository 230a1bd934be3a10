"""What the shell, the user and the disk do to a run: it works, or ends with 3 and the cause by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity_lib.base.errors import SurroundingsError
from parity_lib.base.surroundings import cache_dir, clean_environment, settle
from parity_lib.cell.t0_pins import PACKAGES, package_checks
from parity_lib.cli.app import main
from parity_lib.judge.t0_pins import check_package
from parity_lib.night.job import NotebookJob, run_notebook

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
PARITY = [sys.executable, "-m", "parity_lib"]
RUN = ["run", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--threads", "1"]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def works(command: list[str]) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run([*command, "true"], check=False).returncode


def as_stranger() -> tuple[list[str], dict[str, str]]:
    """Return (words before a command, variables) with which a process has no home folder.

    A user without an entry in the password file, or, where no name space of users may be made, a HOME that is none.
    """
    unshare = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    return (unshare, {}) if works(unshare) else ([], {"HOME": ""})


def call(
    words: list[str], env: dict[str, str], *, before: list[str] | None = None, cwd: Path = ROOT
) -> tuple[int, str]:
    command = [*(before or []), *PARITY, *words]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def refusal(status: int, text: str, *words: str) -> None:
    """Assert that a run ended with 3 and one line that has these words and says what to do."""
    assert status == 3, text
    assert len(text.splitlines()) == 1, text
    for word in (*words, "expected ", "found ", "next: "):
        assert word in text
    assert "Traceback" not in text


def test_no_home_folder_and_an_unknown_user(tmp_path: Path) -> None:
    before, more = as_stranger()
    env = {key: value for key, value in ENV.items() if key not in ("HOME", "PARITY_CACHE")} | more
    refusal(*call(["models", "list"], env, before=before), "HOME: there is no home folder", "next: set PARITY_CACHE")
    status, text = call(["doctor"], env, before=before)
    assert status == 3
    assert "FAIL disk" in text
    status, text = call(["--help"], env, before=before)
    assert status == 0
    out = tmp_path / "out"
    status, text = call([*RUN, "--out", str(out)], env | {"PARITY_CACHE": str(tmp_path / "cache")}, before=before)
    assert (status, text.startswith("PARITY: ")) == (0, True), text


def test_a_home_that_is_no_folder_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PARITY_CACHE", raising=False)
    for home in ("", "home"):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(SurroundingsError, match=f"found HOME='{home}'; next: set PARITY_CACHE"):
            cache_dir()
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))
    settle()
    assert (cache_dir(), os.environ["HOME"]) == (tmp_path, str(tmp_path))


def test_a_relative_cache_counts_from_where_the_program_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once: what it starts runs in other folders. A program that did not settle it refuses it by name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARITY_CACHE", "cache")
    with pytest.raises(SurroundingsError, match=f"PARITY_CACHE: .*next: set PARITY_CACHE={tmp_path}/cache"):
        cache_dir()
    assert main(["models", "prepare", "synthetic-llama", "Q8_0"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert os.environ["PARITY_CACHE"] == str(tmp_path / "cache")
    monkeypatch.chdir("/")
    assert cache_dir() == tmp_path / "cache"


def foreign(folder: Path, *names: str) -> str:
    """Make packages that are of no use; return the folder they are in."""
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("__version__ = '0.1.0'\n")
    return str(folder)


def test_foreign_packages_first_on_the_path_and_in_the_working_folder(tmp_path: Path) -> None:
    """An old gguf, numpy, tokenizers and click, and switches for engines and Python that nobody asked for."""
    packages = foreign(tmp_path / "old", "gguf", "numpy", "tokenizers", "click")
    here = tmp_path / "here"
    foreign(here, "gguf", "numpy")
    env = ENV | {"PYTHONPATH": packages, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "x", "LD_PRELOAD": ""}
    words = [*RUN, "--out", str(tmp_path / "out")]
    done = subprocess.run([*PARITY, *words], env=env, cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "T0 pins     PARITY" in done.stdout


def test_what_the_workers_do_not_inherit_the_judge_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GGML_X", "OMP_NUM_THREADS", "PYTHONOPTIMIZE", "LD_PRELOAD"):
        monkeypatch.setenv(name, "1")
    assert not {"GGML_X", "OMP_NUM_THREADS", "PYTHONOPTIMIZE", "LD_PRELOAD"} & set(clean_environment())
    assert clean_environment()["PYTHONPATH"] == str(ROOT)


@pytest.mark.slow
def test_another_kernel_of_the_same_name_and_a_temporary_folder_with_spaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = {"argv": ["/bin/false"], "display_name": "other", "language": "python"}
    folder = tmp_path / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", foreign(tmp_path / "old", "gguf", "papermill"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    short = Path("/tmp") / f"a b {os.getpid()}"  # a socket's path has 107 characters at most
    short.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(short))
    code = (
        f"import os, sys, gguf\nassert sys.executable == {sys.executable!r}\nassert 'OMP_NUM_THREADS' not in os.environ"
    )
    cells = [("parameters", "x: str = ''"), ("", code), ("", f"assert not gguf.__file__.startswith({str(tmp_path)!r})")]
    made = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {"tags": [tag] if tag else []}, "source": source}
        | {"outputs": [], "execution_count": None}
        for n, (tag, source) in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(content))
    job = NotebookJob(tmp_path / "a.ipynb", tmp_path / "out.ipynb", {}, tmp_path / "run.log", 120)
    try:
        end = run_notebook(job)
        assert end.status == 0, (tmp_path / "run.log").read_text()
        assert list(short.iterdir()) == []
    finally:
        shutil.rmtree(short)


def test_versions_are_pins_of_rung_t0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checks = package_checks()
    assert [check.name for check in checks] == [f"package {name}" for name in PACKAGES]
    assert all(check.ok for check in checks), checks
    assert not check_package("gguf", "0.19.0", "0.18.0", own=True, origin="x").ok
    assert not check_package("gguf", "", "", own=True, origin="x").ok
    assert not check_package("gguf", "0.19.0", "", own=False, origin="").ok
    # A folder without metadata, first on the path: the installed version still is the pinned one.
    monkeypatch.syspath_prepend(foreign(tmp_path, "papermill"))
    monkeypatch.delitem(sys.modules, "papermill", raising=False)  # another test may have imported the real one
    (check,) = (check for check in package_checks() if not check.ok)
    assert check.name == "package papermill"
    assert f"another one imported from {tmp_path}" in check.found


def test_another_version_leaves_t0_incomplete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older distribution, metadata and all, found first; the run itself is sound otherwise."""
    (tmp_path / "old" / "papermill-2.4.0.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "papermill-2.4.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: papermill\nVersion: 2.4.0\n"
    )
    monkeypatch.syspath_prepend(foreign(tmp_path / "old", "papermill"))
    assert main([*RUN, "--out", str(tmp_path / "out")]) == 3
    text = capsys.readouterr().out
    assert "INCOMPLETE model=synthetic-llama" in text
    assert "T0 pins: package papermill: expected 2.7.0, found 2.4.0" in text


@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["unreadable", "not writable"])
def test_the_cache_of_another_user(mode: int, tmp_path: Path) -> None:
    """A folder of somebody else's. Who is not root closes one of their own."""
    cache = tmp_path / "theirs"
    cache.mkdir()
    before: list[str] = []
    if os.getuid() == 0:
        before = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]  # root without root's rights
        os.chown(cache, 54321, 54321)
    cache.chmod(mode if os.getuid() == 0 else mode & 0o555 if mode == 0o755 else 0)
    status, text = call([*RUN, "--out", str(tmp_path / "out")], ENV | {"PARITY_CACHE": str(cache)}, before=before)
    refusal(status, text, str(cache), "Permission denied", "PARITY_CACHE to a folder of your own")
    assert list(cache.iterdir()) == []
    cache.chmod(0o755)


def test_a_checkout_that_cannot_be_written(tmp_path: Path) -> None:
    """Reports have no place then; with --out a run works."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", mount, str(ROOT)]
    reports = ROOT / "reports"
    if not works(before):
        before = []
        reports.chmod(0o555)
    try:
        commands = [RUN, ["nightly", "--plan", "tiny"], ["trace", "synthetic-llama", "Q8_0"]]
        if before or os.getuid() != 0:
            for words in commands:
                refusal(*call(words, ENV, before=before), str(reports), "--out")
        status, text = call([*RUN, "--out", str(tmp_path / "out")], ENV, before=before)
        assert (status, text.startswith("PARITY: ")) == (0, True), text
    finally:
        reports.chmod(0o755)
