"""One token traced for real, both engines and the oracle, on a small model: seeded faults land where they were put."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Outcome
from parity_lib.cell import steps
from parity_lib.cell.place import find_place, watched_rows
from parity_lib.cell.steps import Cell, Reference
from parity_lib.engines import sites
from parity_lib.judge.blame import BURN_WORSE, EQUAL, LLAMA_WORSE
from parity_lib.trace.token import TokenTrace, trace_token
from tests.shared import PROMPTS, ThreeLayers, reference_kept_in

pytestmark = pytest.mark.slow

N_LAYER, TOKEN = 3, 3
Trace = Callable[..., TokenTrace]


@pytest.fixture(scope="module")
def cell(three_layers: ThreeLayers) -> Iterator[Cell]:
    """A cell on a model of three layers; the reference's cache is one of its own."""
    with reference_kept_in(three_layers.traces):
        yield three_layers.cell


@pytest.fixture(scope="module")
def reference(three_layers: ThreeLayers) -> Reference:
    return three_layers.reference


@pytest.fixture(scope="module")
def traced(three_layers: ThreeLayers) -> Trace:
    return three_layers.trace


@pytest.fixture(scope="module")
def sound(traced: Trace) -> TokenTrace:
    return traced()


def first_over(trace: TokenTrace) -> str:
    return next(error.site for error in trace.ops.errors if not error.share <= 1)


def test_a_sound_token_is_inside_everywhere_and_nobodys(sound: TokenTrace) -> None:
    assert sound.native.outcome is Outcome.PARITY
    n_sites = len(sites.expected(N_LAYER, ()))
    assert sound.native.compared == sound.native.expected == 3 * n_sites  # before the token, itself, after it
    assert sound.twin.outcome is Outcome.PARITY
    assert [error.site for error in sound.followed.errors] == sites.expected(N_LAYER, ())
    assert {blame.word for blame in sound.layers.blames} == {EQUAL}
    assert [blame.where for blame in sound.layers.blames] == ["layer 0", "layer 1", "layer 2", "logits"]
    assert sound.layers.pooled(len(sound.place.sequence)).max() < 1
    assert 0 < sound.layers.total.max() < 1e-5  # two engines, not one
    assert sound.own.sites == tuple(sites.expected(N_LAYER, ()))
    assert sound.own.parted == ()


def test_parts_of_layers_and_of_ops_sum_to_what_they_are_parts_of(sound: TokenTrace) -> None:
    row, token = sound.place.row, sound.delta_id
    top = {
        side: dict(zip(*(a[row].tolist() for a in (side.topk_ids, side.topk_logits)), strict=True))
        for side in (sound.pair.candidate, sound.pair.reference)
    }
    burn, llama = (top[side][token] for side in (sound.pair.candidate, sound.pair.reference))
    assert sound.by_layer is not None
    assert sound.by_op is not None
    assert sound.block is not None
    assert sound.by_layer.total == burn - llama
    assert len(sound.by_layer.parts) == N_LAYER + 3
    assert sound.by_op.total == sound.by_layer.parts[1 + sound.block].value
    assert len(sound.by_op.parts) == 19


def test_new_and_inherited_errors_of_a_sound_model_are_rounding(sound: TokenTrace) -> None:
    assert sound.entered is not None
    assert sound.entered.entered[0] == sound.entered.inherited[0] == 0.0  # nothing comes in with the embedding
    assert all(0 < new < 1e-6 for new in sound.entered.new)
    assert all(0 < came < 1e-5 for came in sound.entered.inherited[1:])


def test_nothing_of_the_trace_is_left_in_the_folder(sound: TokenTrace, cell: Cell) -> None:
    assert not cell.spools.exists()


