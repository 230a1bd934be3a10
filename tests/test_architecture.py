"""The shape of the repository is a test: layers, doors, module sizes, what may stand in a file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "parity_lib").rglob("*.py"))


Function = ast.FunctionDef | ast.AsyncFunctionDef


def where(path: Path) -> str:
    """Return the path of a file in the repository."""
    return str(path.relative_to(ROOT))


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement inside of a node; expressions, most of a tree, hold none."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child
            yield from statements(child)


@cache
def functions() -> list[tuple[str, Function, bool]]:
    """Return the place of each function of the library, its node, and whether it stands at the top of its module."""
    found: list[tuple[str, Function, bool]] = []
    for path in LIBRARY:
        tree = ast.parse(path.read_text())
        nodes = [node for node in statements(tree) if isinstance(node, Function)]
        found += [(f"{where(path)}:{node.lineno} {node.name}", node, node in tree.body) for node in nodes]
    return found


def lines_of(node: Function) -> int:
    """Return the number of lines of a function."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


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


def test_modules_are_one_verb_long() -> None:
    assert len(LIBRARY) > 100
    lengths = {where(path): len(path.read_text().splitlines()) for path in LIBRARY}
    long = [f"{name} has {n_lines} lines" for name, n_lines in lengths.items() if n_lines > 400]
    assert long == [], "which second verb do they hold?"


def test_functions_fit_on_a_screen() -> None:
    found = [f"{place} has {lines_of(node)} lines" for place, node, _ in functions() if lines_of(node) > 80]
    assert found == []


def test_public_functions_have_docstrings() -> None:
    public = [(place, node) for place, node, on_top in functions() if on_top and not node.name.startswith("_")]
    assert len(public) > 200
    assert [place for place, node in public if not ast.get_docstring(node)] == []


def test_no_binary_and_nothing_large_is_in_the_repository() -> None:
    binary = {".gguf", ".npz", ".so", ".bin", ".whl"}
    sizes = {path: path.stat().st_size for path in tracked_files()}
    large = [f"{where(path)} has {size} bytes" for path, size in sizes.items() if size > 1_000_000]
    assert large == [], "make it, or fetch it by hash"
    assert [where(path) for path in sizes if path.suffix in binary] == []


def test_no_path_of_a_machine_stands_in_a_file() -> None:
    forbidden = re.compile(r"(?<![\w.])/(?:work|home|Users)/\w+")
    paths = [path for path in tracked_files() if path.suffix != ".lock" and path != Path(__file__)]
    hits = [(where(path), forbidden.findall(path.read_text(encoding="utf-8", errors="replace"))) for path in paths]
    assert [f"{name} names {found}" for name, found in hits if found] == []


def test_nothing_is_skipped_or_left_open() -> None:
    words = (
        "TO" + "DO",
        "FIX" + "ME",
        "pytest.mark." + "skip",
        "pytest." + "skip",
        "x" + "fail(",
        "unimplemented" + "!",
    )
    texts = {p: p.read_text(encoding="utf-8") for p in tracked_files() if p.suffix in {".py", ".rs", ".ipynb"}}
    assert [f"{where(path)} holds {word}" for path, text in texts.items() for word in words if word in text] == []


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
