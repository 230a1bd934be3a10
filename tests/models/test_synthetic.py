"""Synthetic models: the same bytes every time, the spread of trained weights, every type, little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.llamacpp.engine import quantize_file, worker_env
from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import TYPES, made_up_tokens, read_facts, read_tensors
from parity_lib.models.synthetic import CALM, FILE_TYPES, Shape, build
from parity_lib.records.pins import load_pins

SMALL = Shape(n_layer=2, n_vocab=256)


@pytest.mark.parametrize("key", [(pin.id, pin.quant) for pin in load_pins().models if pin.recipe.kind == "synthetic"])
def test_pinned_files_come_out_byte_for_byte(key: tuple[str, str], tmp_path: Path) -> None:
    pin = load_pins().model(*key)
    shape = Shape(**pin.recipe.shape)
    path = build(pin.arch, pin.recipe.ftype, tmp_path / "m.gguf", shape, seed=pin.recipe.seed)
    assert sha256_file(path) in pin.file.known
    assert path.stat().st_size == pin.file.bytes
    facts = read_facts(path)
    assert facts.tokenizer_sha256 == pin.tokenizer_sha256
    if pin.quant == "MIXED":  # no file type of llama.cpp's says that
        assert set(facts.types) == set(TYPES)
    else:
        assert facts.quant == pin.quant


def test_there_are_pins_of_both_architectures() -> None:
    pinned = {(pin.id, pin.quant) for pin in load_pins().models if pin.recipe.kind == "synthetic"}
    assert {(f"synthetic-{arch}", quant) for arch in ("llama", "qwen2") for quant in ("Q8_0", "Q4_K_M")} <= pinned


@pytest.mark.parametrize("quant", FILE_TYPES)
def test_every_type_has_the_spread_of_trained_weights(quant: str, tmp_path: Path) -> None:
    tensors = read_tensors(build("qwen2", quant, tmp_path / "m.gguf", SMALL))
    for name, tensor in tensors.items():
        values = tensor.dequantize().astype(np.float64)
        assert np.isfinite(values).all(), name
        if "norm" in name:
            assert values.min() >= 0.75, name
            assert values.max() <= 1.25, name
            assert values.std() > 0.1, name
        elif "bias" in name:
            assert np.abs(values).max() <= 0.5, name
            assert values.std() > 0.2, name
        else:
            unit = 1.0 if "token_embd" in name else values.shape[1] ** -0.5
            unit *= CALM if "attn_output" in name or "ffn_down" in name else 1.0
            assert values.std() == pytest.approx(unit, rel=0.06), name
            assert abs(values.mean()) < 0.05 * unit, name


def test_mix_of_types_follows_llama_cpp(tmp_path: Path) -> None:
    """Eight layers: the first, the last and each third between have Q6_K where llama.cpp puts it."""
    tensors = read_tensors(build("llama", "Q4_K_M", tmp_path / "m.gguf", Shape(n_layer=8, n_vocab=256)))
    better = {int(name.split(".")[1]) for name, t in tensors.items() if "attn_v" in name and t.type == "Q6_K"}
    assert better == {0, 3, 6, 7}
    assert better == {int(name.split(".")[1]) for name, t in tensors.items() if "down" in name and t.type == "Q6_K"}
    assert tensors["output.weight"].type == "Q6_K"
    assert tensors["token_embd.weight"].type == "Q4_K"
    assert {t.type for name, t in tensors.items() if "ffn_up" in name or "attn_q" in name} == {"Q4_K"}


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"])
def test_every_code_occurs(quant: str, tmp_path: Path) -> None:
    tensor = read_tensors(build("llama", quant, tmp_path / "m.gguf", SMALL))["token_embd.weight"]
    seen = np.unique(tensor.rows)
    assert len(seen) == 256, "some byte never occurs, so some code or packing is never read"
    if quant == "Q8_0":
        codes = tensor.rows.reshape(-1, 34)[:, 2:].view(np.int8)
        assert (codes.min(), codes.max()) == (-127, 127)


def test_seed_and_shape_and_nothing_else_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build("llama", "Q4_K_M", tmp_path / "a.gguf", SMALL, seed=1).read_bytes()
    assert build("llama", "Q4_K_M", tmp_path / "b.gguf", SMALL, seed=1).read_bytes() == first
    assert build("llama", "Q4_K_M", tmp_path / "c.gguf", SMALL, seed=2).read_bytes() != first
    monkeypatch.setattr("parity_lib.models.synthetic._CHUNK_BYTES", 5000)
    assert build("llama", "Q4_K_M", tmp_path / "d.gguf", SMALL, seed=1).read_bytes() == first
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.gguf", "b.gguf", "c.gguf", "d.gguf"]


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    shape = Shape(n_layer=1, n_embd=1024, n_head=8, n_head_kv=8, key_length=128, n_ff=1024, n_vocab=16384)
    tracemalloc.start()
    path = build("llama", "Q8_0", tmp_path / "m.gguf", shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 40e6
    assert peak < 16e6


def test_optional_parts(tmp_path: Path) -> None:
    shape = Shape(n_layer=1, n_vocab=256, key_length=128, rope_dim=64, rope_freqs=1, tied=1)
    path = build("llama", "Q8_0", tmp_path / "m.gguf", shape)
    facts, tensors = read_facts(path), read_tensors(path)
    assert (facts.tied_output, facts.has_rope_freqs, facts.rope_dim, facts.key_length) == (True, True, 64, 128)
    divisors = tensors["rope_freqs.weight"].dequantize()
    assert divisors.shape == (32,)
    assert divisors.min() >= 1.0
    assert divisors.max() <= 8.0


@pytest.mark.parametrize(
    ("arch", "quant", "shape", "word"),
    [
        ("gemma", "Q8_0", Shape(), "llama or qwen2"),
        ("llama", "Q3_K", Shape(), "Q4_K_M"),
        ("llama", "Q4_K_M", Shape(n_embd=288), "multiple of 256"),
        ("llama", "Q8_0", Shape(n_ff=100), "multiple of 32"),
        ("qwen2", "Q8_0", Shape(rope_freqs=1), "no RoPE divisors"),
    ],
)
def test_what_cannot_be_built_is_refused(arch: str, quant: str, shape: Shape, word: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=word):
        build(arch, quant, tmp_path / "m.gguf", shape)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_a_model_of_every_type_runs_through_both_engines(tmp_path: Path) -> None:
    """llama.cpp has a product on the CPU for each of the eleven types; burn reads each; both agree on the F32 twin."""
    pin = load_pins().model("synthetic-types", "MIXED")
    path = build(pin.arch, "MIXED", tmp_path / "mixed.gguf", Shape(**pin.recipe.shape), seed=pin.recipe.seed)
    twin = tmp_path / "twin.gguf"
    quantize_file(path, twin, "F32", n_threads=1)
    tokens = [made_up_tokens("each kind of matrix in each type", 1024)]
    target = str(host_target(load_pins().llama_cpp))
    kwargs = {"settings": "strict", "isa": target, "n_threads": 1}
    rows = {}
    for name, file in (("native", path), ("twin", twin)):
        with Worker("llama_cpp", {"path": str(file), **kwargs}, env=worker_env("strict")) as worker:
            worker.call("score", tokens, str(tmp_path / name))
        rows[name] = np.fromfile(tmp_path / name, "<f4").astype(np.float64)
    Burn(path, isa=target, n_threads=1).score(tokens, tmp_path / "burn", progress=lambda _done, _total: None)
    rows["burn"] = np.fromfile(tmp_path / "burn", "<f4").astype(np.float64)
    unit = rows["twin"].std()
    assert 1e-8 < np.sqrt(np.mean((rows["burn"] - rows["twin"]) ** 2)) / unit < 1e-5
    assert 1e-4 < np.sqrt(np.mean((rows["native"] - rows["twin"]) ** 2)) / unit < 0.1  # 8-bit activations, no more


def test_each_kind_of_matrix_has_each_type(tmp_path: Path) -> None:
    pin = load_pins().model("synthetic-types", "MIXED")
    shape = Shape(**pin.recipe.shape)
    tensors = read_tensors(build(pin.arch, "MIXED", tmp_path / "mixed.gguf", shape, seed=pin.recipe.seed))
    kinds = {name.split(".", 2)[2] for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) > 1}
    assert len(kinds) == 7
    for kind in kinds:
        assert {tensors[f"blk.{i}.{kind}"].type for i in range(shape.n_layer)} == set(TYPES), kind
