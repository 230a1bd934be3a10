"""A cell step by step, both engines real, on a synthetic model: what each step hands on, and what an error leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib import store
from parity_lib.capture import cell as steps
from parity_lib.capture import cell_pins, logits
from parity_lib.capture.cell import Cell, Reference
from parity_lib.errors import EngineError, PinError, RecordError, WorkerDied
from parity_lib.names import Outcome, Rung
from parity_lib.traces import expected_positions

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cell")
    (path / "prompts.toml").write_text(PROMPTS)
    return path


def open_cell(folder: Path, name: str, **wishes: str) -> Cell:
    prompts = str(folder / "prompts.toml")
    return steps.open_cell(model="synthetic-llama", quant="Q8_0", prompts=prompts, out_dir=folder / name, **wishes)


@pytest.fixture(scope="module")
def captured(folder: Path) -> tuple[Cell, Reference, logits.Rows, logits.Rows]:
    cell = open_cell(folder, "captured")
    reference = steps.capture_reference(cell)
    return cell, reference, steps.capture_twin(cell, reference), steps.capture_candidate(cell, reference)


Captured = tuple[Cell, Reference, logits.Rows, logits.Rows]


def test_reference_generates_what_was_asked_for_and_all_are_fed_the_same(captured: Captured) -> None:
    _, reference, twin, candidate = captured
    assert [len(tokens) for tokens in reference.generated] == [6, 5]
    expected = expected_positions(reference.prompt_lengths, [6, 5])
    for rows in (reference.rows, twin, candidate):
        assert rows.positions == expected
        assert np.array_equal(rows.fed_id, np.concatenate([np.array(s) for s in reference.sequences]))
    assert {rows.run.engine for rows in (reference.rows, twin)} == {"llama.cpp"}
    assert candidate.run.engine == "burn"


def test_greedy_tokens_are_the_largest_logits_of_the_rows(captured: Captured) -> None:
    _, reference, _, _ = captured
    rows, places = reference.rows.open(), reference.rows.positions
    for prompt, tokens in enumerate(reference.generated):
        chosen = [int(rows[i].argmax()) for i, p in enumerate(places) if p.prompt_idx == prompt and p.token_idx >= 0]
        assert chosen == list(tokens)


def test_judged_then_saved_then_read_again(captured: Captured) -> None:
    cell, reference, twin, candidate = captured
    judgement = steps.judge(cell, steps.check_pins(cell), steps.compare_weights(cell), reference, twin, candidate)
    verdict = judgement.verdict
    assert verdict.outcome is Outcome.PARITY
    assert [rung.rung for rung in verdict.rungs] == [Rung.T0, Rung.T2, Rung.T4, Rung.T5]
    assert set(verdict.runs) == {"reference", "reference-twin", "candidate"}
    assert verdict.unpinned
    assert verdict.rung(Rung.T4).expected == len(twin.positions)  # type: ignore[union-attr]
    assert verdict.literal["all"]["positions"] == len(twin.positions)


def test_a_row_that_the_candidate_lost_makes_the_cell_incomplete_and_is_named(captured: Captured) -> None:
    cell, reference, twin, candidate = captured
    n = len(candidate.positions)
    short = replace(candidate, positions=candidate.positions[: n - 1], fed_id=candidate.fed_id[: n - 1])
    judgement = steps.judge(cell, steps.check_pins(cell), steps.compare_weights(cell), reference, twin, short)
    assert judgement.verdict.outcome is Outcome.INCOMPLETE
    assert any("prompt 1 token 4" in cause for cause in judgement.verdict.causes)


@pytest.mark.parametrize(
    ("side", "change", "named"),
    [
        (0, {"commit": "0c1e571-dirty"}, "llama.cpp commit"),
        (0, {"kv_type": "f16"}, "llama.cpp settings"),
        (0, {"build": {"cmake_args": ["-DGGML_NATIVE=ON"]}}, "llama.cpp build flags"),
        (0, {"model_sha256": "0" * 64}, "llama.cpp read the model file"),
        (1, {"model_sha256": "0" * 64}, "llama.cpp read the F32 twin"),
        (2, {"model_sha256": "0" * 64}, "burn read the file"),
        (2, {"lock_sha256": "0" * 64}, "burn Cargo.lock"),
        (2, {"build": {"crates": {"burn-ndarray": "0.20.0"}}}, "burn crate burn-ndarray"),
        (2, {"machine_class": "another"}, "same machine"),
    ],
)
def test_engine_that_is_not_the_pinned_one_is_named(
    captured: Captured, side: int, change: dict[str, object], named: str
) -> None:
    cell, reference, twin, candidate = captured
    files = cell_pins.file_checks(cell)
    runs = [reference.rows.run, twin.run, candidate.run]
    assert cell_pins.judge_all(cell, files, *runs).outcome is Outcome.PARITY
    runs[side] = replace(runs[side], **change)
    rung = cell_pins.judge_all(cell, files, *runs)
    assert rung.outcome is Outcome.INCOMPLETE
    assert named in rung.note


def test_pin_that_does_not_hold_leaves_a_record_and_judges_nothing(folder: Path) -> None:
    cell = open_cell(folder, "pins")
    assert cell.pin is not None
    wrong = replace(cell, pin=replace(cell.pin, tokenizer_sha256="0" * 64))
    with pytest.raises(PinError, match="tokenizer"):
        steps.check_pins(wrong)
    verdict = store.load_verdict(cell.out_dir)
    assert verdict.outcome is Outcome.INCOMPLETE
    assert "tokenizer" in verdict.causes[0]


def test_record_of_an_earlier_run_is_gone_before_anything_is_compared(folder: Path) -> None:
    cell = open_cell(folder, "again")
    store.save_verdict(steps.incomplete(cell, "an earlier run"), cell.out_dir)
    open_cell(folder, "again")
    with pytest.raises(RecordError):
        store.load_verdict(cell.out_dir)


def test_output_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    with pytest.raises(RecordError, match="taken"):
        open_cell(folder, "taken")


def test_engine_that_dies_leaves_a_record_and_no_rows(folder: Path) -> None:
    cell = open_cell(folder, "dies", fault="die")
    reference = steps.capture_reference(cell)
    with pytest.raises(WorkerDied, match="SIGABRT"):
        steps.capture_candidate(cell, reference)
    verdict = store.load_verdict(cell.out_dir)
    assert verdict.outcome is Outcome.INCOMPLETE
    assert verdict.causes[0].startswith("capture_candidate: ")
    assert not cell.spools.exists()
    assert "Fatal Python error: Aborted" in cell.log("burn").read_text()


def test_prompt_that_does_not_fit_is_named(folder: Path) -> None:
    long = folder / "long.toml"
    long.write_text(PROMPTS.replace("n_tokens = 5", "n_tokens = 500000"))
    cell = steps.open_cell(model="synthetic-llama", quant="Q8_0", prompts=str(long), out_dir=folder / "long")
    with pytest.raises(EngineError, match=r"prompt 1 \(second\)"):
        steps.capture_reference(cell)
    assert "does not fit" in store.load_verdict(cell.out_dir).causes[0]
