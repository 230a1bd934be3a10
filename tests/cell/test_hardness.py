"""How far a capture's scores and residuals reach: masked, scaled, placed, and joined over captures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.names import Settings
from parity_lib.cell import steps
from parity_lib.cell.hardness import bias_norms, join, reach
from parity_lib.cell.t3_replay import excerpt, replay
from parity_lib.engines.node_file import INDEX, VALUES, NodeFile
from parity_lib.model_file.facts import ModelFacts, read_facts
from parity_lib.model_file.header import ModelFile
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.hardness import Extreme, load_known
from parity_lib.records.traces import F32


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    return ModelFile(build("qwen2", "Q8_0", tmp_path_factory.mktemp("hard") / "m.gguf", Shape(n_layer=1, n_vocab=256)))


@pytest.fixture(scope="module")
def facts(file: ModelFile) -> ModelFacts:
    return replace(read_facts(file.path), n_layer=1, n_head=2, key_length=4)


def capture(folder: Path, kq: F32, **residuals: F32) -> NodeFile:
    """Write a capture of five tokens: two only fill the cache, three are observed in one pass."""
    nodes, values, offset = [], [], 0
    empty = np.zeros((3, 8), np.float32)
    for site, array in {"kq-0": kq, "ffn_inp-0": empty, "l_out-0": empty, **residuals}.items():
        nodes.append({"site": site, "op": "", "batch": 1, "shape": array.shape, "offset": offset, "buffer": ""})
        values.append(array.astype("<f4").ravel())
        offset += array.size
    index = {"tokens": [1] * 5, "batches": [2, 3], "watched": 1, "write_seconds": 0.0, "nodes": nodes}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / VALUES).write_bytes(np.concatenate(values).tobytes())
    return NodeFile(folder)


def test_scores_are_scaled_and_only_what_the_mask_lets_through(tmp_path: Path, facts: ModelFacts) -> None:
    kq = np.zeros((2, 3, 32), np.float32)
    kq[1, 0, :3] = (10.0, -30.0, 20.0)  # position 2 sees keys 0 to 2
    kq[1, 0, 3] = 1e9  # hidden
    kq[0, 2, 4] = 46.0  # position 4 sees itself; the keys before are 0
    found = reach(capture(tmp_path, kq), facts, prompt_idx=7, n_prompt=3)
    assert found["score"] == Extreme(23.0, "kq-0", 7, 4 - 2, 0)  # over the root of 4
    assert found["depth"] == Extreme(-25.0, "kq-0", 7, 2 - 2, 1)


def test_values_that_are_not_finite_are_left_out(tmp_path: Path, facts: ModelFacts) -> None:
    kq = np.full((2, 3, 32), np.nan, np.float32)
    kq[0, 1, 0] = -6.0
    out = np.full((3, 8), np.inf, np.float32)
    out[2, 5] = -4.5
    found = reach(capture(tmp_path, kq, **{"l_out-0": out}), facts, prompt_idx=0, n_prompt=1)
    assert found["score"] == Extreme(-3.0, "kq-0", 0, 3, 0)
    assert found["depth"].value == 0
    assert found["residual"] == Extreme(-4.5, "l_out-0", 0, 4, None)


def test_the_farthest_of_several_captures_is_kept(tmp_path: Path, facts: ModelFacts) -> None:
    near = {name: Extreme(-1.0, "kq-0", 0, 0) for name in ("score", "depth", "residual")}
    far = near | {"depth": Extreme(-2.0, "kq-0", 3, 5)}
    hard = join([near, far], 6, {})
    assert hard is not None
    assert (hard.depth.prompt_idx, hard.score.prompt_idx, hard.rows) == (3, 0, 6)
    assert join([], 0, {}) is None


def test_biases_are_measured_by_their_norms(file: ModelFile) -> None:
    names = read_facts(file.path).biases
    found = bias_norms(file, names)
    assert set(found) == {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
    values = file.tensors["blk.0.attn_k.bias"].dequantize()
    assert found["attn_k.bias"].largest == pytest.approx(float(np.sqrt((values.astype(np.float64) ** 2).sum())))
    assert found["attn_k.bias"].tensor == "blk.0.attn_k.bias"
    assert bias_norms(file, ()) == {}


@pytest.mark.engine
@pytest.mark.slow
def test_the_known_model_reaches_what_is_written_of_it(tmp_path: Path) -> None:
    known = load_known()["smollm2-135m"]
    cell = steps.open_cell(model=known.model, quant=known.quant, out_dir=tmp_path)
    reference = steps.capture_reference(cell)
    found = replay(cell, [excerpt(cell, reference, number) for number in (5, 10)], Settings.STRICT)
    hard = join([one.reach for one in found], 0, {})
    assert hard is not None
    reached = [hard.score.value, hard.depth.value, hard.residual.value]
    assert reached == pytest.approx([known.score, known.depth, known.residual], rel=0.02)  # 8-bit activations, by ISA
