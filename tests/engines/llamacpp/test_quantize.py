"""Twins and quantisations made by llama.cpp: right, deterministic, whole or not there."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import EngineError, ModelFileError, UsageError
from parity_lib.engines.llamacpp.engine import quantize_file
from parity_lib.model_file.facts import read_tensors

pytestmark = pytest.mark.engine


def test_the_f32_twin_is_bit_equal_to_ggufs_dequantisation(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"
    quantize_file(tiny_models["Q4_K_M"], twin, "F32")
    source, widened = gguf.GGUFReader(tiny_models["Q4_K_M"]), read_tensors(twin)
    kinds = {str(tensor.tensor_type.name) for tensor in source.tensors}
    assert {"Q4_K", "Q6_K", "F32"} <= kinds
    assert len(source.tensors) == len(widened)
    for tensor in source.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert widened[tensor.name].type == "F32"
        assert np.array_equal(expected.view(np.uint32), np.asarray(widened[tensor.name].rows).view(np.uint32))


@pytest.mark.parametrize("ftype", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_the_bytes_do_not_depend_on_threads(tiny_models: dict[str, Path], ftype: str, tmp_path: Path) -> None:
    for n_threads in (1, 2):
        quantize_file(tiny_models["F32"], tmp_path / f"{n_threads}.gguf", ftype, n_threads=n_threads)
    made = (tmp_path / "1.gguf").read_bytes()
    assert made == (tmp_path / "2.gguf").read_bytes()
    kind = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}.get(ftype, ftype)
    assert read_tensors(tmp_path / "1.gguf")["blk.0.attn_q.weight"].type == kind


def test_an_unknown_file_type_is_refused_with_the_known_ones(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Q4_K_M") as caught:
        quantize_file(tiny_models["F32"], tmp_path / "x.gguf", "Q4_K_XL")
    assert caught.value.exit_status == 2
    assert not list(tmp_path.iterdir())


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the file cannot be opened"):
        quantize_file(tmp_path / "none.gguf", tmp_path / "x.gguf", "Q8_0")


def test_a_failure_keeps_the_older_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "bad.gguf", tmp_path / "x.gguf"
    source.write_bytes(b"GGUF but not really" * 50)
    target.write_bytes(b"an older file")
    with pytest.raises(EngineError, match=r"llama\.cpp could not make the file: .*failed to read header"):
        quantize_file(source, target, "Q8_0")
    assert target.read_bytes() == b"an older file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf", "x.gguf"]
