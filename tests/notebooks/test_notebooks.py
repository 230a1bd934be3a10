"""Notebooks are thin: they choose, call and look. Everything else is in the library, where it is tested."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_CODE_LINES, MAX_CELLS, MAX_LINES_OF_A_CELL = 100, 23, 13
FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.While, ast.For, ast.With)
# The same words mean the same everywhere; a new one is added here, and to the design, on purpose.
PARAMETERS = {
    "01_tokens_and_weights": {"model", "quant", "isa", "stack", "compute", "prompts", "fault", "control", "out_dir"},
    "02_logits": {
        "model",
        "quant",
        "isa",
        "stack",
        "compute",
        "prompts",
        "fault",
        "control",
        "fresh",
        "full",
        "day",
        "require_isa",
        "out_dir",
    },
    "03_trace": {
        *(
            "model",
            "quant",
            "isa",
            "stack",
            "compute",
            "prompts",
            "prompt",
            "token",
            "fault",
            "broken",
            "against",
            "out_dir",
        ),
    },
    "06_night": {"run_dir"},
    "00_machine_and_pins": {"verify", "prove"},
}

every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def code(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells(path) if cell["cell_type"] == "code"]


def tags(cell: dict[str, Any]) -> list[str]:
    return list(cell["metadata"].get("tags", []))


def test_there_are_notebooks_and_each_is_known_here() -> None:
    assert {path.stem for path in PATHS} == set(PARAMETERS)


@every_notebook
def test_first_cell_is_a_title(path: Path) -> None:
    first, *rest = cells(path)
    assert first["cell_type"] == "markdown"
    assert re.match(r"# \S", first["source"])
    assert not any(re.match(r"# \S", cell["source"]) for cell in rest if cell["cell_type"] == "markdown")


@every_notebook
def test_one_parameters_cell_each_annotated_and_explained(path: Path) -> None:
    tagged = [cell for cell in code(path) if "parameters" in tags(cell)]
    assert len(tagged) == 1
    lines = tagged[0]["source"].splitlines()
    for line in lines:
        assert re.fullmatch(r"[a-z_]+: (str|int|float|bool) = \S.*  # \S.{8,}", line), line
    assert {line.partition(":")[0] for line in lines} == PARAMETERS[path.stem]
    assert code(path)[0] == tagged[0]


@every_notebook
def test_thin(path: Path) -> None:
    sources = [cell["source"] for cell in code(path)]
    n_lines = [len([line for line in source.splitlines() if line.strip()]) for source in sources]
    assert len(sources) <= MAX_CELLS
    assert sum(n_lines) <= MAX_CODE_LINES
    assert max(n_lines) <= MAX_LINES_OF_A_CELL
    for source in sources:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            assert not isinstance(node, FORBIDDEN), ast.unparse(node)
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            assert called not in ("print", "open", "exec", "eval"), ast.unparse(node)
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [getattr(node, "module", None) or node.names[0].name for node in imported]
        assert all(name.partition(".")[0] == "parity_lib" for name in names), names


@every_notebook
def test_stripped(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    for cell in code(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    ids = [cell["id"] for cell in cells(path)]
    assert len(ids) == len(set(ids))


@every_notebook
def test_ruff_clean(path: Path) -> None:
    ruff = str(Path(sys.executable).parent / "ruff")
    for command in ([ruff, "check", "--no-cache"], [ruff, "format", "--check", "--no-cache"]):
        done = subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_record_is_saved_before_the_report_and_the_report_before_the_assert_cell() -> None:
    found = code(ROOT / "notebooks" / "02_logits.ipynb")
    order = [next(i for i, cell in enumerate(found) if tag in tags(cell)) for tag in ("record", "assert")]
    (assert_cell,) = [cell for cell in found if "assert" in tags(cell)]
    assert "pl.save(" in found[order[0]]["source"]
    assert assert_cell["source"] == "verdict.require_parity()"
    assert "raises-exception" in tags(assert_cell)
    assert not any("raises-exception" in tags(cell) for cell in found if cell is not assert_cell)
    box = next(i for i, cell in enumerate(found) if "verdict_box" in cell["source"])
    assert order[0] < box < order[1] < len(found) - 1  # and cells come after the alarm
