"""Every fault of one op, seeded for real: the right op named each time, the file as it was afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError, ModelFileError, UsageError
from parity_lib.base.record import load_record
from parity_lib.cell.request import open_cell
from parity_lib.cli.app import main
from parity_lib.faults import file_edits
from parity_lib.faults.op_faults import TRIALS, seed_op_faults
from parity_lib.faults.op_judge import EDITS, Trial, TrialTable
from parity_lib.model_file.facts import read_tensors
from parity_lib.models.synthetic import Shape, build

pytestmark = pytest.mark.engine

PROMPTS = str(Path(__file__).parents[1] / "two_prompts.toml")
MATRIX = "blk.1.ffn_down.weight"
OUTPUT_BIASES = ("attn_output", "ffn_gate", "ffn_up", "ffn_down")  # that only files of llama may have


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose matrices have every type."""
    return build("llama", "MIXED", tmp_path_factory.mktemp("mixed") / "mixed.gguf", Shape(n_layer=11, n_vocab=256))


def test_every_fault_names_its_op_in_the_architecture_with_biases(tmp_path: Path) -> None:
    path = build("qwen2", "Q4_K_M", tmp_path / "qwen2.gguf", Shape(n_layer=2, n_vocab=512, n_ff=256))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    said: list[Trial] = []
    cell = open_cell(model=str(path), prompts=PROMPTS, out_dir=str(tmp_path / "out"), n_threads=1)
    table = seed_op_faults(cell, said.append)
    assert [(trial.fault, trial.expected, trial.named) for trial in table.trials if not trial.is_op] == []
    assert table.is_good
    assert tuple(said) == table.trials
    assert len(table.trials) == 30
    assert set(table.not_seeded.values()) == {"the model has no such bias"}
    assert len(table.not_seeded) == len(OUTPUT_BIASES)
    assert table.sound_share < 1
    assert table.n_positions >= 48
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert not cell.spools.exists()
    assert load_record(cell.out_dir / TRIALS, TrialTable) == table


def test_every_bias_of_a_llama_file_is_named_by_its_own_sum(tmp_path: Path) -> None:
    path = build("llama", "Q8_0", tmp_path / "biases.gguf", Shape(n_layer=2, n_vocab=512, n_ff=256, biases=1))
    cell = open_cell(model=str(path), prompts=PROMPTS, out_dir=str(tmp_path / "out"), n_threads=1)
    table = seed_op_faults(cell, lambda _trial: None, only="*, one bias")
    named = {trial.named.split("-")[0] for trial in table.trials if trial.is_op}
    assert named == {"Kcur.ADD", "attn_out.ADD", "ffn_gate.ADD", "ffn_up.ADD", "ffn_out.ADD"}
    assert table.is_good


def test_the_command_prints_a_table_and_says_what_was_not_seeded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["faults", "synthetic-llama", "Q8_0", "--trace", "--prompts", PROMPTS, "--threads", "1"]
    assert main([*words, "--only", "*bias*", "--out", str(tmp_path)]) == 2
    assert "the model's projections have no biases" in capsys.readouterr().err
    assert main([*words, "--only", "*[wd]n*", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("| fault | where | named | local error: tensor |")
    rows = [line for line in out if line.startswith("| ffn_down")]
    assert rows[0].split(" | ")[1:3] == ["the file, `blk.2.ffn_down.weight`", "`ffn_out-2`"]
    said = [line for line in out if line.startswith("not seeded: ")]
    assert out[-2 - len(said)].startswith("layer named ")
    assert said[0].startswith("not seeded: ffn_down, one sub-block scale: no such tensor has a type with a sub scale")
    assert said[1] == "not seeded: ffn_down, one bias: the model has no such bias"
    assert json.loads((tmp_path / TRIALS).read_text())["trials"]


def test_a_fault_that_is_named_elsewhere_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "mine.toml"
    listed.write_text(
        'schema = "parity/op_faults/1"\n[[fault]]\nname = "swap_gate_up@blk.{block}"\nwhat = "swapped"\n'
        'depth = 0.5\nsite = "ffn_out-{block}"\n'
    )
    words = ["faults", "synthetic-llama", "Q8_0", "--trace", "--prompts", PROMPTS, "--threads", "1"]
    assert main([*words, "--faults", str(listed), "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert "`ffn_swiglu-2`, **not** `ffn_out-2`" in out
    assert "layer named 1 of 1, op named 0 of 1" in out


def test_a_cell_that_is_off_without_a_fault_gets_none(tmp_path: Path) -> None:
    path = build("llama", "Q8_0", tmp_path / "model.gguf", Shape(n_layer=1, n_vocab=256))
    cell = open_cell(model=str(path), prompts=PROMPTS, out_dir=str(tmp_path / "out"), n_threads=1)
    other = build("llama", "Q8_0", tmp_path / "other.gguf", Shape(n_layer=1, n_vocab=256), seed=2)
    from parity_lib.faults import op_faults

    with pytest.MonkeyPatch.context() as patch:
        real = op_faults._replay
        patch.setattr(op_faults, "_replay", lambda cell, _path, *rest: real(cell, other, *rest))
        with pytest.raises(EngineError, match=r"embd: an op is over its limit without a fault"):
            seed_op_faults(cell, lambda _: None)
    with pytest.raises(UsageError, match="matches --only"):
        seed_op_faults(cell, lambda _: None, "no such")


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_a_few_numbers_and_is_taken_back(edit: str, mixed: Path) -> None:
    tensors = read_tensors(mixed)
    before = mixed.read_bytes()
    seen = set()
    for tensor in tensors.values():
        if not file_edits.fits(edit, tensor.type) or tensor.type in seen:
            continue
        seen.add(tensor.type)
        values = np.array(tensor.dequantize())
        with file_edits.edited(mixed, tensor, edit, 5):
            changed = read_tensors(mixed)[tensor.name].dequantize()
            rows = np.flatnonzero((changed != values).reshape(len(values), -1).any(1)).tolist()
            assert rows == ([5, 6] if edit == "swap_rows" else [5]), tensor.type
            if edit in ("code", "number"):
                assert (changed != values).sum() <= 2, tensor.type
            if edit == "zero_row":
                assert not changed[5].any()
        assert mixed.read_bytes() == before
    n_types = {"zero_row": 11, "swap_rows": 11, "code": 11, "scale": 8, "minimum": 4, "sub_scale": 3, "number": 1}
    assert len(seen) == n_types[edit]


def test_an_edit_that_does_not_fit_or_changes_nothing_is_refused(mixed: Path) -> None:
    tensors = read_tensors(mixed)
    plain = next(tensor for tensor in tensors.values() if tensor.type == "F32")
    with pytest.raises(ModelFileError, match="does not fit"), file_edits.edited(mixed, plain, "sub_scale", 0):
        pass
    with (
        file_edits.edited(mixed, plain, "zero_row", 3),
        pytest.raises(ModelFileError, match="an edit changed no byte"),
        file_edits.edited(mixed, plain, "zero_row", 3),
    ):
        pass
