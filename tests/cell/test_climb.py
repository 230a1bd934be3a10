"""Each step of a cell made to fail for real: the rungs that do not need it are judged, and the status follows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from parity_lib.base.names import Outcome, Rung
from parity_lib.base.progress import CellProgress, Progress
from parity_lib.cell import reference_cache, steps, t7_isa
from parity_lib.cell import request as cell_request
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.steps import CellRequest, Failed, run_cell
from parity_lib.cli.app import main
from parity_lib.engines.worker import client
from parity_lib.model_file.facts import read_tensors
from parity_lib.night.plan import PlanCell
from parity_lib.night.verdict_check import sound_verdict
from parity_lib.records import store
from parity_lib.records.verdicts import Verdict
from tests.shared import isa_outcome, reference_kept_in
from tests.speaking_model import byte_level, scored, speaking_model, words_of

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
UNKNOWN = "chatglm-bpe"  # a pre-tokenizer that llama.cpp knows and this project does not rebuild
Happens = Callable[[], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a vocabulary that T1 can rebuild."""
    return speaking_model(tmp_path_factory.mktemp("model") / "speaking.gguf", byte_level("smollm"))


SOUND = dict.fromkeys(map(str, Rung), Outcome.PARITY) | {"T7": isa_outcome()}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A cache of the reference of this module's own, filled by a cell in which nothing fails."""
    folder = tmp_path_factory.mktemp("traces")
    with reference_kept_in(folder):
        verdict = run_cell(request(model, tmp_path_factory.mktemp("sound")))
        assert {str(rung.rung): rung.outcome for rung in verdict.rungs} == SOUND
        yield folder


def request(model: Path, folder: Path, **wishes: str | bool) -> CellRequest:
    return CellRequest(model=str(model), prompts=str(PROMPTS), out_dir=folder, n_threads=1, **wishes)


