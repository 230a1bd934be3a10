"""The error split of every product of a real run: rounded activations explain llama.cpp, on every type of weight."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.names import Compute
from parity_lib.cell.request import open_cell
from parity_lib.cell.steps import Cell
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.worker.client import Worker
from parity_lib.faults import file_edits
from parity_lib.judge.error_split import ErrorSplit
from parity_lib.model_file.facts import read_tensors
from parity_lib.models.synthetic import Shape, build
from parity_lib.trace.deployed import split_errors

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
TOKENS = [(i * 37) % 251 + 1 for i in range(22)]
TENSOR = "blk.2.ffn_down.weight"


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path]:
    """A model with a matrix of every type, captured: four rows that fill the cache, then sixteen, then two."""
    folder = tmp_path_factory.mktemp("split")
    path = build("llama", "MIXED", folder / "mixed.gguf", Shape(n_layer=11, n_vocab=256))
    cell = open_cell(model=str(path), prompts=str(PROMPTS), out_dir=str(folder / "out"), n_threads=1)
    asked = {"path": str(path), "isa": cell.sides.reference.isa, "settings": "strict", "n_threads": 1}
    with Worker("llama_taps", asked, env=worker_env("strict")) as engine:
        engine.call("capture", TOKENS, [4, 16, 1, 1], folder / "nodes", watched=1)
    return cell, folder / "nodes"


@pytest.fixture(scope="module")
def sound(captured: tuple[Cell, Path]) -> ErrorSplit:
    cell, nodes = captured
    return split_errors(cell, TOKENS, nodes, cell.model_path, Compute.GGML)


def test_every_product_is_split_and_rounding_explains_it(sound: ErrorSplit, captured: tuple[Cell, Path]) -> None:
    assert len(sound.products) == 7 * 11 + 1
    assert sound.differ == 0
    assert sound.n_positions == 16
    assert len({product.type for product in sound.products}) == 11
    for product in sound.products:
        rounding, sums = (np.sqrt(part / product.energy) for part in (product.activations, product.accumulation))
        assert sums < 2e-6, product
        if product.type == "F32":
            assert rounding == 0.0, product
        else:
            assert 1e-5 < rounding < 0.05, product
            assert sums < rounding / 50, product
    assert not (captured[1] / "split.f32").exists()


def test_the_kinds_stand_in_the_order_of_the_pass(sound: ErrorSplit) -> None:
    names = [kind.kind for kind in sound.kinds]
    assert names[:4] == ["Qcur.MUL_MAT", "Kcur.MUL_MAT", "Vcur.MUL_MAT", "attn_out"]
    assert names[4:] == ["ffn_gate", "ffn_up", "ffn_out", "result_output"]
    assert all(kind.n == 11 for kind in sound.kinds[:-1])
    assert all(kind.total >= kind.accumulation for kind in sound.kinds)


def test_switching_the_policy_explains_most_of_the_logits(sound: ErrorSplit) -> None:
    logits = sound.logits
    assert logits is not None
    assert (logits.rounded, logits.n_positions) == ("ggml", 18)
    assert 0 < logits.rounded_to_reference < logits.plain_to_reference
    assert logits.plain_to_rounded > 1e-4


def test_a_wrong_block_is_counted_as_dequantised_otherwise(
    captured: tuple[Cell, Path], sound: ErrorSplit, tmp_path: Path
) -> None:
    cell, nodes = captured
    other = Path(shutil.copyfile(cell.model_path, tmp_path / "other.gguf"))
    with file_edits.edited(other, read_tensors(other)[TENSOR], "zero_row", 7):
        changed = replace(cell, candidate_path=other)
        found = split_errors(changed, TOKENS, nodes, cell.model_path, Compute.GGML)
    [product] = [product for product in found.products if product.differ]
    assert product.site == "ffn_out-2"
    assert 500 < product.differ <= 512  # a row; a weight that was zero stays what it was
    before = next(one for one in sound.products if one.site == product.site)
    assert (product.activations, product.accumulation) == (before.activations, before.accumulation)


def test_a_bf16_twin_is_no_other_dequantisation(tmp_path: Path) -> None:
    shape = Shape(n_layer=1, n_vocab=256)
    plain, twin = (build("llama", kind, tmp_path / f"{kind}.gguf", shape) for kind in ("F32", "BF16"))
    cell = open_cell(model=str(plain), prompts=str(PROMPTS), out_dir=str(tmp_path / "out"), n_threads=1)
    asked = {"path": str(twin), "isa": cell.sides.reference.isa, "settings": "strict", "n_threads": 1}
    with Worker("llama_taps", asked, env=worker_env("strict")) as engine:
        engine.call("capture", TOKENS, [20, 2], tmp_path / "nodes")
    found = split_errors(cell, TOKENS, tmp_path / "nodes", twin, Compute.BF16)
    assert found.differ == 0
    assert {kind.types for kind in found.kinds} == {("BF16",)}
    assert found.logits is not None
    assert found.logits.rounded_to_reference < found.logits.plain_to_reference


def test_a_logit_that_is_not_finite_leaves_the_products(captured: tuple[Cell, Path]) -> None:
    cell, nodes = captured
    broken = replace(cell, request=replace(cell.request, fault="nan@blk.3"))
    found = split_errors(broken, TOKENS, nodes, cell.model_path, Compute.GGML)
    assert found.logits is None
    assert found.differ == 0
