"""The candidate's own capture: its logits are those of a plain run, and it replays on itself without an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.replay import BurnReplay
from parity_lib.engines.burn.taps import BurnTaps
from parity_lib.engines.node_file import NodeFile
from parity_lib.model_file.facts import read_facts
from parity_lib.models.synthetic import Shape, build

pytestmark = pytest.mark.engine

TOKENS = [(i * 37) % 501 + 1 for i in range(27)]
PASSES = [10, 15, 1, 1]
N_LAYER = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return build("qwen2", "Q8_0", folder / "model.gguf", Shape(n_layer=N_LAYER, n_vocab=512))


def silent(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("compute", ["f32", "ggml"])
def test_a_capture_has_the_logits_of_a_plain_run_and_every_op_of_it_replays_to_the_bit(
    compute: str, model: Path, target: str, tmp_path: Path
) -> None:
    with BurnTaps(model, target, compute=compute) as engine:
        engine.capture(TOKENS, PASSES, tmp_path / "all")
        engine.capture(TOKENS, PASSES, tmp_path / "late", watched=1, always=["l_out", "result_output"])
        engine.score([TOKENS], tmp_path / "plain.f32")
    every, late = NodeFile(tmp_path / "all"), NodeFile(tmp_path / "late")
    assert every.rows("result_output").tobytes() == (tmp_path / "plain.f32").read_bytes()
    expected = sites.expected(N_LAYER, read_facts(model).biases)
    assert sorted(expected) == every.left(0, []) == late.left(1, [])
    cached = [f"{name}-{layer}" for name in ("Kcur", "Vcur", "l_out") for layer in range(N_LAYER)]
    assert late.left(0, []) == sorted([*cached, "result_output"])
    assert every.get(1, "kq-1").shape == (4, 15, 32)  # heads, rows, keys up to a multiple of 32
    with BurnReplay(model, target, compute=compute) as engine:
        errors = engine.replay(tmp_path / "late", progress=silent)
    assert [error.site for error in errors] == 3 * expected
    assert {error.nmse for error in errors} == {0.0}


def test_another_arithmetic_is_seen_op_by_op(model: Path, target: str, tmp_path: Path) -> None:
    with BurnTaps(model, target, compute="ggml") as engine:
        engine.capture(TOKENS, PASSES, tmp_path)
    with BurnReplay(model, target, compute="f32") as engine:
        errors = engine.replay(tmp_path, progress=silent)
    over = {sites.table(error.site).op for error in errors if not error.share <= 1}
    assert over == {"MUL_MAT"}  # what rounds activations, and nothing else
    assert np.isfinite([error.nmse for error in errors]).all()


def test_what_cannot_be_captured_is_refused(model: Path, target: str, tmp_path: Path) -> None:
    with BurnTaps(model, target) as engine:
        for batches in ([26], [27, 0], [28, -1]):
            with pytest.raises(EngineError, match="the batches do not cut up the sequence"):
                engine.capture(TOKENS, batches, tmp_path)
    assert not (tmp_path / "nodes.json").exists()
