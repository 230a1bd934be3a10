"""Observing changes nothing: both engines give the same bits with every site observed, with some, with none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import load
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import read_facts
from parity_lib.models.synthetic import Shape, build

pytestmark = pytest.mark.engine

TOKENS = [(i * 37) % 501 + 1 for i in range(27)]
PASSES = [25, 1, 1]
N_LAYER = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return build("qwen2", "Q4_K_M", folder / "model.gguf", Shape(n_layer=N_LAYER, n_vocab=512))


@pytest.mark.parametrize("settings", ["strict", "repacked"])
def test_the_references_logits_are_the_same_bits(settings: str, model: Path, target: str, tmp_path: Path) -> None:
    asked = {"path": str(model), "isa": target, "settings": settings, "n_threads": 2}
    with Worker("llama_cpp", asked, env=worker_env(settings)) as engine:
        engine.call("score", [TOKENS[:25]], tmp_path / "none.f32")
    with Worker("llama_taps", asked, env=worker_env(settings)) as engine:
        engine.call("score", [TOKENS[:25]], tmp_path / "before.f32")
        engine.call("capture", TOKENS, PASSES, tmp_path / "all")
        engine.call("capture", TOKENS, PASSES, tmp_path / "some", watched=3, always=["l_out-0", "result_output"])
    none = (tmp_path / "none.f32").read_bytes()
    assert (tmp_path / "before.f32").read_bytes() == none  # a callback that wants nothing
    every, some = NodeFile(tmp_path / "all"), NodeFile(tmp_path / "some")
    assert every.rows("result_output", 0, 25).tobytes() == none
    assert every.rows("result_output").tobytes() == some.rows("result_output").tobytes()
    assert every.rows("l_out-0").tobytes() == some.rows("l_out-0").tobytes()
    assert len(some.left(0, [])) < len(every.left(0, [])) == len(sites.expected(N_LAYER, read_facts(model).biases))


@pytest.mark.parametrize("policy", ["f32", "ggml", "bf16"])
def test_the_candidates_logits_are_the_same_bits(policy: str, model: Path) -> None:
    extension, _ = load("crates-io")
    loaded = extension.Model(model, policy, 2)
    names = sites.expected(N_LAYER, read_facts(model).biases)
    seen: list[str] = []

    def rows(start: int, stop: int) -> list[tuple[int, int]]:
        return [(0, token) for token in TOKENS[start:stop]]

    def run(**observed: object) -> bytes:
        session, parts, at = extension.Session(loaded, 1), [], 0
        for n in PASSES:
            parts.append(session.append(rows(at, at + n), **observed)[0])
            at += n
        return b"".join(parts)

    def read(site: str, _shape: list[int], _values: bytes) -> None:
        seen.append(site)

    def put_back(_site: str, _shape: list[int], values: bytes) -> bytes:
        return values

    none = run()
    assert np.isfinite(np.frombuffer(none, "<f4")).all()
    assert run(taps=names) == none
    assert run(taps=["l_out-0"]) == none
    assert run(observe=read) == none
    assert seen == names * len(PASSES)
    assert run(observe=put_back) == none


def test_a_file_that_cannot_be_written_is_named_and_leaves_no_index(model: Path, target: str, tmp_path: Path) -> None:
    asked = {"path": str(model), "isa": target, "settings": "strict", "n_threads": 1}
    with Worker("llama_taps", asked, env=worker_env("strict")) as engine:
        engine.call("capture", TOKENS[:4], [4], tmp_path)
        (tmp_path / "nodes.f32").unlink()
        (tmp_path / "nodes.f32").symlink_to("/dev/full")
        with pytest.raises(EngineError, match=r"nodes\.f32: the values of a capture cannot be written; found No space"):
            engine.call("capture", TOKENS[:4], [4], tmp_path)
    assert not (tmp_path / "nodes.json").exists()


def test_a_capture_keeps_the_keys_that_the_mask_shows_and_no_more(model: Path, target: str, tmp_path: Path) -> None:
    asked = {"path": str(model), "isa": target, "settings": "strict", "n_threads": 1}
    with Worker("llama_taps", asked, env=worker_env("strict")) as engine:
        engine.call("capture", [*TOKENS, *TOKENS], [25, 10, 19], tmp_path)
    nodes = NodeFile(tmp_path)
    shapes = [nodes.get(batch, "kq_soft_max-1").shape for batch in range(3)]
    assert shapes == [(4, 25, 32), (4, 10, 64), (4, 19, 64)]
    weights = nodes.get(1, "kq_soft_max-1")
    assert np.allclose(weights.sum(-1), 1, atol=1e-5)  # nothing was cut off that counts
    visible = np.arange(64) <= 25 + np.arange(10)[:, np.newaxis]
    assert (weights[:, ~visible] == 0).all()
