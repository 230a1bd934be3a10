"""Each notebook runs by itself, from any folder, with its defaults; its page opens with what it found."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.kit import export as html
from parity_lib.pages.kit.scraps import read_records
from parity_lib.records import store
from parity_lib.records.prompts import load_prompts

pytestmark = pytest.mark.slow

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def execute(name: str, folder: Path, **parameters: object) -> tuple[Path, str]:
    """Run a notebook as JupyterLab does, with the folder as working directory; return its path and its page."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    client = NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(folder)}})
    with contextlib.suppress(CellExecutionError):  # the page is to say so, as after a night
        client.execute()
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path, html.export(path, folder / f"{name}.html").read_text(encoding="utf-8")


def test_machine_and_pins_runs_with_its_defaults(tmp_path: Path) -> None:
    _, page = execute("00_machine_and_pins", tmp_path)
    assert "default plan" in page[: page.index("<h2")]
    assert "Which burn: " in page
    assert "INCOMPLETE" not in page


def test_night_runs_with_its_defaults(tmp_path: Path) -> None:
    _, page = execute("06_night", tmp_path)
    assert "<h1>Nightly run</h1>" in page
    assert "Nightly run 2" in page or "No nightly run yet. Next: make nightly" in page


def test_a_sound_cell_is_green_and_its_record_says_so(tmp_path: Path) -> None:
    path, page = execute("02_logits", tmp_path, out_dir=str(tmp_path / "cell"))
    verdict = store.load_verdict(tmp_path / "cell")
    assert verdict.outcome is Outcome.PARITY, verdict.lines()
    twin = verdict.rung(Rung.T4)
    assert twin is not None
    assert f"PARITY at {twin.compared:,} of" in page[: page.index("<h2")]
    assert "would have caught a flip rate of" in page
    assert "Gate: distance over llama.cpp" in page
    assert read_records(path)["outcome"] == "PARITY"
    assert len(page.encode()) <= html.MAX_BYTES
    assert page.count('alt="Prompt ') == len(load_prompts().prompts)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["02_logits.html", "02_logits.ipynb", "cell"]


def test_a_seeded_fault_fails_the_assert_cell_after_the_record_and_the_details_still_run(tmp_path: Path) -> None:
    path, page = execute("02_logits", tmp_path, out_dir=str(tmp_path / "cell"), fault="eps_x10@all")
    verdict = store.load_verdict(tmp_path / "cell")
    assert verdict.outcome is Outcome.DIVERGED
    top = page[: page.index("<h2")]
    assert "DIVERGED at rung T3 ops" in top
    assert "seeded fault: eps_x10@all" in top
    assert "--fault eps_x10@all" in top
    assert "First: layer 0 <code>attn_norm</code>, prompt" in top
    assert "At the logits of the F32 twin:" in top
    assert "parity trace synthetic-llama Q8_0 --prompt" in top
    assert "DIVERGED model=synthetic-llama quant=Q8_0" in page
    assert "Around the first divergence" in page
    cells = json.loads(path.read_text())["cells"]
    alarm = next(cell for cell in cells if "assert" in cell["metadata"].get("tags", []) and cell["cell_type"] == "code")
    assert alarm["outputs"][0]["ename"] == "ParityFailure"
    assert "INCOMPLETE: cell" not in page


def test_a_trace_runs_from_any_folder_and_its_page_opens_with_the_sentence(tmp_path: Path) -> None:
    prompts = str(Path(__file__).parents[1] / "two_prompts.toml")
    asked = {"prompts": prompts, "prompt": "second", "token": 1, "out_dir": str(tmp_path / "trace")}
    path, page = execute("03_trace", tmp_path, **asked)
    top = page[: page.index("<h2")]
    assert "PARITY at prompt 1 (second), token 1: every op and layer is inside its limit" in top
    assert "All 237 ops are right on llama.cpp's own inputs at token 1" in top
    assert "no engine is at fault" in top
    assert read_records(path)["outcome"] == "PARITY"
    for words in (
        "Map of the total error",
        "Errors layer by layer",
        "Waterfall, ",
        "Keys and values",
        "Traced: token 1.",
    ):
        assert re.search(f'(alt|aria-label)="[^"]*{words}', page), words
    assert not re.search(r'(src|href)="(?!data:|#)|url\(|@import', page)
    assert len(page.encode()) <= html.MAX_BYTES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["03_trace.html", "03_trace.ipynb", "trace"]


def test_an_unknown_model_ends_in_a_page_that_says_so(tmp_path: Path) -> None:
    _, page = execute("02_logits", tmp_path, model="no-such-model", out_dir=str(tmp_path / "cell"))
    top = page[: page.index("<h2")]
    assert "INCOMPLETE: cell 5 raised UsageError" in top
    assert "unknown model" in top
    assert "code cells did not run" in top
    assert "PARITY" not in page
