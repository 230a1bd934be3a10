"""A pinned file that is another one: every front door says so, and nothing is judged, changed or made again."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_lib.base.names import Outcome
from parity_lib.cli.app import main
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.ensure import ensure, ensure_twin
from parity_lib.night.night import NightOptions, run_night
from parity_lib.records.night_record import load_night
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
PLAN = 'schema = "parity/plan/1"\ntitle = "a test"\nheadline = "a test"\n[[cell]]\nmodel = "synthetic-llama"\n'


def flip(path: Path) -> str:
    """Flip one bit in the middle of a file; return the digest that it has now."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # it may be a link to the sound one
    path.write_bytes(data)
    return sha256_file(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own that holds one sound model and its twin."""
    pins = load_pins()
    model = ensure("synthetic-llama", "Q8_0", pins)
    twin = ensure_twin(model, pins)
    folder = tmp_path / "cache" / "models"
    (folder / "twins").mkdir(parents=True)
    for source, target in ((model, folder), (twin, folder / "twins")):
        for path in (source, source.with_name(f"{source.name}.receipt.json")):
            if path.exists():
                shutil.copyfile(path, target / path.name)
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    return folder


def files(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path, fresh=True) for path in folder.rglob("*.gguf")}


@pytest.mark.parametrize("which", ["model", "twin"])
def test_wrong_hash(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, clear: Callable[[str, str], None]
) -> None:
    path = next(cache.glob("*.gguf") if which == "model" else cache.glob("twins/*.gguf"))
    pinned, found = sha256_file(path, fresh=True), flip(path)
    before, out = files(cache), tmp_path / "out"
    assert main(["run", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--out", str(out)]) == 3
    said = capsys.readouterr().err
    clear(said, path.name)
    assert "not the pinned one" in said
    assert found in said
    assert pinned in said
    assert "parity models prepare" in said
    assert not out.exists()
    assert main(["models", "verify"]) == 3
    text = capsys.readouterr().out
    assert "differs" in text
    assert found in text
    assert main(["models", "prepare", "synthetic-llama", "Q8_0"]) == 3
    assert "not the pinned one" in capsys.readouterr().err
    assert files(cache) == before


def test_wrong_hash_of_a_staged_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(cache.glob("*.gguf"))
    assert main(["models", "stage", "llama-3-8b", "Q8_0", str(path)]) == 3
    said = capsys.readouterr().err
    assert "not the pinned one" in said
    assert sha256_file(path) in said
    assert not list(cache.glob("llama-3-8b*.gguf"))


def make_notebooks(folder: Path) -> Path:
    """Write the three notebooks of a night, each as small as it can be: the cell's one must not even start."""
    names = ["model", "quant", "isa", "stack", "compute", "prompts", "fault", "out_dir"]
    parameters = {
        "00_machine_and_pins": "x: str = ''",
        "02_logits": "\n".join([*(f"{name}: str = ''" for name in names), "control: bool = False"]),
        "06_night": "run_dir: str = ''",
    }
    folder.mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, source in parameters.items():
        cell = {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": source}
        cell |= {"outputs": [], "execution_count": None}
        content = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        (folder / f"{name}.ipynb").write_text(json.dumps(content))
    return folder


@pytest.mark.slow
def test_wrong_hash_in_a_night(cache: Path, tmp_path: Path) -> None:
    """A file with a wrong hash is a finding, not a NOT_RUN, although the cell is not required."""
    found = flip(next(cache.glob("*.gguf")))
    plan, said = tmp_path / "plan.toml", io.StringIO()
    plan.write_text(PLAN + 'quant = "Q8_0"\nrequired = false\n')
    options = NightOptions(str(plan), tmp_path / "out", notebooks=make_notebooks(tmp_path / "notebooks"))
    record, folder = run_night(options, said)
    assert record.exit_status == 3
    line = next(line for line in said.getvalue().splitlines() if line.startswith("INCOMPLETE model="))
    assert "not the pinned one" in line
    assert found in line
    assert [cell.outcome for cell in load_night(folder).cells] == [Outcome.INCOMPLETE]