def kill_workers() -> None:
    """Kill the engines of this process, if any runs now: they run in worker processes, its children."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and client.SERVER.encode() in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def at_step(monkeypatch: pytest.MonkeyPatch, name: str, happens: Happens) -> None:
    """Let something happen when a cell comes to a step: as it begins, and at its progress."""

    class Watched(CellProgress):
        def step(self, own: str) -> Progress:
            show = super().step(own)
            if own != name:
                return show

            def callback(done: int, total: int) -> None:
                happens()
                show(done, total)

            happens()  # some steps are named before their engine runs: then it happens at the first progress
            return callback

    monkeypatch.setattr(cell_request, "CellProgress", Watched)


def lost(verdict: Verdict) -> set[str]:
    """Return the rungs that could not be judged; every other one has to be as in a sound cell."""
    outcomes = {str(rung.rung): rung.outcome for rung in verdict.rungs}
    rest = {rung: outcome for rung, outcome in outcomes.items() if outcome is not Outcome.INCOMPLETE}
    assert rest.items() <= SOUND.items()
    assert outcomes.keys() == SOUND.keys()
    return outcomes.keys() - rest.keys()


# progress at which the engine is killed -> what has to be computed again for that, the rungs lost, the step
KILLED = {
    "weights": ("", {"T2"}, "compare_weights"),
    "llama.cpp generates": ("fresh", {"T3", "T4", "T5", "T6", "T7"}, "capture_reference"),
    "llama.cpp scores the F32 twin": ("fresh", {"T4"}, "capture_twin"),
    "llama.cpp with noise, pass 1 of 4": ("limits", {"T4"}, "derive_limits"),
    "llama.cpp scores with its defaults": ("spread", {"T5"}, "capture_spread"),
    "burn scores": ("", {"T4", "T5", "T6", "T7"}, "capture_candidate"),
    "op by op, prompt 0, strict": ("", {"T3"}, "replay_ops"),
    "burn against itself": ("", {"T6"}, "check_self"),
}


@pytest.mark.parametrize("name", KILLED)
def test_engine_that_is_killed_in_one_step_takes_no_other_rung_with_it(
    name: str, model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, rungs, step = KILLED[name]
    kept = tmp_path / "traces"
    shutil.copytree(traces, kept)
    for entry in kept.glob(f"{again}-*"):
        shutil.rmtree(entry)
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: kept)
    at_step(monkeypatch, name, kill_workers)
    verdict = run_cell(request(model, tmp_path / "cell", fresh=again == "fresh"))
    assert verdict.outcome is Outcome.INCOMPLETE
    assert lost(verdict) == rungs
    assert len(verdict.causes) == len(rungs)
    first, *others = verdict.causes
    assert f": {step}: " in first
    assert "killed by SIGKILL" in first
    assert all(f"it needs {step}, which failed, see {min(rungs)}" in cause for cause in others)
    assert first in json.loads(verdict.lines()[0].partition("cause=")[2])
    stored = store.load_verdict(tmp_path / "cell")
    assert (stored.rungs, stored.causes) == (verdict.rungs, verdict.causes)
    assert not (tmp_path / "cell" / ".spool").exists()
    assert (tmp_path / "cell" / "twin.npz").exists() == ("T4" not in rungs)
    assert (tmp_path / "cell" / "native.npz").exists() == ("T5" not in rungs)
    assert verdict.measured.seconds[step] > 0


def test_isa_that_cannot_be_proved_leaves_the_other_rungs(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: tmp_path / "traces")
    monkeypatch.setattr(
        t7_isa, "open_llama", lambda cell, **named: open_llama(cell, **named | {"kind": "tests.cell.dying:Dying"})
    )
    verdict = run_cell(request(model, tmp_path / "cell"))
    assert (verdict.outcome, lost(verdict)) == (Outcome.INCOMPLETE, {"T7"})
    assert "T7 ISA: prove_isa: " in verdict.causes[0]
    assert "SIGABRT" in verdict.causes[0]


def test_tokenizer_that_cannot_be_rebuilt_costs_t1_alone(
    traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = speaking_model(tmp_path / "unknown.gguf", byte_level(UNKNOWN))
    words = ["run", str(path), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(tmp_path / "cell")]
    assert main(words) == 3
    verdict = store.load_verdict(tmp_path / "cell")
    assert (verdict.outcome, lost(verdict)) == (Outcome.INCOMPLETE, {"T1"})
    (cause,) = verdict.causes
    assert cause.startswith("T1 tokens: compare_tokens: ")
    assert UNKNOWN in cause
    assert f"cause={json.dumps(cause, ensure_ascii=False)}" in capsys.readouterr().out
    fault = ["--fault", "swap_gate_up"]
    assert main([*words, *fault]) == 1  # a divergence is a fact, whatever else could not be judged
    verdict = store.load_verdict(tmp_path / "cell")
    assert verdict.outcome is Outcome.DIVERGED
    assert cause in verdict.causes


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_tokenizer_of_words_costs_t1_alone(kind: str, traces: Path, tmp_path: Path) -> None:
    path = speaking_model(tmp_path / "words.gguf", words_of(kind))
    verdict = run_cell(request(path, tmp_path / "cell"))
    assert (verdict.outcome, lost(verdict)) == (Outcome.INCOMPLETE, {"T1"})
    assert f"expected gpt2 or llama; found {kind}" in verdict.causes[0]


def test_sentencepiece_file_is_judged_on_every_rung(traces: Path, tmp_path: Path) -> None:
    path = speaking_model(tmp_path / "scored.gguf", scored())
    verdict = run_cell(request(path, tmp_path / "cell"))
    assert {str(rung.rung): rung.outcome for rung in verdict.rungs} == SOUND


def plan_cell(verdict: Verdict, fault: str) -> PlanCell:
    """Return what a plan says of a cell that has to be at parity, with a fault or without."""
    wanted = {name: getattr(verdict.cell, name) for name in ("model", "quant", "isa", "stack", "compute")}
    asked = {"notebook": "02_logits", "prompts": "", "required": True, "expect": "PARITY", "reason": "", "at": ""}
    return PlanCell(**wanted, **asked, fault=fault, control=False, limit_s=60, require_isa=False, where_possible=False)


def test_divergence_below_a_dead_reference_is_still_a_divergence(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped = tmp_path / "flipped.gguf"
    data = bytearray(model.read_bytes())
    data[read_tensors(model)["blk.1.ffn_down.weight"].offset + 5] ^= 0x40
    flipped.write_bytes(data)
    at_step(monkeypatch, "llama.cpp generates", kill_workers)
    since = datetime.now(UTC)
    verdict = run_cell(request(model, tmp_path / "cell", fresh=True, candidate_file=str(flipped)))
    assert verdict.outcome is Outcome.DIVERGED
    assert verdict.lowest_broken is not None
    assert verdict.lowest_broken.rung is Rung.T2
    assert [line.split()[0] for line in verdict.lines()] == ["DIVERGED"] + ["INCOMPLETE"] * 5
    pins = verdict.rung(Rung.T0)
    assert pins is not None
    assert pins.outcome is Outcome.PARITY
    assert "not checked, because a side has no rows: llama.cpp commit" in pins.note
    for fault, expected in (
        ("", (verdict, [])),
        ("eps_x10@all", (None, ["the verdict does not name the candidate that ran"])),
    ):
        plan = plan_cell(verdict, fault)
        assert sound_verdict(tmp_path / "cell", verdict.cell, plan, has_vocabulary=True, since=since) == expected


def test_error_outside_of_the_hierarchy_leaves_its_rung_incomplete_and_its_traceback_in_the_log(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("one by zero")

    kept = tmp_path / "traces"
    shutil.copytree(traces, kept, ignore=shutil.ignore_patterns("limits-*"))
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: kept)
    at_step(monkeypatch, "llama.cpp with noise, pass 1 of 4", fails)
    out = tmp_path / "cell"
    assert main(["run", str(model), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(out)]) == 3
    verdict = store.load_verdict(out)
    assert (verdict.outcome, lost(verdict)) == (Outcome.INCOMPLETE, {"T4"})
    log = out / "steps.log"
    assert verdict.causes == (
        f"T4 twin: derive_limits: ZeroDivisionError: one by zero; next: read the traceback in {log}",
    )
    assert 'raise ZeroDivisionError("one by zero")' in log.read_text()
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err


def test_ctrl_c_in_a_step_is_no_failure_of_the_step(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupts() -> None:
        raise KeyboardInterrupt

    at_step(monkeypatch, "burn scores", interrupts)
    with pytest.raises(KeyboardInterrupt):
        run_cell(request(model, tmp_path / "cell"))
    assert not (tmp_path / "cell" / store.VERDICT).exists()
    assert not (tmp_path / "cell" / ".spool").exists()


def test_cache_that_cannot_be_written_costs_no_rung(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: tmp_path / "taken" / "traces")
    verdict = run_cell(request(model, tmp_path / "cell"))
    assert (verdict.outcome, lost(verdict)) == (Outcome.PARITY, set())
    assert verdict.measured.cache.notes


def test_a_failed_step_passes_its_failure_on_to_what_needs_it(
    model: Path, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, "burn scores", kill_workers)
    climbed = steps.climb(steps.open_cell(request(model, tmp_path / "cell")))
    assert isinstance(climbed.candidate, Failed)
    assert climbed.candidate.step == "capture_candidate"
    assert climbed.itself == climbed.isa == climbed.candidate
    assert not any(isinstance(found, Failed) for found in (climbed.twin, climbed.limits, climbed.spread, climbed.ops))
