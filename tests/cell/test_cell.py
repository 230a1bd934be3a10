"""A cell step by step, both engines real, on a synthetic model: what each step hands on, and what an error leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.errors import EngineError, PinError, RecordError, UsageError, WorkerDied
from parity_lib.base.names import Outcome, Rung
from parity_lib.cell import rows as logits
from parity_lib.cell import steps, t0_pins
from parity_lib.cell.steps import Cell, Climbed, Failed, Judgement, Reference
from parity_lib.judge.again import rejudge
from parity_lib.records import store
from parity_lib.records.measured import EqualRows
from parity_lib.records.runs import burn
from parity_lib.records.traces import expected_positions
from parity_lib.records.verdicts import RungResult
from tests.shared import SoundCell, isa_outcome, link_tree, reference_kept_in

pytestmark = pytest.mark.slow

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()


class Captured(NamedTuple):
    """What the steps of one cell found."""

    cell: Cell
    climbed: Climbed

    @property
    def reference(self) -> Reference:
        assert isinstance(self.climbed.reference, Reference)
        return self.climbed.reference

    @property
    def twin(self) -> logits.Rows:
        assert isinstance(self.climbed.twin, logits.Rows)
        return self.climbed.twin

    @property
    def candidate(self) -> logits.Rows:
        assert isinstance(self.climbed.candidate, logits.Rows)
        return self.climbed.candidate

    def judged(self, cell: Cell | None = None, **other: Any) -> Judgement:
        """Judge, with what some of the steps found replaced."""
        return steps.conclude(cell or self.cell, replace(self.climbed, **other))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sound_cell: SoundCell) -> Iterator[Path]:
    """A folder with the prompts; the reference's cache is one of this module's own, filled by a sound cell."""
    path = tmp_path_factory.mktemp("cell")
    (path / "prompts.toml").write_text(PROMPTS)
    with reference_kept_in(link_tree(sound_cell.traces, path / "traces")):
        yield path


def open_cell(folder: Path, name: str, **wishes: str) -> Cell:
    prompts = str(folder / "prompts.toml")
    wishes = {"model": "synthetic-llama", "quant": "Q8_0", "prompts": prompts, "out_dir": str(folder / name), **wishes}
    return steps.open_cell(n_threads=1, **wishes)


@pytest.fixture(scope="module")
def captured(sound_cell: SoundCell) -> Captured:
    return Captured(sound_cell.cell, sound_cell.climbed)


def test_reference_generates_what_was_asked_for_and_all_are_fed_the_same(captured: Captured) -> None:
    reference, twin, candidate = captured.reference, captured.twin, captured.candidate
    assert [len(tokens) for tokens in reference.generated] == [6, 5]
    expected = expected_positions(reference.prompt_lengths, [6, 5])
    for rows in (reference.rows, twin, candidate):
        assert rows.positions == expected
        assert np.array_equal(rows.fed_id, np.concatenate([np.array(s) for s in reference.sequences]))
    assert {rows.run.engine for rows in (reference.rows, twin)} == {"llama.cpp"}
    assert candidate.run.engine == "burn"


def test_greedy_tokens_are_the_largest_logits_of_the_rows(captured: Captured) -> None:
    reference = captured.reference
    rows, places = reference.rows.open(), reference.rows.positions
    for prompt, tokens in enumerate(reference.generated):
        chosen = [int(rows[i].argmax()) for i, p in enumerate(places) if p.prompt_idx == prompt and p.token_idx >= 0]
        assert chosen == list(tokens)


def test_judged_then_saved_then_read_again(captured: Captured) -> None:
    judgement = captured.judged()
    verdict, n = judgement.verdict, len(captured.twin.positions)
    assert verdict.outcome is Outcome.PARITY
    rungs = [Rung.T0, Rung.T2, Rung.T3, Rung.T4, Rung.T5, Rung.T6, Rung.T7]
    assert [rung.rung for rung in verdict.rungs] == rungs
    assert set(verdict.runs) == {"reference", "reference-twin", "candidate"}
    assert verdict.unpinned
    for name in (Rung.T4, Rung.T5):
        rung = verdict.rung(name)
        assert rung is not None
        assert rung.compared == rung.expected == n
    assert verdict.measured.native.all.positions == n
    assert verdict.measured.power.positions == sum(t.effective_positions for t in verdict.measured.text)
    strict = EqualRows(n, n)
    assert verdict.measured.itself.reference["prefill = decode, strict"] == strict
    assert verdict.measured.itself.reference["threads, strict"] == strict
    assert set(verdict.measured.itself.relations) == {"decode", "restored", "alone", "permuted", "threads"}
    assert verdict.measured.seconds["check_self"] > 0


def test_stored_cell_is_judged_again_without_an_engine(captured: Captured) -> None:
    cell = captured.cell
    copy = replace(cell, out_dir=cell.out_dir / "copy")
    judgement = captured.judged()
    steps.save(copy, judgement)
    again = rejudge(copy.out_dir, copy.out_dir)
    assert again.outcome is Outcome.PARITY
    assert [again.rung(name) for name in (Rung.T4, Rung.T5)] == [
        judgement.verdict.rung(name) for name in (Rung.T4, Rung.T5)
    ]
    spread = copy.out_dir / store.SPREAD
    whole = json.loads(spread.read_text())
    for damage in ({"schema": "parity/spread/0"}, {"prompt_idx": "AAA"}, {"twin": {**whole["twin"], "rms": ""}}):
        spread.write_text(json.dumps(whole | damage))
        with pytest.raises(RecordError, match=r"spread\.json"):
            rejudge(copy.out_dir, copy.out_dir)
    spread.unlink()
    assert rejudge(copy.out_dir, copy.out_dir).outcome is Outcome.INCOMPLETE


def test_a_row_that_the_candidate_lost_makes_the_cell_incomplete_and_is_named(captured: Captured) -> None:
    candidate = captured.candidate
    n = len(candidate.positions)
    short = replace(candidate, positions=candidate.positions[: n - 1], fed_id=candidate.fed_id[: n - 1])
    verdict = captured.judged(candidate=short).verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    assert any("prompt 1 token 4" in cause for cause in verdict.causes)


LEFT_OUT = [("ops", "T3 ops"), ("spread", "T5 native"), ("itself", "T6 self"), ("isa", "T7 ISA")]


@pytest.mark.parametrize(("left_out", "cause"), LEFT_OUT)
def test_step_that_was_not_run_makes_the_cell_incomplete(captured: Captured, left_out: str, cause: str) -> None:
    verdict = captured.judged(**{left_out: None}).verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    assert verdict.causes == (f"{cause}: did not run",)


def test_tokens_are_compared_where_the_file_has_a_vocabulary_and_nowhere_else(captured: Captured) -> None:
    cell = captured.cell
    assert Rung.T1 not in steps.required_rungs(cell)
    assert steps.compare_tokens(cell) is None
    speaking = replace(cell, facts=replace(cell.facts, tokenizer="gpt2"))
    assert steps.required_rungs(speaking) == steps.REQUIRED
    verdict = captured.judged(cell=speaking).verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    assert verdict.causes == ("T1 tokens: did not run",)


@pytest.mark.parametrize(
    ("side", "change", "named"),
    [
        (0, {"commit": "0c1e571-dirty"}, "llama.cpp commit"),
        (0, {"kv_type": "f16"}, "llama.cpp settings"),
        (0, {"build": {"cmake_args": ("-DGGML_NATIVE=ON",)}}, "llama.cpp build flags"),
        (0, {"model_sha256": "0" * 64}, "llama.cpp read the model file"),
        (1, {"model_sha256": "0" * 64}, "llama.cpp read the F32 twin"),
        (2, {"model_sha256": "0" * 64}, "burn read the file"),
        (2, {"lock_sha256": "0" * 64}, "burn Cargo.lock"),
        (2, {"build": {"crates": {"burn-ndarray": "0.20.0"}}}, "burn crate burn-ndarray"),
        (2, {"machine_class": "another"}, "same machine"),
    ],
)
def test_engine_that_is_not_the_pinned_one_is_named(
    captured: Captured, side: int, change: dict[str, Any], named: str
) -> None:
    cell = captured.cell
    files = t0_pins.file_checks(cell)
    runs = {
        "reference": captured.reference.rows.run,
        "reference-twin": captured.twin.run,
        "candidate": captured.candidate.run,
    }
    assert t0_pins.judge_all(cell, files, runs).outcome is Outcome.PARITY
    name = list(runs)[side]
    change = {key: structs.replace(runs[name].build, **new) if key == "build" else new for key, new in change.items()}
    rung = t0_pins.judge_all(cell, files, {**runs, name: structs.replace(runs[name], **change)})
    assert rung.outcome is Outcome.INCOMPLETE
    assert named in rung.note


def test_pin_that_does_not_hold_leaves_a_record_and_judges_nothing(folder: Path) -> None:
    cell = open_cell(folder, "pins")
    assert cell.pin is not None
    wrong = replace(cell, pin=replace(cell.pin, tokenizer_sha256="0" * 64))
    with pytest.raises(PinError, match="tokenizer"):
        steps.check_pins(wrong)
    climbed = steps.climb(wrong)
    assert isinstance(climbed.pins, Failed)
    assert {field.name for field in fields(climbed) if getattr(climbed, field.name) is not None} == {"pins"}
    verdict = steps.save(wrong, steps.conclude(wrong, climbed))
    assert store.load_verdict(cell.out_dir) == verdict
    assert (verdict.outcome, verdict.rungs) == (Outcome.INCOMPLETE, ())
    assert "tokenizer" in verdict.causes[0]


def test_record_of_an_earlier_run_is_gone_before_anything_is_compared(folder: Path) -> None:
    cell = open_cell(folder, "again")
    store.save_verdict(steps.incomplete(cell, "an earlier run"), cell.out_dir)
    open_cell(folder, "again")
    with pytest.raises(RecordError):
        store.load_verdict(cell.out_dir)


def test_only_a_cell_with_a_fault_may_run_the_library_with_faults(captured: Captured) -> None:
    """T0 reads it off the features that the library was built with."""
    cell, run = captured.cell, burn(captured.candidate.run)
    assert run.build.library == "without faults"

    def judged(fault: str, features: str) -> RungResult:
        asked = replace(cell, request=replace(cell.request, fault=fault))
        runs = {
            t0_pins.REFERENCE: captured.reference.rows.run,
            t0_pins.TWIN: captured.twin.run,
            t0_pins.CANDIDATE: structs.replace(run, build=structs.replace(run.build, features=features)),
        }
        return t0_pins.judge_all(asked, steps.check_pins(cell), runs)

    features = run.build.features
    assert judged("", features).outcome is Outcome.PARITY
    assert judged("swap_gate_up", f"{features},faults").outcome is Outcome.PARITY
    for fault, found in (("", f"{features},faults"), ("swap_gate_up", features)):
        rung = judged(fault, found)
        assert rung.outcome is Outcome.INCOMPLETE
        assert f"burn library: expected {'with' if fault else 'without'} faults" in rung.note


def test_output_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "taken").write_text("a file")
    with pytest.raises(RecordError, match="taken"):
        open_cell(folder, "taken")


def test_engine_that_dies_is_an_error_of_its_step(folder: Path) -> None:
    cell = open_cell(folder, "dies", fault="die")
    reference = steps.capture_reference(cell)
    with pytest.raises(WorkerDied, match="SIGABRT"):
        steps.capture_candidate(cell, reference)
    assert "Fatal Python error: Aborted" in cell.log("burn").read_text()


def test_prompt_that_does_not_fit_is_named(folder: Path) -> None:
    long = folder / "long.toml"
    long.write_text(PROMPTS.replace("n_tokens = 5", "n_tokens = 500000"))
    cell = steps.open_cell(model="synthetic-llama", quant="Q8_0", prompts=str(long), out_dir=folder / "long")
    with pytest.raises(EngineError, match=r"prompt 1 \(second\).*does not fit"):
        steps.capture_reference(cell)


def test_cell_in_bf16_reports_end_to_end_and_is_held_to_itself(captured: Captured, folder: Path) -> None:
    cell = open_cell(folder, "bf16", compute="bf16")
    climbed = steps.climb(cell)
    verdict = steps.save(cell, steps.conclude(cell, climbed))
    assert verdict.outcome is Outcome.PARITY
    outcomes = {str(rung.rung): rung.outcome for rung in verdict.rungs}
    gated = dict.fromkeys(("T0", "T2", "T3", "T6"), Outcome.PARITY) | {"T7": isa_outcome()}
    assert outcomes == gated | dict.fromkeys(("T4", "T5"), Outcome.REPORTED)
    assert verdict.measured.bf16.band.all.rms_over_row_std > 1e-4
    assert isinstance(climbed.candidate, logits.Rows)
    assert isinstance(climbed.twin, logits.Rows)
    assert not np.array_equal(climbed.candidate.digests, captured.candidate.digests)
    assert verdict.runs["reference-bf16-twin"].model_sha256 != climbed.twin.run.model_sha256
    with pytest.raises(UsageError, match="no gate on its logits"):
        rejudge(cell.out_dir, cell.out_dir)


def test_cell_in_bf16_without_its_twin_is_incomplete(captured: Captured) -> None:
    cell = replace(captured.cell, id=structs.replace(captured.cell.id, compute="bf16"))
    verdict = captured.judged(cell=cell, spread=None).verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    assert verdict.causes == ("T4 twin: did not run",)
