"""Kinds of files that llama.cpp runs and others have reported: each is run to a verdict here, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from parity_lib.base.names import Outcome, Rung
from parity_lib.cli.app import main
from parity_lib.model_file.header import ModelFile
from parity_lib.models.synthetic import Shape, build
from parity_lib.records import store

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
SMALL = {"n_layer": 2, "n_vocab": 2048}

Edit = Callable[[gguf.GGUFWriter], None]
KINDS: dict[str, tuple[str, Shape, dict[str, Edit | None]]] = {
    "biases": ("llama", Shape(**SMALL, biases=1), {}),
    "linear": ("llama", Shape(**SMALL, linear=4), {}),
    "yarn": ("qwen2", Shape(**SMALL, yarn=4), {}),
    "alignment-16": ("llama", Shape(**SMALL, alignment=16), {}),
    "alignment-4096": ("llama", Shape(**SMALL, alignment=4096), {}),
    "array": (
        "llama",
        Shape(**SMALL),
        {"llama.attention.head_count_kv": lambda w: w.add_array("llama.attention.head_count_kv", [2, 2])},
    ),
    "neutral": (
        "llama",
        Shape(**SMALL),
        {
            "llama.rope.scaling.type": lambda w: w.add_string("llama.rope.scaling.type", "linear"),
            "llama.rope.scaling.factor": lambda w: w.add_float32("llama.rope.scaling.factor", 0.0),
        },
    ),
    "other-task": (
        "llama",
        Shape(**SMALL),
        {"llama.pooling_type": lambda w: w.add_uint32("llama.pooling_type", 0)},
    ),
}


def edited(source: Path, path: Path, edits: dict[str, Edit | None]) -> Path:
    """Write a copy of a synthetic file in which some keys are written by an edit, or left out where it is None."""
    file, reader = ModelFile(source), gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, str(file.value("general.architecture")))
    for key in file.metadata_keys():
        if key != "general.architecture" and key not in edits:
            [kind] = reader.fields[key].types
            writer.add_key_value(key, file.value(key), kind)
    for edit in edits.values():
        if edit is not None:
            edit(writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def made(kind: str, folder: Path) -> Path:
    arch, shape, edits = KINDS[kind]
    path = build(arch, "Q8_0", folder / f"{kind}.gguf", shape)
    return edited(path, folder / f"{kind}.edited.gguf", edits) if edits else path


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_llama_cpp_runs_is_at_parity(kind: str, tmp_path: Path) -> None:
    path, out = made(kind, tmp_path), tmp_path / "out"
    assert main(["run", str(path), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(out)]) == 0
    verdict = store.load_verdict(out)
    assert verdict.outcome is Outcome.PARITY
    compared = {rung.rung: rung.compared for rung in verdict.rungs}
    assert all(compared[rung] for rung in (Rung.T2, Rung.T3, Rung.T4, Rung.T5))


REFUSED: dict[str, tuple[dict[str, Edit | None], str]] = {
    "no-base": (
        {"llama.rope.freq_base": None},
        '"llama.rope.freq_base"; expected a positive f32 (without it llama.cpp',
    ),
    "longrope": (
        {"llama.rope.scaling.type": lambda w: w.add_string("llama.rope.scaling.type", "longrope")},
        '"llama.rope.scaling.type"; expected none, linear or yarn; found "longrope"',
    ),
    "unequal": (
        {"llama.attention.head_count_kv": lambda w: w.add_array("llama.attention.head_count_kv", [2, 1])},
        '"llama.attention.head_count_kv"; expected one positive integer, or an array of 2 equal ones',
    ),
    "part": (
        {"split.count": lambda w: w.add_uint16("split.count", 2)},
        "found part 1 of 2; next: merge the parts, then use the whole: llama-gguf-split --merge",
    ),
    "scaled-logits": (
        {"llama.logit_scale": lambda w: w.add_float32("llama.logit_scale", 2.0)},
        '"llama.logit_scale"; expected 0 (f32), or no such key; found 2',
    ),
    "padded-rows": ({"llama.vocab_size": lambda w: w.add_uint32("llama.vocab_size", 2000)}, '"token_embd.weight"'),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_not_run_is_refused_before_any_work(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both readers use these words: tests/conftest.py compares them for every file that a test leaves."""
    edits, words = REFUSED[kind]
    path = edited(build("llama", "Q8_0", tmp_path / "sound.gguf", Shape(**SMALL)), tmp_path / f"{kind}.gguf", edits)
    out = tmp_path / "out"
    assert main(["run", str(path), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert words in said
    assert "; next: " in said
    assert not (out / "verdict.json").exists()
