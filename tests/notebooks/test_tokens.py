"""The notebook of one file's tokens and weights runs by itself, from any folder, with its defaults."""

from __future__ import annotations

import contextlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from parity_lib.base.names import Outcome, Rung
from parity_lib.pages.kit import export as html
from parity_lib.records import store

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_tokens_and_weights.ipynb"


def test_tokens_and_weights_of_the_default_model_from_another_folder(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source += f"\nout_dir = {str(tmp_path / 'cell')!r}"
    resources = {"metadata": {"path": str(tmp_path)}}
    with contextlib.suppress(CellExecutionError):  # the page is to say so
        NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    path = tmp_path / "01.ipynb"
    nbformat.write(notebook, path)
    page = html.export(path, tmp_path / "01.html").read_text(encoding="utf-8")
    verdict = store.load_verdict(tmp_path / "cell")
    assert verdict.outcome is Outcome.PARITY, verdict.lines()
    assert [result.rung for result in verdict.rungs] == [Rung.T0, Rung.T1, Rung.T2]
    assert "PARITY at rungs T0, T1, T2" in page[: page.index("<h2")]
    assert "of 49,152 tokens compared, 0 differ" in page
    assert "272 of 272 tensors compared, 0 of them differ" in page
    assert page.count('alt="attn_q.weight over 30 layers') == 1
    assert page.count('class="piece"') > 500
    assert len(page.encode()) <= html.MAX_BYTES
