"""The shape of the repository is a test: layers, doors, module sizes, what may stand in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "parity_lib").rglob("*.py"))


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = [ROOT / name for name in listing.stdout.decode().split("\0") if name]
    assert len(paths) > 20, "git lists the files of this repository"
    return [path for path in paths if path.is_file()]


def test_import_contracts_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_module_is_one_verb_long(path: Path) -> None:
    n_lines = len(path.read_text().splitlines())
    assert n_lines <= 400, f"{path.name} has {n_lines} lines: which second verb does it hold?"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_have_docstrings_and_functions_fit_on_a_screen(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert n_lines <= 80, f"{path.name}:{node.lineno} {node.name} has {n_lines} lines"
            if not node.name.startswith("_") and node in tree.body:
                assert ast.get_docstring(node), f"{path.name}:{node.lineno} {node.name} has no docstring"


def test_no_binary_and_nothing_large_is_in_the_repository() -> None:
    for path in tracked_files():
        size = path.stat().st_size
        assert size <= 1_000_000, f"{path.relative_to(ROOT)} has {size} bytes: make it, or fetch it by hash"
        assert path.suffix not in {".gguf", ".npz", ".so", ".bin", ".whl"}, path.relative_to(ROOT)


def test_no_path_of_a_machine_stands_in_a_file() -> None:
    forbidden = re.compile(r"(?<![\w.])/(?:work|home|Users)/\w+")
    for path in tracked_files():
        if path.suffix == ".lock" or path == Path(__file__):
            continue
        hit = forbidden.search(path.read_text(encoding="utf-8"))
        assert hit is None, f"{path.relative_to(ROOT)} names {hit.group(0) if hit else ''}"


def test_nothing_is_skipped_or_left_open() -> None:
    words = (
        "TO" + "DO",
        "FIX" + "ME",
        "pytest.mark." + "skip",
        "pytest." + "skip",
        "x" + "fail(",
        "unimplemented" + "!",
    )
    for path in tracked_files():
        if path.suffix in {".py", ".rs", ".ipynb"}:
            text = path.read_text(encoding="utf-8")
            for word in words:
                assert word not in text, f"{path.relative_to(ROOT)} holds {word}"


def test_environment_yml_installs_the_locked_packages() -> None:
    text = (ROOT / "environment.yml").read_text()
    pip_section = text.split("- pip:", 1)[1]
    entries = [line.strip() for line in pip_section.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert entries == ["- -r requirements.txt"]
    locked = (ROOT / "requirements.txt").read_text()
    for package in ("jupyterlab", "papermill", "numpy", "matplotlib", "gguf", "nbconvert", "scrapbook", "six"):
        assert re.search(rf"^{package}==\S+", locked, re.MULTILINE), package


def test_every_direct_dependency_is_locked_at_the_version_asked_for() -> None:
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    asked = re.findall(r"^([A-Za-z0-9._-]+)(?:==(\S+))?", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert len(asked) > 15
    for name, version in asked:
        assert name in locked, f"{name} is not in requirements.txt; next: make lock"
        assert not version or locked[name] == version, f"{name}: asked {version}, locked {locked[name]}"
