from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from parity_lib.base.errors import RecordError
from parity_lib.base.names import Outcome
from parity_lib.pages.kit.scraps import MAX_BYTES, decode, encode, read_records, record
from parity_lib.records.verdicts import Verdict

CELLS = """
import numpy as np
from parity_lib.pages import record
record("worst", np.float32(0.5))
record("n", np.int64(7))
record("equal", np.bool_(True))
record("rms", np.array([[1.0, np.nan], [np.inf, -np.inf]]))
record("margin", None)
record("nested", {"outcome": "PARITY", "ratios": [1.5, float("nan")]})
record("n", 8)
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    path = tmp_path_factory.mktemp("records") / "executed.ipynb"
    nbformat.write(notebook, path)
    return path


def test_records_are_read_back_with_numpy_and_non_finite_numbers(executed: Path) -> None:
    found = read_records(executed)
    assert found["worst"] == 0.5
    assert (found["n"], found["equal"], found["margin"]) == (8, True, None)
    assert found["rms"][0][0] == 1.0
    assert math.isnan(found["rms"][0][1])
    assert found["rms"][1] == [math.inf, -math.inf]
    assert math.isnan(found["nested"]["ratios"][1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scrapbook_reads_them_too(executed: Path) -> None:
    import scrapbook

    scraps = scrapbook.read_notebook(str(executed)).scraps
    assert scraps["worst"].data == 0.5
    assert scraps["rms"].data == [[1.0, {"nonfinite": "nan"}], [{"nonfinite": "inf"}, {"nonfinite": "-inf"}]]
    assert scraps["nested"].data["outcome"] == "PARITY"
    assert scraps["margin"].data == {"none": True}
    assert set(scraps) == {"worst", "n", "equal", "rms", "margin", "nested"}


def test_what_has_no_json_form_is_refused_by_name() -> None:
    with pytest.raises(RecordError, match="set"):
        encode({"ids": {1, 2}})


def test_a_large_array_is_refused() -> None:
    with pytest.raises(RecordError, match=rf"logits: the value is too large.*expected <= {MAX_BYTES} bytes"):
        record("logits", np.zeros(MAX_BYTES))


def test_outside_of_a_notebook_nothing_is_recorded_in_silence() -> None:
    with pytest.raises(RecordError, match="no notebook"):
        record("worst", 1.0)


def test_a_verdicts_numbers_survive(make_verdict: Callable[..., Verdict]) -> None:
    rungs = [{"worst": r.worst, "margin": r.margin} for r in make_verdict(Outcome.DIVERGED).rungs]
    assert decode(json.loads(json.dumps(encode(rungs)))) == rungs


def test_a_file_that_is_no_notebook_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text('{"cells": 3}')
    for name in ("a.ipynb", "b.ipynb"):
        with pytest.raises(RecordError, match=name):
            read_records(tmp_path / name)
