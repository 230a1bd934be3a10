"""T3 through real engines: which rows are replayed, that all is inside, and what it takes to be red or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Kind, Outcome, Rung, Settings
from parity_lib.cell import steps
from parity_lib.cell import t3_replay as replaying
from parity_lib.cell.steps import Cell, Reference
from parity_lib.cell.t3_replay import PLAIN_BUFFERS, chosen, excerpt
from parity_lib.engines.llamacpp.settings import worker_env
from tests.shared import reference_kept_in

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
Opened = tuple[Cell, Reference]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A cell whose file has types that the ISA target re-orders, and what was generated from it."""
    folder = tmp_path_factory.mktemp("replay")
    with reference_kept_in(folder / "traces"):
        wishes = {"model": "synthetic-qwen2", "quant": "Q4_K_M", "prompts": str(PROMPTS), "out_dir": str(folder)}
        cell = steps.open_cell(n_threads=1, **wishes)
        yield cell, steps.capture_reference(cell)


def faulty(opened: Opened, fault: str) -> Cell:
    return replace(opened[0], request=replace(opened[0].request, fault=fault))


def test_every_op_of_both_prompts_is_inside_strict_and_repacked(opened: Opened) -> None:
    cell, reference = opened
    finding = steps.replay_ops(cell, reference)
    assert finding.rung.outcome is Outcome.PARITY
    told = finding.measured.ops
    assert [(one.prompt_idx, one.settings) for one in told.sequences] == [
        (0, Settings.STRICT),
        (1, Settings.STRICT),
        (0, Settings.REPACKED),
    ]
    assert all(one.passes[-2:] == (1, 1) and len(one.passes) == 3 for one in told.sequences)
    assert set(told.sequences[0].weights_in) <= PLAIN_BUFFERS < set(told.sequences[2].weights_in) | {"CPU"}
    n_sites = 22 * cell.facts.n_layer + 3
    assert finding.rung.compared == finding.rung.expected == 3 * 3 * n_sites
    assert sum(kind.ops for kind in told.kinds.values()) == finding.rung.compared
    assert not (cell.spools / "nodes").exists()
    hard = finding.measured.hardness
    assert hard.rows == sum(sum(one.passes) for one in told.sequences[:2])
    assert hard.depth.value < 0 < abs(hard.score.value) < abs(hard.residual.value) * 1000
    assert set(hard.biases) == {"attn_q.bias", "attn_k.bias", "attn_v.bias"}


def test_a_fault_is_red_and_its_first_line_names_op_layer_and_token(opened: Opened) -> None:
    finding = steps.replay_ops(faulty(opened, "norm_weight_1pct@blk.1"), opened[1])
    assert finding.rung.outcome is Outcome.DIVERGED
    first = finding.divergences[0]
    assert (first.rung, first.kind, first.where) == (Rung.T3, Kind.OP, "attn_norm-1")
    assert first.delta > 100 * first.limit > 0
    norm = finding.measured.ops.kinds["attn_norm prefill strict"]
    assert (norm.over, norm.site, norm.prompt_idx) == (2, "attn_norm-1", first.prompt_idx)


def test_an_engine_with_fewer_ops_leaves_the_rung_incomplete(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, reference = opened
    whole = replaying.replay(cell, [excerpt(cell, reference, 0)], Settings.STRICT)
    short = [replace(whole[0], errors=whole[0].errors[:-1])]
    monkeypatch.setattr(replaying, "replay", lambda *_: list(short))
    rung = replaying.replay_cell(cell, reference).rung
    assert rung.compared == rung.expected - 2  # one in each of the two calls
    assert rung.outcome is Outcome.PARITY  # so far; the missing ops make the cell incomplete


def test_weights_that_were_not_reordered_are_no_proof_of_the_reordered_path(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, reference = opened
    plain = worker_env(Settings.STRICT)
    monkeypatch.setattr(replaying, "PLAIN_BUFFERS", PLAIN_BUFFERS | {"CPU_REPACK"})
    assert plain == worker_env(Settings.REPACKED)
    with pytest.raises(EngineError, match="weights are not in the requested buffers"):
        replaying.replay(cell, [excerpt(cell, reference, 0)], Settings.REPACKED)


def test_the_second_prompt_changes_with_the_day_and_all_have_their_turn() -> None:
    assert [chosen(1, 5, full=False), chosen(2, 5, full=False)] == [(0,), (0, 1)]
    assert {chosen(11, day, full=False) for day in range(739000, 739010)} == {(0, n) for n in range(1, 11)}
    assert chosen(11, 0, full=True) == tuple(range(11))


def test_a_long_sequence_is_observed_in_its_last_rows(opened: Opened) -> None:
    cell, reference = opened
    long = replace(reference, prompts=((3,) * 2008, *reference.prompts[1:]))  # and 5 of the 6 generated ones
    part = excerpt(cell, long, 0)
    assert part.passes == (512, 512, 512, 221, 254, 1, 1)
    assert (part.n_fills, part.watched, sum(part.passes)) == (4, (254, 1, 1), 2013)
