"""T6 through the real candidate: which rows are made again, that they are equal, and that each way can be red alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_lib.base.names import Kind, Outcome
from parity_lib.cell import rows as logits
from parity_lib.cell.rows import Rows
from parity_lib.cell.t6_self import DECODED, KEY_BLOCK, check, make_plan
from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t6_self import RELATIONS
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.engine

LENGTHS = [12, 45, 100, 3]
PROMPT_LENGTHS = [7, 40, 60, 2]
SEQUENCES = [np.random.default_rng(i).integers(0, 500, n).tolist() for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("consistency")
    shape = Shape(n_layer=2, n_vocab=512, n_ctx_train=1024)
    path = build("llama", "Q8_0", folder / "tiny.gguf", shape)
    return {"path": str(path), "isa": str(host_target(load_pins().llama_cpp)), "n_threads": 1}


@pytest.fixture(scope="module")
def forced(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Rows]]:
    """A sound candidate, and the rows of its teacher-forced pass."""
    folder = tmp_path_factory.mktemp("forced")
    with Worker("burn", settings) as burn:
        yield burn, teacher_forced_pass(burn, folder / "candidate.f32")


def teacher_forced_pass(burn: Worker, spool: Path) -> Rows:
    counts = burn.call("score", SEQUENCES, spool)
    return logits.delivered(burn.call("run_info"), spool, burn.call("n_vocab"), SEQUENCES, PROMPT_LENGTHS, counts)


def checked(burn: Worker, rows: Rows, folder: Path, **named: bool) -> Any:
    return check(burn, SEQUENCES, PROMPT_LENGTHS, LENGTHS, rows, folder=folder, progress=silent, **named)


def silent(done: int, total: int) -> None:
    """Show no progress."""


def test_every_prompt_is_decoded_across_the_end_of_a_block_of_keys() -> None:
    lengths = [72, 79, 217, 250, 141, 2062, 40, 33]
    for length, (start, stop) in zip(lengths, make_plan(lengths, 2).spans, strict=True):
        assert stop - start == DECODED
        assert any(row % KEY_BLOCK == 0 for row in range(start + 1, stop))
        assert stop > length - KEY_BLOCK - DECODED // 2


def test_a_long_prompt_is_decoded_across_every_end_in_turn_and_a_short_one_always_at_the_last() -> None:
    spans = [make_plan([250, 2062], 2, day=day).spans for day in range(64)]
    assert {short for short, _ in spans} == {(220, 228)}
    assert {start for _, (start, _) in spans} == {end - DECODED // 2 for end in range(32, 2062 - DECODED // 2, 32)}
    assert spans[0][1] == make_plan([2062], 2, day=64).spans[0] == (2044, 2052)


def test_prompts_that_are_too_short_for_that_are_decoded_as_far_as_they_go() -> None:
    plan = make_plan([5, 1, 20], 2)
    assert plan.spans == ((0, 5), (0, 1), (12, 20))
    assert plan.restore_at == 0


def test_subset_of_a_night_is_chosen_by_length_alone() -> None:
    lengths = [72, 79, 217, 250, 141, 106, 209, 195, 101, 78, 2062]
    plan = make_plan(lengths, 2)
    assert plan.alone == (0, 3)  # the shortest, and the longest of at most 256 rows
    assert plan.permuted == (0, 9, 1)
    assert plan.threads == (0, 9)
    assert plan.n_threads == 1
    assert make_plan(lengths, 1).n_threads == 2
    expected = plan.expected([20] * 11, lengths)
    assert {name: len(rows) for name, rows in expected.items()} == {
        "decode": 11 * 8,
        "restored": 11 * 4,
        "alone": 72 + 250,
        "permuted": 72 + 78 + 79,
        "threads": 72 + 78,
    }


def test_full_plan_is_every_row_on_every_way() -> None:
    lengths = [12, 45, 100]
    expected = make_plan(lengths, 2, full=True).expected([5, 5, 5], lengths)
    whole = {(i, row - 4) for i, length in enumerate(lengths) for row in range(length)}
    for name in ("decode", "alone", "permuted", "threads"):
        assert set(expected[name]) == whole
    assert len(expected["restored"]) == sum(lengths) - 3 * 6


def test_single_prompt_has_nothing_to_be_mixed_with() -> None:
    assert set(make_plan([50], 2).expected([5], [50])) == {"decode", "restored", "threads"}


@pytest.mark.parametrize("full", [False, True])
def test_rows_made_again_on_every_way_are_equal_to_the_bit(
    forced: tuple[Worker, Rows], tmp_path: Path, full: bool
) -> None:
    rung, divergences, measured = checked(*forced, tmp_path, full=full)
    assert rung.outcome is Outcome.PARITY
    assert rung.compared == rung.expected > 0
    assert divergences == []
    assert set(measured.relations) == set(RELATIONS)
    if full:
        assert measured.relations["decode"].equal == sum(LENGTHS) == measured.rows
    assert measured.threads == "1 and 2"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("relation", ["decode", "restored", "alone", "permuted", "threads"])
def test_each_way_can_be_red_while_the_teacher_forced_pass_is_right(
    settings: dict[str, Any], forced: tuple[Worker, Rows], tmp_path: Path, relation: str
) -> None:
    seeded = {"with_faults": relation in ("alone", "threads")}  # these compute with another weight by a seeded fault
    with Worker(f"tests.cell.inconsistent_burn:{relation.title()}", settings | seeded) as burn:
        rung, divergences, measured = checked(burn, teacher_forced_pass(burn, tmp_path / "rows.f32"), tmp_path)
    assert rung.outcome is Outcome.DIVERGED
    assert {d.kind for d in divergences} == {Kind.BITS}
    red = {d.where for d in divergences}
    assert red == ({"decode", "restored"} if relation == "decode" else {relation})
    counts = measured.relations[relation]
    assert counts.equal < counts.compared == counts.expected


def test_bit_of_one_row_of_the_teacher_forced_pass_is_found(forced: tuple[Worker, Rows], tmp_path: Path) -> None:
    burn, rows = forced
    spool = tmp_path / "flipped.f32"
    data = np.array(rows.open())
    at = rows.positions.index((2, 36))  # row 95 of the third prompt: right before the end of a block of keys
    data[at].view(np.uint32)[7] ^= 1
    data.tofile(spool)
    flipped = Rows(rows.run, spool, rows.n_vocab, rows.positions, rows.fed_id)
    rung, divergences, _ = checked(burn, flipped, tmp_path)
    assert rung.worst == 5.0  # the prompts are so short that each takes part in every relation
    assert [(d.where, d.prompt_idx, d.token_idx) for d in divergences] == [(name, 2, 36) for name in RELATIONS]


@pytest.mark.parametrize("fault", ["token_off=3", "nan@blk.0"])
def test_fault_that_depends_on_the_place_in_a_pass_is_red(settings: dict[str, Any], tmp_path: Path, fault: str) -> None:
    with Worker("burn", {**settings, "fault": fault}) as burn:
        rung, _, _ = checked(burn, teacher_forced_pass(burn, tmp_path / "rows.f32"), tmp_path)
    assert rung.outcome is Outcome.DIVERGED


def test_lost_row_is_incomplete_and_named(settings: dict[str, Any], tmp_path: Path) -> None:
    with Worker("burn", {**settings, "fault": "drop_row=0"}) as burn:
        rung, _, _ = checked(burn, teacher_forced_pass(burn, tmp_path / "rows.f32"), tmp_path)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "decode: 1 rows not in the teacher-forced pass: prompt 0 token 5" in rung.note
