"""The reference's graph, captured for real, and the candidate led through it: every op inside, every fault named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.replay import BurnReplay
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import read_facts
from parity_lib.models.synthetic import Shape, build
from parity_lib.numerics.op_error import OpError
from tests.field.inputs import scaled

pytestmark = pytest.mark.engine

TOKENS = [(i * 37) % 501 + 1 for i in range(42)]
PASSES = [40, 1, 1]
SHAPE = Shape(n_layer=3, n_vocab=512, n_ctx_train=1024)
STRETCHED: list[tuple[str, str, dict[str, int]]] = [
    ("llama, all biases", "llama", {"biases": 1}),
    ("llama, linear", "llama", {"linear": 4, "rope_freqs": 1}),
    ("llama, yarn", "llama", {"yarn": 4, "rope_freqs": 1}),
    ("qwen2, yarn", "qwen2", {"yarn": 16, "rope_base": 10_000}),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    kinds = (("llama", "Q8_0"), ("llama", "Q4_1"), ("llama", "F16"), ("qwen2", "Q4_K_M"), ("qwen2", "BF16"))
    made = {f"{arch} {kind}": build(arch, kind, folder / f"{arch}.{kind}.gguf", SHAPE) for arch, kind in kinds}
    for name, arch, more in STRETCHED:
        made[name] = build(arch, "Q8_0", folder / f"{name.replace(' ', '-')}.gguf", replace(SHAPE, **more))
    return made


def reference(path: Path, target: str, kind: str = "llama_taps", settings: str = "strict") -> Worker:
    asked = {"path": str(path), "isa": target, "settings": settings, "n_threads": 1}
    return Worker(kind, asked, env=worker_env(settings))


def replay(path: Path, target: str, folder: Path, fault: str | None = None, compute: str = "ggml") -> list[OpError]:
    asked = {"path": str(path), "isa": target, "compute": compute, "n_threads": 1, "fault": fault}
    with Worker("burn_replay", asked) as engine:
        errors: list[OpError] = engine.call("replay", folder)
    return errors


@pytest.fixture(scope="module")
def captures(models: dict[str, Path], target: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, path in models.items():
        folders[name] = tmp_path_factory.mktemp("capture")
        with reference(path, target) as engine:
            engine.call("capture", TOKENS, PASSES, folders[name])
    return folders


@pytest.fixture(scope="module")
def llama(models: dict[str, Path], captures: dict[str, Path]) -> tuple[Path, Path]:
    return models["llama Q8_0"], captures["llama Q8_0"]


def test_taps_change_no_bit_of_the_reference(models: dict[str, Path], target: str, tmp_path: Path) -> None:
    path = models["qwen2 Q4_K_M"]
    with reference(path, target, "llama_cpp") as engine:
        engine.call("score", [TOKENS], tmp_path / "plain.f32")
    with reference(path, target) as engine:
        engine.call("capture", TOKENS, PASSES, tmp_path / "nodes")
        engine.call("score", [TOKENS], tmp_path / "after.f32")
    index = json.loads((tmp_path / "nodes" / "nodes.json").read_text())
    captured = np.fromfile(tmp_path / "nodes" / "nodes.f32", "<f4")
    rows = [
        captured[node["offset"] : node["offset"] + int(np.prod(node["shape"]))]
        for node in index["nodes"]
        if node["site"] == "result_output"
    ]
    plain = np.fromfile(tmp_path / "plain.f32", np.uint32)
    assert np.array_equal(np.concatenate(rows).view(np.uint32), plain)
    assert np.array_equal(np.fromfile(tmp_path / "after.f32", np.uint32), plain)


@pytest.mark.parametrize(
    "name",
    ["llama Q8_0", "llama Q4_1", "llama F16", "qwen2 Q4_K_M", "qwen2 BF16", *(name for name, _, _ in STRETCHED)],
)
def test_every_op_is_right_on_the_references_own_inputs(
    name: str, models: dict[str, Path], captures: dict[str, Path], target: str
) -> None:
    errors = replay(models[name], target, captures[name])
    assert len(errors) == len(PASSES) * len(sites.expected(SHAPE.n_layer, read_facts(models[name]).biases))
    worst = max(errors, key=lambda error: error.share)
    assert worst.share < 1, worst
    assert sum(error.nmse > 0 for error in errors) > 50  # two implementations, not one


FAULTS = [
    ("llama", "token_off=7", "embd"),
    ("llama", "eps_x10@blk.1", "attn_norm-1"),
    ("llama", "norm_weight_1pct@blk.2", "attn_norm-2"),
    ("llama", "bf16_truncation", "Qcur.MUL_MAT-0"),
    ("llama", "k_head_permuted@blk.1", "Kcur.MUL_MAT-1"),
    ("llama", "rope_base=10001", "Qcur-0"),
    ("llama", "rope_off_by_one@from=20", "Qcur-0"),
    ("llama", "swapped_pairing", "Qcur-0"),
    ("llama", "kv_slot_stale", "kq-0"),
    ("llama", "softmax_scale=1.0001", "kq_soft_max-0"),
    ("llama", "swap_gate_up", "ffn_swiglu-0"),
    ("llama", "nan@blk.1", "l_out-1"),
    ("qwen2", "dropped_bias=q", "Qcur.ADD-0"),
    ("qwen2", "dropped_bias=k", "Kcur.ADD-0"),
    ("qwen2", "dropped_bias=v", "Vcur.ADD-0"),
    ("qwen2", "swapped_pairing", "Qcur-0"),
]


@pytest.mark.parametrize(("arch", "fault", "site"), FAULTS)
def test_a_fault_is_named_by_the_first_op_over_its_limit(
    arch: str, fault: str, site: str, models: dict[str, Path], captures: dict[str, Path], target: str
) -> None:
    name = {"llama": "llama Q8_0", "qwen2": "qwen2 Q4_K_M"}[arch]
    over = [error for error in replay(models[name], target, captures[name], fault) if not error.share <= 1]
    assert over
    assert over[0].site == site
    if fault == "rope_off_by_one@from=20":
        assert np.flatnonzero(over[0].by_position > 1e-9)[0] == 20


def test_a_plain_f32_engine_fails_where_the_reference_rounds(
    models: dict[str, Path], captures: dict[str, Path], target: str
) -> None:
    for name in ("llama Q8_0", "qwen2 BF16"):
        plain = replay(models[name], target, captures[name], compute="f32")
        over = [error for error in plain if not error.share <= 1]
        assert {error.op for error in over} == {"MUL_MAT"}
        assert over[0].site == "Qcur.MUL_MAT-0"
    bf16 = replay(models["qwen2 BF16"], target, captures["qwen2 BF16"], compute="bf16")
    assert max(error.share for error in bf16) < 1


def test_the_late_part_of_a_sequence_is_replayed_by_itself(
    llama: tuple[Path, Path], target: str, tmp_path: Path
) -> None:
    path, whole = llama
    with reference(path, target) as engine:
        engine.call("capture", TOKENS, [30, 10, 1, 1], tmp_path, watched=1)
    assert (tmp_path / "nodes.f32").stat().st_size < 0.5 * (whole / "nodes.f32").stat().st_size
    errors = replay(path, target, tmp_path)
    assert {error.first_position for error in errors} == {30, 40, 41}
    assert max(error.share for error in errors) < 1
    stale = replay(path, target, tmp_path, "rope_off_by_one@from=35")
    assert next(error for error in stale if not error.share <= 1).site == "Qcur-0"


def test_passes_that_do_not_cut_up_the_sequence_are_refused(
    models: dict[str, Path], target: str, tmp_path: Path
) -> None:
    with reference(models["llama Q8_0"], target) as engine:
        for batches in ([40, 1], [42, 0], [600]):
            with pytest.raises(EngineError, match="do not cut up"):
                engine.call("capture", TOKENS, batches, tmp_path)


def test_a_capture_that_lacks_a_site_or_has_one_more_is_refused(
    llama: tuple[Path, Path], target: str, tmp_path: Path
) -> None:
    path, whole = llama
    index = json.loads((whole / "nodes.json").read_text())
    (tmp_path / "nodes.f32").symlink_to(whole / "nodes.f32")
    lacking = [node for node in index["nodes"] if node["site"] != "ffn_up-1"]
    more = [*index["nodes"], index["nodes"][0] | {"site": "l_out-9"}]
    twice = [*index["nodes"], index["nodes"][0]]
    for nodes, words in ((lacking, "lacks a site.*ffn_up-1"), (more, "l_out-9"), (twice, "captured twice")):
        (tmp_path / "nodes.json").write_text(json.dumps(index | {"nodes": nodes}))
        with pytest.raises(EngineError, match=words):
            replay(path, target, tmp_path)


def test_one_weight_row_a_thousand_times_larger_is_inside(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, shape = {"blk.0.ffn_down.weight": 1000.0}, Shape(n_layer=1, n_vocab=512, n_ctx_train=1024)
    path = scaled(tmp_path, "large", large, shape=shape, rows=dict.fromkeys(large, 3))
    with reference(path, target) as engine:
        engine.call("capture", TOKENS, PASSES, tmp_path / "nodes")
    burn = BurnReplay(path, isa=target, compute="ggml", n_threads=1)
    found = burn.replay(tmp_path / "nodes", progress=lambda *_: None)
    monkeypatch.setattr(BurnReplay, "_summed", lambda *_: None)
    without = burn.replay(tmp_path / "nodes", progress=lambda *_: None)
    burn.close()
    assert max(error.share for error in found) <= 1
    assert max(error.share for error in without) > 4  # at some positions the large channel nearly cancels
