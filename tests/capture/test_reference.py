"""The key of what the reference computed: everything that can change a bit of it is in it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path

import pytest

import parity_lib
from parity_lib.capture import cell as steps
from parity_lib.capture import reference, reference_cache
from parity_lib.capture.cell import Cell
from parity_lib.capture.leg_build import leg_receipt
from parity_lib.engines.llama_settings import asked
from parity_lib.names import Settings
from parity_lib.traces import RunInfo

LIBRARY = Path(parity_lib.__file__).parent


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: tmp_path / "traces")
    prompts = str(Path(__file__).parents[1] / "two_prompts.toml")
    return steps.open_cell(
        model="synthetic-llama", quant="Q8_0", prompts=prompts, out_dir=tmp_path / "cell", n_threads=1
    )


def test_key_names_file_prompts_build_machine_settings_threads_and_source(cell: Cell, tmp_path: Path) -> None:
    made = steps.capture_reference(cell)
    [folder] = (tmp_path / "traces").glob("reference-*")
    fields = json.loads((folder / "record.json").read_text())["fields"]
    run = made.rows.run
    assert fields["model_sha256"] == run.model_sha256
    assert fields["prompts_sha256"] == cell.suite.sha256
    assert fields["llama_cpp"] == cell.pins.llama_cpp.commit
    assert fields["receipt"]["libraries"] == dict(run.build["libraries"])
    assert fields["machine_class"] == run.machine_class
    assert (fields["isa"], fields["n_threads"]) == (run.isa_requested, run.n_threads)
    assert fields["settings"]["context_params"] == asked(Settings.STRICT)["context_params"]
    assert fields["source_sha256"] == reference.source_sha256("reference")


@pytest.mark.parametrize("change", [{"n_threads": 2}, {"suite": "other"}])
def test_another_cell_does_not_get_these_rows(cell: Cell, change: dict[str, object]) -> None:
    steps.capture_reference(cell)
    if "suite" in change:
        change = {"suite": replace(cell.suite, sha256="0" * 64)}
    other = replace(cell, **change)  # type: ignore[arg-type]
    steps.capture_reference(other)
    assert other.diary.cache["reference"] == reference.COMPUTED
    steps.capture_reference(cell)
    assert cell.diary.cache["reference"] == reference.CACHED


def test_twin_belongs_to_the_tokens_and_rows_that_were_seen(cell: Cell) -> None:
    made = steps.capture_reference(cell)
    steps.capture_twin(cell, made)
    first, second = made.generated
    other = replace(made, generated=(first, (*second[:-2], second[-2] ^ 1, second[-1])))
    steps.capture_twin(cell, other)
    assert cell.diary.cache["twin"] == reference.COMPUTED


@pytest.mark.parametrize(
    ("name", "rows_too"),
    [("engines/llama_settings.py", True), ("compare/metrics.py", True), ("capture/spread.py", False)],
)
def test_changed_source_is_another_key(tmp_path: Path, name: str, rows_too: bool) -> None:
    shutil.copytree(LIBRARY, tmp_path / "lib", ignore=shutil.ignore_patterns("native", "__pycache__"))
    before = {part: reference.source_sha256(part, tmp_path / "lib") for part in ("reference", "spread")}
    assert before["reference"] != before["spread"]
    with (tmp_path / "lib" / name).open("a") as file:
        file.write("# another source\n")
    after = {part: reference.source_sha256(part, tmp_path / "lib") for part in before}
    assert after["spread"] != before["spread"]
    assert (after["reference"] != before["reference"]) == rows_too


def test_receipt_is_that_of_the_build_that_runs(cell: Cell) -> None:
    run: RunInfo = steps.capture_reference(cell).rows.run
    assert asdict(leg_receipt(cell.pins.llama_cpp, cell.id.isa)) == dict(run.build)


@pytest.mark.parametrize("pattern", sorted({*reference.SOURCES, *chain(*reference.MORE_SOURCES.values())}))
def test_every_source_of_the_key_is_there(pattern: str) -> None:
    assert list(LIBRARY.glob(pattern))
