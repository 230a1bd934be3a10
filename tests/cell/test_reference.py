"""The key of what the reference computed: everything that can change a bit of it is in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import parity_lib
from parity_lib.base.names import Settings
from parity_lib.cell import key_sources, reference, reference_cache, steps
from parity_lib.cell.key_sources import BY_VALUE, MORE, ROWS
from parity_lib.cell.steps import Cell
from parity_lib.engines.llamacpp.isa_build import target_receipt
from parity_lib.engines.llamacpp.settings import asked
from parity_lib.engines.worker.server import ENGINES
from parity_lib.records.runs import llama

pytestmark = pytest.mark.engine

LIBRARY = Path(parity_lib.__file__).parent
ROOMS = dict.fromkeys(("reference", *MORE), ("cell", "engines", "judge")) | {"reference": ("cell", "engines")}


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
    assert fields["receipt"]["libraries"] == dict(llama(run).build.libraries)
    assert fields["machine_class"] == run.machine_class
    assert (fields["isa"], fields["n_threads"]) == (run.isa_requested, run.n_threads)
    assert fields["settings"]["context_params"] == asked(Settings.STRICT)["context_params"]
    assert fields["source_sha256"] == key_sources.source_sha256("reference")


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
    [("engines/llamacpp/settings.py", True), ("numerics/metrics.py", True), ("cell/t5_spread.py", False)],
)
def test_changed_source_is_another_key(tmp_path: Path, name: str, rows_too: bool) -> None:
    shutil.copytree(LIBRARY, tmp_path / "lib", ignore=shutil.ignore_patterns("burn_gguf", "__pycache__"))
    before = {part: key_sources.source_sha256(part, tmp_path / "lib") for part in ("reference", "spread")}
    assert before["reference"] != before["spread"]
    with (tmp_path / "lib" / name).open("a") as file:
        file.write("# another source\n")
    after = {part: key_sources.source_sha256(part, tmp_path / "lib") for part in before}
    assert after["spread"] != before["spread"]
    assert (after["reference"] != before["reference"]) == rows_too


def test_receipt_is_that_of_the_build_that_runs(cell: Cell) -> None:
    run = llama(steps.capture_reference(cell).rows.run)
    assert target_receipt(cell.pins.llama_cpp, cell.sides.reference.isa) == run.build


@pytest.mark.parametrize("start", [*ROWS, *sorted({name for names in MORE.values() for name in names})])
def test_every_module_that_is_loaded_is_in_the_key(start: str) -> None:
    """The other way to know it: load a module in a process of its own, and see what stands behind its own modules."""
    part = next((part for part, names in MORE.items() if start in names), "reference")
    loaded = {name for name in _loaded(start) if not name.startswith(BY_VALUE)} - _behind(start)
    assert start in loaded
    assert loaded <= set(key_sources.sources(part))


@pytest.mark.parametrize(("kind", "part"), [("llama_cpp", "reference"), ("llama_dispatch", "dispatch")])
def test_the_engine_that_a_worker_loads_by_name_is_in_the_key(kind: str, part: str) -> None:
    module = ENGINES[kind].partition(":")[0].removeprefix("parity_lib.")
    assert module.replace(".", "/") + ".py" in key_sources.sources(part)


def _loaded(name: str) -> set[str]:
    module = "parity_lib." + name.removesuffix(".py").replace("/", ".")
    show = (
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('parity_lib') and m.__file__), sep='\\n')"
    )
    words = subprocess.check_output([sys.executable, "-c", f"import sys, {module}; {show}"], text=True)
    found = {Path(line).relative_to(LIBRARY).as_posix() for line in words.splitlines()}
    return {name for name in found if not name.endswith("__init__.py")}


def _behind(start: str) -> set[str]:
    """Return what is loaded only because a module whose result is in the key by value needs it."""
    return _loaded("cell/request.py") - set(key_sources.sources("reference"))


@pytest.mark.parametrize("part", ["reference", *MORE])
def test_pages_nights_and_commands_are_in_no_key(part: str) -> None:
    found = key_sources.sources(part)
    assert {name.split("/")[0] for name in found} <= {"base", "records", "model_file", "numerics", *ROOMS[part]}
    assert {"numerics/metrics.py", "engines/spool.py", "cell/rows.py"} <= set(found)


@pytest.mark.parametrize("line", ["from parity_lib.records import RunInfo", "from .rows import Rows"])
def test_an_import_that_cannot_be_followed_is_refused(tmp_path: Path, line: str) -> None:
    shutil.copytree(LIBRARY, tmp_path / "lib", ignore=shutil.ignore_patterns("burn_gguf", "__pycache__"))
    with (tmp_path / "lib" / "cell" / "rows.py").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(AssertionError, match="cannot be followed"):
        key_sources.sources("reference", tmp_path / "lib")


def test_a_new_helper_is_in_the_key(tmp_path: Path) -> None:
    shutil.copytree(LIBRARY, tmp_path / "lib", ignore=shutil.ignore_patterns("burn_gguf", "__pycache__"))
    library = tmp_path / "lib"
    (library / "numerics" / "helper.py").write_text("A = 1\n")
    with (library / "cell" / "rows.py").open("a") as file:
        file.write("def late() -> None:\n    from parity_lib.numerics import helper  # noqa\n")
    assert "numerics/helper.py" in key_sources.sources("reference", library)
    before = key_sources.source_sha256("reference", library)
    (library / "numerics" / "helper.py").write_text("A = 2\n")
    assert key_sources.source_sha256("reference", library) != before
    with (library / "pages" / "cell" / "box.py").open("a") as file:
        file.write("# another page\n")
    after = key_sources.source_sha256("reference", library)
    (library / "numerics" / "helper.py").write_text("A = 1\n")
    assert before == key_sources.source_sha256("reference", library) != after
