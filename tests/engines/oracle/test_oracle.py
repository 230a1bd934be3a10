"""The oracle's ops agree with other ways to compute them, and the whole agrees with llama.cpp's F32 twin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.base.names import Settings
from parity_lib.engines.llamacpp.engine import quantize_file, worker_env
from parity_lib.engines.oracle.engine import Oracle, attention, linear, rms_norm, swiglu
from parity_lib.engines.oracle.rope import exact_angles, rope, walked_angles
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.header import ModelFile
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.traces import F64

pytestmark = pytest.mark.engine

LLAMA = Shape(n_layer=2, n_head=4, n_head_kv=2, key_length=128, n_vocab=512, rope_freqs=1)
QWEN2 = Shape(n_layer=2, n_head=4, n_head_kv=1, key_length=64, n_vocab=512, rope_base=1_000_000)
RNG = np.random.default_rng(20260301)


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def sequences(n_vocab: int, *lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, n_vocab, length).tolist() for length in lengths]


def score64(path: Path, tokens: Sequence[Sequence[int]], folder: Path) -> F64:
    oracle = Oracle(path)
    counts = oracle.score64(tokens, folder / "rows.f64", progress=quiet)
    assert counts == [len(one) for one in tokens]
    return np.fromfile(folder / "rows.f64", "<f8").reshape(sum(counts), oracle.n_vocab())


def rewrite(source: Path, target: Path, arch: str, change: dict[str, np.ndarray]) -> Path:
    """Copy an F32 model to another architecture's names, with some tensors replaced."""
    file = ModelFile(source)
    writer = gguf.GGUFWriter(target, arch)
    fields = gguf.GGUFReader(source).fields
    for key in file.metadata_keys():
        if key != "general.architecture":
            writer.add_key_value(key.replace("llama.", f"{arch}.", 1), file.value(key), fields[key].types[0])
    for name, array in ({n: t.dequantize() for n, t in file.tensors.items()} | change).items():
        writer.add_tensor(name, np.ascontiguousarray(array, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_rms_norm_on_a_case_done_by_hand() -> None:
    x = np.array([[3.0, 4.0]])
    assert rms_norm(x, np.array([2.0, 10.0]), 0.0) == pytest.approx(np.array([[6.0, 40.0]]) / np.sqrt(12.5), rel=1e-15)
    assert rms_norm(x * 0, np.ones(2), 1e-5) == pytest.approx(0.0, abs=0.0)
    assert rms_norm(x, np.ones(2), 12.5) == pytest.approx(x / 5.0, rel=1e-15)  # epsilon stands inside of the root


def test_rope_is_a_complex_rotation() -> None:
    x, positions, divisors = RNG.normal(size=(5, 2, 8)), np.arange(5.0) * 97, np.array([1.0, 2.0, 8.0])
    turn = np.exp(1j * positions[:, None, None] * 1e4 ** (-np.arange(3) / 3) / divisors)
    pairs = (x[..., 0:6:2] + 1j * x[..., 1:6:2]) * turn
    expected = x.copy()
    expected[..., 0:6:2], expected[..., 1:6:2] = pairs.real, pairs.imag
    angles = exact_angles(positions, 1e4, 6, divisors)
    assert rope(x, angles, adjacent=True) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    pairs = (x[..., 0:3] + 1j * x[..., 3:6]) * turn
    expected = x.copy()  # numbers beyond the rotary dimension stay
    expected[..., 0:3], expected[..., 3:6] = pairs.real, pairs.imag
    assert rope(x, angles, adjacent=False) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_walked_angles_start_exact_and_drift_as_float32_does() -> None:
    positions, divisors = np.array([0.0, 1.0, 1000.0]), np.ones(32)
    exact, walked = (angles(positions, 1e4, 64, divisors) for angles in (exact_angles, walked_angles))
    assert np.array_equal(walked[:, 0], positions)
    assert not walked[0].any()
    drift = np.abs(walked[2] - exact[2])[1:]
    assert 1e-6 < drift.max() < 1e-3
    assert np.all(drift / exact[2, 1:] < 64 * 2**-24)


def test_walked_angles_are_divided_but_walk_on_undivided() -> None:
    divisors = np.array([2.0, 4.0, 8.0])
    plain, divided = (walked_angles(np.array([7.0]), 1e4, 6, d) for d in (np.ones(3), divisors))
    assert np.array_equal(divided, plain / divisors)


def test_attention_is_the_plain_loop() -> None:
    n, n_head, n_head_kv, width = 6, 4, 2, 3
    q, k = RNG.normal(size=(n, n_head, 5)), RNG.normal(size=(n, n_head_kv, 5))
    v = RNG.normal(size=(n, n_head_kv, width))
    expected = np.zeros((n, n_head, width))
    for row in range(n):
        for head in range(n_head):
            score = [float(q[row, head] @ k[past, head // 2]) / 5**0.5 for past in range(row + 1)]
            weight = np.exp(score) / np.sum(np.exp(score))
            expected[row, head] = sum(w * v[past, head // 2] for past, w in enumerate(weight))
    assert attention(q, k, v) == pytest.approx(expected.reshape(n, -1), rel=1e-12, abs=1e-14)
    assert np.isfinite(attention(q * 1e6, k, v)).all(), "the largest score is taken off before the exponential"


def test_swiglu_keeps_its_limits() -> None:
    gate = np.array([-1e4, -1.0, 0.0, 1.0, 1e4])
    expected = np.array([0.0, -1 / (1 + np.e), 0.0, np.e / (1 + np.e), 1e4])
    assert swiglu(gate, np.full(5, 2.0)) == pytest.approx(2.0 * expected, rel=1e-15)


def test_linear_in_panels_is_the_whole_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = ModelFile(build("qwen2", "Q4_K_M", tmp_path / "m.gguf", QWEN2)).tensors
    weight, bias = tensors["blk.1.attn_q.weight"], tensors["blk.1.attn_q.bias"]
    x = RNG.normal(size=(3, 256))
    expected = x @ weight.dequantize().astype(np.float64).T + bias.dequantize()
    monkeypatch.setattr("parity_lib.engines.oracle.engine.PANEL", 256 * 7)
    assert linear(weight, x, bias=bias) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("arch", "shape"), [("llama", LLAMA), ("qwen2", QWEN2)])
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_K_M"])
def test_llama_cpp_on_the_twin_is_close(arch: str, shape: Shape, quant: str, tmp_path: Path, target: str) -> None:
    """The oracle reads the quantised file, llama.cpp its F32 twin: dequantisation is part of what agrees."""
    path = build(arch, quant, tmp_path / "m.gguf", shape)
    quantize_file(path, tmp_path / "twin.gguf", "F32")
    tokens = sequences(shape.n_vocab, 40, 1, 17)
    expected = score64(path, tokens, tmp_path)
    kwargs = {"path": str(tmp_path / "twin.gguf"), "settings": "strict", "isa": target, "n_threads": 1}
    with Worker("llama_cpp", kwargs, env=worker_env(Settings.STRICT)) as reference:
        reference.call("score", tokens, tmp_path / "rows.f32")
    found = np.fromfile(tmp_path / "rows.f32", "<f4").reshape(expected.shape)
    error = np.sqrt(np.mean((found - expected) ** 2, axis=1)) / expected.std(axis=1)
    assert error.max() < 1e-6  # measured 3e-7
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))


def test_both_rope_conventions_are_one_model(tmp_path: Path) -> None:
    """A llama file's Q and K rows, re-ordered from adjacent pairs to half-split, with zero biases, are a qwen2 file."""
    shape = Shape(n_layer=2, n_head=4, n_head_kv=2, key_length=64, n_vocab=512)
    source = build("llama", "F32", tmp_path / "llama.gguf", shape)
    change: dict[str, np.ndarray] = {}
    for name, tensor in ModelFile(source).tensors.items():
        if "attn_q" in name or "attn_k" in name:
            rows = tensor.dequantize().reshape(-1, shape.key_length // 2, 2, shape.n_embd)
            change[name] = rows.swapaxes(1, 2).reshape(tensor.shape)
        if any(part in name for part in ("attn_q", "attn_k", "attn_v")):
            change[name.replace("weight", "bias")] = np.zeros(tensor.shape[0])
    target = rewrite(source, tmp_path / "qwen2.gguf", "qwen2", change)
    tokens = sequences(shape.n_vocab, 50)
    assert score64(target, tokens, tmp_path) == pytest.approx(score64(source, tokens, tmp_path), rel=0, abs=1e-12)


def test_tied_output_is_the_embedding(tmp_path: Path) -> None:
    tied = build("llama", "F32", tmp_path / "tied.gguf", Shape(n_layer=1, n_vocab=512, tied=1))
    embedding = ModelFile(tied).tensors["token_embd.weight"].dequantize()
    untied = rewrite(tied, tmp_path / "untied.gguf", "llama", {"output.weight": embedding})
    tokens = sequences(512, 9)
    assert "output.weight" not in ModelFile(tied).tensors
    assert np.array_equal(score64(tied, tokens, tmp_path), score64(untied, tokens, tmp_path))


@pytest.mark.parametrize("bias", ["q", "k", "v"])
def test_each_bias_matters(bias: str, tmp_path: Path) -> None:
    source = build("qwen2", "F32", tmp_path / "m.gguf", QWEN2)
    name = f"blk.0.attn_{bias}.bias"
    zero = {name: np.zeros(ModelFile(source).tensors[name].shape)}
    tokens = sequences(512, 12)
    dropped = score64(rewrite(source, tmp_path / "dropped.gguf", "qwen2", zero), tokens, tmp_path)
    assert np.abs(dropped - score64(source, tokens, tmp_path)).max() > 1e-2


def test_a_sequence_does_not_depend_on_the_others(tmp_path: Path) -> None:
    path = build("llama", "Q8_0", tmp_path / "m.gguf", LLAMA)
    tokens = sequences(512, 12, 5, 30)
    together = np.split(score64(path, tokens, tmp_path), [12, 17])
    for one, rows in zip(tokens, together, strict=True):
        assert score64(path, [one], tmp_path) == pytest.approx(rows, rel=0, abs=1e-12)
    prefix = score64(path, [tokens[2][:10]], tmp_path)
    assert prefix == pytest.approx(together[2][:10], rel=0, abs=1e-12)  # causal: later tokens change nothing


def test_float32_rows_are_the_float64_rows_rounded_once(tmp_path: Path) -> None:
    path, tokens = build("llama", "Q8_0", tmp_path / "m.gguf", LLAMA), sequences(512, 6)
    exact = score64(path, tokens, tmp_path)
    calls: list[tuple[int, int]] = []
    Oracle(path).score(tokens, tmp_path / "rows.f32", progress=lambda done, total: calls.append((done, total)))
    assert np.array_equal(np.fromfile(tmp_path / "rows.f32", "<f4"), exact.astype(np.float32).ravel())
    assert calls[-1] == (6, 6)
    assert calls == sorted(calls)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "rows.f32", "rows.f64"], "no part is left"


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        ([], "no sequence was given"),
        ([[1], []], "sequence 1"),
        ([[512]], "0 to 511"),
        ([[-1]], "0 to 511"),
        ([[0] * 9], "1 to 8"),
    ],
)
def test_bad_sequences_are_refused(tokens: list[list[int]], word: str, tmp_path: Path) -> None:
    path = build("llama", "Q8_0", tmp_path / "m.gguf", Shape(n_layer=1, n_vocab=512, n_ctx_train=8))
    with pytest.raises(EngineError, match=word):
        Oracle(path).score(tokens, tmp_path / "rows.f32", progress=quiet)
    assert not (tmp_path / "rows.f32").exists()


def test_a_spool_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = build("llama", "Q8_0", tmp_path / "m.gguf", Shape(n_layer=1, n_vocab=512))
    with pytest.raises(EngineError, match=r"m\.gguf"):
        Oracle(path).score([[1]], path / "rows.f32", progress=quiet)


def test_run_info_and_closing(tmp_path: Path) -> None:
    path = build("qwen2", "Q8_0", tmp_path / "m.gguf", QWEN2)
    with Worker("oracle", {"path": str(path), "n_threads": 1}) as worker:
        info = worker.call("run_info")
        assert (info.engine, info.compute, info.model_path, info.n_threads) == ("oracle", "f64", "m.gguf", 1)
        assert len(info.model_sha256) == 64
        assert worker.call("n_vocab") == 512
    oracle = Oracle(path)
    oracle.close()
    with pytest.raises(EngineError, match="closed"):
        oracle.score([[1]], tmp_path / "rows.f32", progress=quiet)
    with pytest.raises(ModelFileError, match=r"absent\.gguf"):
        Oracle(tmp_path / "absent.gguf")


def test_unknown_angles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown angles"):
        Oracle(tmp_path / "m.gguf", angles="rough")