@pytest.mark.parametrize(
    ("fault", "site", "op"),
    [
        ("norm_weight_1pct@blk.1", "attn_norm-1", "attn_norm"),
        ("eps_x10@blk.1", "attn_norm-1", "attn_norm"),
        ("k_head_permuted@blk.1", "Kcur.MUL_MAT-1", "Kcur.MUL_MAT"),
    ],
)
def test_a_fault_in_one_layer_has_its_delta_there(
    fault: str, site: str, op: str, traced: Trace, sound: TokenTrace
) -> None:
    trace = traced(fault)
    assert first_over(trace) == site
    assert trace.by_layer is not None
    assert trace.by_op is not None
    assert trace.block == 1
    assert trace.by_layer.share("layer 1") == pytest.approx(1, abs=0.1)
    # The wrong epsilon is in both norms of the block, the others are in one op.
    ops = [op, "ffn_norm"] if fault.startswith("eps") else [op]
    assert sum(trace.by_op.share(name) for name in ops) == pytest.approx(1, abs=0.1)
    words = [blame.word for blame in trace.layers.blames]
    assert words == [EQUAL, BURN_WORSE, BURN_WORSE, BURN_WORSE]
    assert (trace.layers.pooled(trace.place.row + 1) > 1).tolist() == [False, True, True, True]
    assert trace.entered is not None
    assert trace.entered.new[1] > 10 * max(trace.entered.new[0], trace.entered.new[2])
    assert trace.entered.inherited[2] > 10 * trace.entered.new[2]
    keys, healthy = (np.sqrt(t.followed.heads["Kcur"]) for t in (trace, sound))
    assert np.array_equal(keys[0], healthy[0])
    assert keys[1, 0].max() > 10 * healthy[1].max()
    if fault.startswith("k_head"):
        assert np.array_equal(keys[1, 1], healthy[1, 1])  # the other head is as it was


def test_a_reference_that_was_made_worse_is_blamed(cell: Cell, reference: Reference, tmp_path: Path) -> None:
    worse = tmp_path / "worse.gguf"
    shutil.copyfile(cell.twin_path, worse)
    reader = gguf.GGUFReader(worse, "r+")
    weight = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_norm.weight")
    weight.data[5] *= np.float32(1.01)
    reader.data.flush()
    trace = trace_token(replace(cell, twin_path=worse), reference, "first", TOKEN)
    assert trace.native.outcome is Outcome.PARITY  # the deployed file is as it was
    over = [error.site for error in trace.twin_ops if not error.share <= 1]
    assert over == ["ffn_norm-1"]
    assert [blame.word for blame in trace.layers.blames] == [EQUAL, LLAMA_WORSE, LLAMA_WORSE, LLAMA_WORSE]


def test_a_row_that_is_not_finite_is_traced_but_not_taken_apart(traced: Trace) -> None:
    trace = traced("nan@blk.1")
    assert first_over(trace) == "l_out-1"
    assert trace.layers.share[1:].max() == np.inf


def test_places(cell: Cell, reference: Reference) -> None:
    n_prompt = len(reference.prompts[1])
    place = find_place(cell, reference, "second", 1 - n_prompt)
    assert (place.row, place.prompt_idx, place.first) == (0, 1, 0)
    assert place.passes == (1, len(place.sequence) - 1)
    assert place.positions[0].token_idx == 1 - n_prompt
    last = find_place(cell, reference, 1, 4)
    assert last.passes == (len(last.sequence) - 1, 1)
    for token in (-n_prompt, 5):
        with pytest.raises(UsageError, match=f"no such token.*{1 - n_prompt} to 4"):
            find_place(cell, reference, 1, token)
    with pytest.raises(UsageError, match="unknown prompt"):
        find_place(cell, reference, "third", 0)


def test_a_long_sequence_is_watched_at_its_end_and_its_worst_block_is_captured_again(
    cell: Cell, tmp_path: Path
) -> None:
    assert watched_rows(cell.facts) == 256
    prompts = tmp_path / "long.toml"
    text = "0123456789abcdef " * 68  # made-up tokens, one for 4 bytes
    prompts.write_text(PROMPTS.read_text().replace("def fibonacci(n):", text))
    long = steps.open_cell(
        model=str(cell.model_path),
        prompts=str(prompts),
        out_dir=str(tmp_path / "out"),
        n_threads=1,
        fault="k_head_permuted@blk.2",
    )
    trace = trace_token(long, steps.capture_reference(long), "second", 1)
    assert len(trace.place.sequence) == 290
    assert trace.place.first == 290 - 256
    assert trace.place.passes == (34, 255, 1)
    assert trace.layers.share.shape == (N_LAYER + 1, 290)
    assert first_over(trace) == "Kcur.MUL_MAT-2"
    assert trace.by_layer is not None
    assert trace.by_op is not None
    assert trace.by_layer.share("layer 2") == pytest.approx(1, abs=0.1)
    assert trace.by_op.share("Kcur.MUL_MAT") == pytest.approx(1, abs=0.1)
