"""Facts come from the file, derivations are the allowed ones, and a remembered hash hides nothing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.base.surroundings import cache_dir
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import ModelFile, RopeScaling, expected_shapes, read_facts, read_tensors
from parity_lib.models.synthetic import Shape, build

KEYS: Mapping[str, Any] = {
    "block_count": 1,
    "context_length": 64,
    "embedding_length": 32,
    "feed_forward_length": 32,
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1e4,
    "rope.dimension_count": 16,
    "vocab_size": 8,
}
MATRICES = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}


def write_model(
    path: Path,
    *,
    arch: str = "llama",
    change: Mapping[str, Any] | None = None,
    tokens: int = 0,
    alignment: int = 0,
    **tensors: Any,
) -> Path:
    """Write a one-layer F32 model; a key or tensor of value None is left out. Tensor names use ``__`` for ``.``."""
    writer = gguf.GGUFWriter(path, arch)
    if tokens:
        writer.add_token_list([f"token {i}" for i in range(tokens)])
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in {f"{arch}.{key}": value for key, value in (KEYS | (change or {})).items()}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    plain = {"token_embd.weight": (8, 32), "output_norm.weight": (32,), "output.weight": (8, 32)}
    plain |= {"blk.0.attn_norm.weight": (32,), "blk.0.ffn_norm.weight": (32,)}
    plain |= {f"blk.0.{name}.weight": (rows, 32) for name, rows in MATRICES.items()}
    for name, shape in (plain | {key.replace("__", "."): shape for key, shape in tensors.items()}).items():
        if shape is not None:
            writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_facts_of_a_file_that_says_everything(tmp_path: Path) -> None:
    shape = Shape(n_layer=3, n_head=8, n_head_kv=2, key_length=64, n_vocab=96, rope_freqs=1, rope_base=12345)
    facts = read_facts(build("llama", "Q4_K_M", tmp_path / "m.gguf", shape))
    assert (facts.arch, facts.quant, facts.tokenizer) == ("llama", "Q4_K_M", "none")
    assert (facts.n_layer, facts.n_embd, facts.n_ff, facts.n_vocab, facts.n_ctx_train) == (3, 256, 512, 96, 4096)
    assert (facts.n_head, facts.n_head_kv, facts.key_length, facts.value_length, facts.rope_dim) == (8, 2, 64, 64, 64)
    assert facts.rms_eps == np.float32(1e-5)
    assert facts.rope_base == 12345.0
    assert (facts.tied_output, facts.has_rope_freqs, facts.has_qkv_bias, facts.add_bos) == (False, True, False, None)
    assert facts.types == {"F32": 8, "Q4_K": 20, "Q6_K": 3}
    assert facts.n_bytes == (tmp_path / "m.gguf").stat().st_size


def test_allowed_derivations(tmp_path: Path) -> None:
    left_out = dict.fromkeys(("attention.head_count_kv", "rope.dimension_count", "vocab_size"))
    path = tmp_path / "m.gguf"
    writer_change = left_out | {"attention.key_length": None}
    write_model(path, change=writer_change, blk__0__attn_k__weight=(32, 32), blk__0__attn_v__weight=(32, 32))
    with pytest.raises(ModelFileError, match="vocab_size"):
        read_facts(path)  # no vocabulary to count either
    write_model(
        path,
        change=writer_change | {"vocab_size": 8},
        blk__0__attn_k__weight=(32, 32),
        blk__0__attn_v__weight=(32, 32),
        output__weight=None,
    )
    facts = read_facts(path)
    assert (facts.key_length, facts.value_length, facts.rope_dim, facts.n_head_kv) == (16, 16, 16, 2)
    assert facts.tied_output
    assert facts.quant == "F32"  # no general.file_type: the most frequent type


@pytest.mark.parametrize(
    "key",
    [
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "block_count",
        "embedding_length",
        "attention.head_count",
        "feed_forward_length",
        "context_length",
    ],
)
def test_nothing_else_is_assumed(tmp_path: Path, key: str) -> None:
    path = write_model(tmp_path / "m.gguf", change={key: None})
    with pytest.raises(ModelFileError, match=rf"{key}.*found nothing"):
        read_facts(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", 8),
        ("rope.scaling.type", "longrope"),
        ("rope.scaling.factor", -4.0),
        ("rope.scaling.attn_factor", 0.0),
        ("rope.scaling.yarn_beta_fast", 16.0),
        ("no_such_key", 1),
        ("attention.sliding_window", 128),
        ("attention.causal", False),
        ("attention.scale", 0.5),
        ("final_logit_softcapping", 30.0),
        ("attention.head_count", [2, 2]),  # of a model of one layer
        ("attention.head_count_kv", [1.0]),
        ("attention.layer_norm_rms_epsilon", -1.0),
        ("rope.freq_base", float("nan")),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    path = write_model(tmp_path / "m.gguf", change={key: value})
    with pytest.raises(ModelFileError, match=rf"llama\.{key}"):
        read_facts(path)


def test_neutral_values_of_those_keys_are_fine(tmp_path: Path) -> None:
    change = {"expert_count": 0, "rope.scaling.type": "none", "rope.scaling.factor": 4.0, "attention.causal": True}
    change |= {"logit_scale": 0.0, "rope.scaling.yarn_beta_fast": 32.0, "pooling_type": 1}
    facts = read_facts(write_model(tmp_path / "m.gguf", change=change))
    assert facts.rope_scaling == RopeScaling(n_ctx_orig=64)


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({"rope.scaling.type": "linear"}, RopeScaling("none", 1, 1, 64)),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, RopeScaling("none", 1, 1, 64)),
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4, 1, 64)),  # no type is linear
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4, 1, 64)),
        ({"rope.scaling.attn_factor": 2.0}, RopeScaling("none", 1, 2, 64)),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
            RopeScaling("yarn", 4, 1, 16),
        ),
        ({"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 0}, RopeScaling("yarn", 1, 1, 64)),
    ],
)
def test_rope_scaling_as_llama_cpp_reads_it(tmp_path: Path, change: Mapping[str, Any], scaling: RopeScaling) -> None:
    assert read_facts(write_model(tmp_path / "m.gguf", change=change)).rope_scaling == scaling


def test_an_array_of_one_number_a_layer_is_that_number(tmp_path: Path) -> None:
    arrays = {"attention.head_count_kv": [1], "attention.head_count": [2], "feed_forward_length": [32]}
    facts = read_facts(write_model(tmp_path / "m.gguf", change=arrays))
    assert (facts.n_head, facts.n_head_kv, facts.n_ff) == (2, 1, 32)
    path = write_model(tmp_path / "m.gguf", change={"attention.head_count_kv": [1, 2]})
    with pytest.raises(ModelFileError, match=r"head_count_kv.*an array of 1 equal ones.*found \[1, 2\]"):
        read_facts(path)


def test_tokens_are_counted_and_vocab_size_is_not_asked_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    assert read_facts(write_model(path, change={"vocab_size": 9}, tokens=8)).n_vocab == 8
    write_model(path, tokens=7)
    with pytest.raises(ModelFileError, match=r"token_embd.weight.*\[32, 7\].*found \[32, 8\]"):
        read_facts(path)


def test_a_part_of_a_model_is_refused_with_the_command_that_merges(tmp_path: Path) -> None:
    for number in (1, 2):
        path = tmp_path / f"m-{number:05}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 2)
        writer.add_tensor("t", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        merge = f"llama-gguf-split --merge {tmp_path}/m-00001-of-00002.gguf {tmp_path}/m.gguf"
        with pytest.raises(ModelFileError, match=f"found part {number} of 2.*{merge}"):
            read_facts(path)


def test_a_copy_without_the_alignment_key_has_the_same_tensors(tmp_path: Path) -> None:
    for alignment in (8, 4096):
        path = write_model(tmp_path / "m.gguf", alignment=alignment, output_norm__weight=(32,))
        file, copy = ModelFile(path), tmp_path / "copy.gguf"
        assert file.integer("general.alignment") == alignment
        file.write_aligned(copy)
        other = ModelFile(copy)
        assert other.integer("general.alignment") is None
        assert [key for key in file.metadata_keys() if key != "general.alignment"] == other.metadata_keys()
        assert replace(read_facts(copy), n_bytes=0) == replace(read_facts(path), n_bytes=0)
        for name, tensor in file.tensors.items():
            assert other.tensors[name].offset % 32 == 0
            assert np.array_equal(other.tensors[name].rows, tensor.rows)


def test_an_architecture_that_is_not_supported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"general\.architecture.*expected llama or qwen2; found \"gemma\""):
        read_facts(write_model(tmp_path / "m.gguf", arch="gemma"))


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"blk__0__ffn_up__weight": None}, r"missing tensor \"blk\.0\.ffn_up\.weight\""),
        ({"blk__0__attn_k__weight": (32, 32)}, r"blk\.0\.attn_k\.weight.*\[32, 16\] .*; found \[32, 32\]"),
        ({"blk__0__attn_output__bias": (31,)}, r"blk\.0\.attn_output\.bias"),
        ({"blk__0__ffn_norm__bias": (32,)}, r"blk\.0\.ffn_norm\.bias"),
        ({"blk__1__ffn_up__weight": (32, 32)}, r"blk\.1\.ffn_up\.weight"),
        ({"token_embd__weight": (9, 32)}, r"token_embd\.weight.*\[32, 8\] .*; found \[32, 9\]"),
    ],
)
def test_tensors_must_be_the_models_own(tmp_path: Path, tensors: Mapping[str, Any], name: str) -> None:
    path = write_model(tmp_path / "m.gguf", **tensors)
    with pytest.raises(ModelFileError, match=name):
        read_facts(path)


def test_biases_are_each_optional_and_some_belong_to_llama(tmp_path: Path) -> None:
    lengths = {"attn_q": 32, "attn_v": 16, "attn_output": 32, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    biases = {f"blk__0__{name}__bias": (n,) for name, n in lengths.items()}
    facts = read_facts(write_model(tmp_path / "a.gguf", **biases))
    assert facts.biases == tuple(sorted(f"blk.0.{name}.bias" for name in lengths))
    assert not facts.has_qkv_bias
    assert read_facts(write_model(tmp_path / "b.gguf", **biases, blk__0__attn_k__bias=(16,))).has_qkv_bias
    for name, n in lengths.items():
        path = write_model(tmp_path / "c.gguf", arch="qwen2", **{f"blk__0__{name}__bias": (n,)})
        if name in ("attn_q", "attn_v"):
            assert read_facts(path).biases == (f"blk.0.{name}.bias",)
        else:  # llama.cpp has no place for it
            with pytest.raises(ModelFileError, match=rf"blk\.0\.{name}\.bias.*not used by architecture qwen2"):
                read_facts(path)


def test_rope_divisors_belong_to_llama(tmp_path: Path) -> None:
    assert read_facts(write_model(tmp_path / "a.gguf", rope_freqs__weight=(8,))).has_rope_freqs
    with pytest.raises(ModelFileError, match="rope_freqs"):
        read_facts(write_model(tmp_path / "b.gguf", arch="qwen2", rope_freqs__weight=(8,)))


def test_heads_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="divisor of 32"):
        read_facts(write_model(tmp_path / "a.gguf", change={"attention.head_count": 3}))
    with pytest.raises(ModelFileError, match=r"rope\.dimension_count"):
        read_facts(write_model(tmp_path / "b.gguf", change={"rope.dimension_count": 7}))


def test_expected_shapes_name_every_tensor_of_a_real_file(tmp_path: Path) -> None:
    path = build("qwen2", "Q8_0", tmp_path / "m.gguf", Shape(n_layer=2, n_vocab=64))
    shapes = expected_shapes(read_facts(path))
    assert {name: tensor.shape for name, tensor in read_tensors(path).items()} == shapes


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose times lie an hour back as far as a program can set them, in a cache folder of its own."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "data.bin"
    path.write_bytes(b"a" * 1000)
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    return path


def later(monkeypatch: pytest.MonkeyPatch, seconds: int = 3600) -> None:
    """Move the clock that ``sha256_file`` sees, so that a fresh file counts as an old one."""
    now = time.time_ns()
    monkeypatch.setattr("parity_lib.model_file.digest.time.time_ns", lambda: now + seconds * 1_000_000_000)


def test_hash_is_the_files(old_file: Path) -> None:
    assert sha256_file(old_file) == hashlib.sha256(b"a" * 1000).hexdigest()
    assert not (cache_dir() / "sha256").exists(), "a file that changed just now is not remembered"


def test_hash_is_remembered_and_a_changed_file_noticed(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old_file.stat()
    later(monkeypatch)
    first = sha256_file(old_file)
    (entry,) = (cache_dir() / "sha256").iterdir()
    entry.write_text(entry.read_text().replace(first, "f" * 64))
    assert sha256_file(old_file) == "f" * 64, "the memory was not used"
    assert sha256_file(old_file, fresh=True) == first
    with old_file.open("r+b") as file:  # one bit, same size, same inode, and the old time put back
        file.write(b"b")
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert old_file.stat().st_mtime_ns == before.st_mtime_ns
    assert sha256_file(old_file) == hashlib.sha256(b"b" + b"a" * 999).hexdigest()


def test_a_broken_memory_costs_nothing_but_time(old_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch)
    first = sha256_file(old_file)
    (entry,) = (cache_dir() / "sha256").iterdir()
    for text in ("", "[]", "{", '{"stamp": 1}'):
        entry.write_text(text)
        assert sha256_file(old_file) == first


def test_an_unwritable_cache_costs_nothing_but_time(
    old_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch)
    (tmp_path / "a file").write_text("in the way")
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "a file"))
    assert sha256_file(old_file) == hashlib.sha256(b"a" * 1000).hexdigest()


def test_a_file_that_cannot_be_hashed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.bin"):
        sha256_file(tmp_path / "absent.bin")


def test_cache_folder_is_the_named_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("PARITY_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "gguf-parity"
