"""Two stacks of burn traced against each other, for real, on a small model: where they part, and whose error it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parity_lib import pages as show
from parity_lib.base.errors import UsageError
from parity_lib.base.names import Outcome
from parity_lib.cell import steps
from parity_lib.engines import sites
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.fork.build import build
from parity_lib.trace.deployed import NO_REPRODUCER
from parity_lib.trace.token import TokenTrace, trace_token
from tests.shared import PROMPTS, ThreeLayers, reference_kept_in

pytestmark = pytest.mark.slow

Trace = Callable[..., TokenTrace]


@pytest.fixture(scope="module")
def traced(three_layers: ThreeLayers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    """Trace a token of the model of three layers: stack, the stack in llama.cpp's place, seeded fault."""

    def trace(stack: str, against: str, fault: str = "") -> TokenTrace:
        out = tmp_path_factory.mktemp("out")
        asked = {"model": str(three_layers.cell.model_path), "prompts": str(PROMPTS), "n_threads": 1}
        cell = steps.open_cell(stack=stack, fault=fault, out_dir=str(out), **asked)
        return trace_token(cell, three_layers.reference, "first", 3, against=against)

    with reference_kept_in(three_layers.traces):
        yield trace


def test_a_stack_against_itself_differs_nowhere(traced: Trace) -> None:
    trace = traced(CRATES_IO, CRATES_IO)
    assert trace.native.outcome is trace.twin.outcome is Outcome.PARITY
    assert trace.native.compared == trace.native.expected == 3 * len(sites.expected(3, ()))
    errors = (*trace.ops.errors, *trace.twin_ops, *trace.followed.errors)
    assert {error.nmse for error in errors} == {0.0}
    assert trace.layers.total.max() == trace.native_layers.total.max() == 0.0
    assert trace.split.logits is not None
    assert trace.split.logits.rounded_to_reference == 0.0  # the other stack rounds activations as llama.cpp does
    assert (trace.names.reference, trace.names.candidate) == ("crates-io (reference)", "crates-io (candidate)")
    assert trace.runs["reference-twin"].engine == "burn"
    assert show.trace_conclusion(trace).outcome is Outcome.PARITY


def test_a_fault_is_found_at_its_op_on_the_other_stack_s_values(traced: Trace) -> None:
    trace = traced(CRATES_IO, CRATES_IO, "k_head_permuted@blk.1")
    over = [error.site for error in trace.ops.errors if not error.share <= 1]
    assert set(over) == {"Kcur.MUL_MAT-1"}
    assert trace.by_layer is not None
    assert trace.by_layer.share("layer 1") == pytest.approx(1, abs=1e-3)  # no rounding besides
    assert (trace.reproducer, trace.reproducer_lost) == (None, NO_REPRODUCER)
    assert not (Path(trace.cell.out_dir) / "reproducer").exists()
    found = show.trace_conclusion(trace)
    assert found.sentence.startswith("First over its limit: layer 1 `attn_k`, local error ")
    assert found.sentence.endswith("float64 oracle as crates-io (reference): crates-io (candidate)'s fault.")
    box = show.trace_box(trace, found)
    assert "burn on crates-io in llama.cpp's place; llama.cpp generated the tokens" in box.plain
    shown = [show.top_table(trace), show.layer_table(trace), show.native_blame(trace), show.split_table(trace)]
    text = " ".join(part.plain for part in shown)
    assert "llama.cpp" not in text
    assert "crates-io (candidate) / crates-io (reference)" in text
    assert "--against crates-io" in show.trace_commands(trace).plain


@pytest.mark.parametrize(("stack", "against"), [("poisoned", CRATES_IO), (CRATES_IO, "poisoned")])
def test_the_wrong_one_of_two_stacks_is_named_on_either_side(stack: str, against: str, traced: Trace) -> None:
    build("poisoned", "", lambda _: None)
    trace = traced(stack, against)
    wrong = {site for error in trace.ops.errors if not error.share <= 1 for site in [sites.split(error.site)[0]]}
    products = {site.name for site in sites.BLOCK if site.op == "MUL_MAT"} | {"kqv_out", "result_output"}
    assert wrong
    assert wrong <= products
    found = show.trace_conclusion(trace)
    assert found.outcome is Outcome.DIVERGED
    assert found.sentence.startswith("First over its limit: layer 0 `attn_q`, local error ")
    assert f"poisoned is {found.sentence.split('poisoned is ')[1].split(' ')[0]} times as far" in found.sentence
    assert found.sentence.endswith("times as far from the float64 oracle as crates-io: poisoned's fault.")
    box = show.trace_box(trace, found)
    assert f"burn on {against} in llama.cpp's place; llama.cpp generated the tokens" in box.plain
    shown = [show.top_table(trace), show.layer_table(trace), show.native_blame(trace), show.split_table(trace)]
    text = " ".join(part.plain for part in shown)
    assert "llama.cpp" not in text
    assert f"{stack} / {against}" in text
    drift = show.drift(show.traced_positions(trace), token=3)
    assert f"burn on {stack} against burn on {against} on " in drift.caption
    assert f"--against {against}" in show.trace_commands(trace).plain


def test_an_unknown_stack_is_a_usage_error(traced: Trace) -> None:
    with pytest.raises(UsageError, match="no-such-stack"):
        traced(CRATES_IO, "no-such-stack")
