"""Every fault is seeded for real, into both architectures: what has to catch it does, and the list is complete."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parity_lib.base.errors import EngineError, UsageError
from parity_lib.base.names import Outcome, Rung
from parity_lib.base.record import load_record
from parity_lib.cell import open_engines, steps
from parity_lib.cell.climbed import attempt
from parity_lib.cell.steps import Cell, CellRequest, Failed
from parity_lib.cli.app import main
from parity_lib.cli.faults import report_baseline
from parity_lib.engines.worker.client import Worker
from parity_lib.faults import two_libraries
from parity_lib.faults.judge import Kill, KillMatrix
from parity_lib.faults.matrix import FOLDER, KILLS, capture_baseline, seed_faults, stale_rows
from parity_lib.faults.two_libraries import LENGTHS, compare_libraries
from parity_lib.model_file.facts import read_tensors
from parity_lib.records import store
from parity_lib.records.traces import Position

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
LLAMA = ("swapped_pairing", "rope_off_by_one", "eps_x10@all", "stale_trace=prompt", "stale_trace=file")


def request(folder: Path, model: str = "synthetic-qwen2", **wishes: str) -> CellRequest:
    return CellRequest(model=model, quant="Q8_0", prompts=str(PROMPTS), out_dir=folder, n_threads=1, **wishes)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> tuple[KillMatrix, Path, list[Kill]]:
    """Seed every fault into the architecture that has biases."""
    folder = tmp_path_factory.mktemp("qwen2")
    said: list[Kill] = []
    return seed_faults(capture_baseline(request(folder)), said.append), folder, said


def kill_of(matrix: KillMatrix, fault: str) -> Kill:
    return next(kill for kill in matrix.kills if kill.fault == fault)


def test_every_fault_ends_as_it_has_to(qwen2: tuple[KillMatrix, Path, list[Kill]]) -> None:
    matrix, _, said = qwen2
    assert [(kill.fault, kill.problem) for kill in matrix.problems] == []
    assert [kill.fault for kill in matrix.survivors if not kill.blind] == []
    assert tuple(said) == matrix.kills
    assert len(matrix.kills) >= 20
    assert matrix.not_seeded == {}
    assert all(kill.line for kill in matrix.kills if not kill.survived)


def test_both_libraries_agreed_without_a_fault_before_any_was_seeded(
    qwen2: tuple[KillMatrix, Path, list[Kill]],
) -> None:
    assert qwen2[0].same_rows == 2 * sum(LENGTHS)


def test_no_fault_is_seeded_where_the_two_libraries_differ_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for such a library is one with a fault that is not asked for."""
    cell = steps.open_cell(request(tmp_path))

    def open_burn(cell: Cell, **other: Any) -> Worker:
        return open_engines.open_burn(cell, **other | ({"fault": "token_off=40"} if other["with_faults"] else {}))

    monkeypatch.setattr(two_libraries, "open_burn", open_burn)
    with pytest.raises(EngineError, match=r"other bits than the judged one.*expected 104 rows.*found 4\d of 104"):
        compare_libraries(cell)


def test_engine_faults_change_rows_and_name_their_place(qwen2: tuple[KillMatrix, Path, list[Kill]]) -> None:
    matrix, folder, _ = qwen2
    expected = store.load_verdict(folder).rung(Rung.T4).expected  # type: ignore[union-attr]
    assert matrix.positions == expected
    assert kill_of(matrix, "eps_x10@all").rows_changed == matrix.positions
    assert 0 < (kill_of(matrix, "token_off=2").rows_changed or 0) < matrix.positions
    for fault in ("die", "panic", "stale_spool=row"):
        assert kill_of(matrix, fault).rows_changed is None
    assert "SIGABRT" in kill_of(matrix, "die").line
    assert kill_of(matrix, "die").lowest == kill_of(matrix, "panic").lowest == "T3"  # each step says why it failed
    assert kill_of(matrix, "stale_trace=prompt").lowest == "T4"
    assert kill_of(matrix, "stale_trace=file").lowest == "T0"


def test_records_of_every_fault_stay_and_no_rows(qwen2: tuple[KillMatrix, Path, list[Kill]]) -> None:
    matrix, folder, _ = qwen2
    assert load_record(folder / KILLS, KillMatrix) == matrix
    assert store.load_verdict(folder).outcome is Outcome.PARITY
    for kill in matrix.kills:
        verdict = store.load_verdict(folder / FOLDER / kill.fault)
        assert verdict.outcome is kill.outcome
        assert verdict.unpinned
        lines = [
            record.greppable for record in store.load_divergences(folder / FOLDER / kill.fault / "divergences.jsonl")
        ]
        assert bool(lines) == bool(kill.caught_by)
    assert not list(folder.rglob(".spool"))


def test_the_other_architecture(tmp_path: Path) -> None:
    baseline = capture_baseline(request(tmp_path, "synthetic-llama"))
    assert set(baseline.not_seeded) == {f"dropped_bias={part}" for part in "qkv"}
    chosen = tuple(seeded for seeded in baseline.faults if seeded.fault in LLAMA)
    assert len(chosen) == len(LLAMA)
    matrix = seed_faults(replace(baseline, faults=chosen), lambda _: None)
    assert [(kill.fault, kill.problem) for kill in matrix.problems] == []
    assert not matrix.survivors


def test_a_stale_reference_does_not_widen_its_own_limits(tmp_path: Path) -> None:
    """Limits of one's own prompts are measured by the reference: rows that are not its own must not measure them."""
    baseline = capture_baseline(request(tmp_path, "synthetic-llama"), "stale")
    for name in ("stale_spool=row", "stale_trace=file"):
        folder = tmp_path / name
        folder.mkdir()
        cell = replace(baseline.cell, out_dir=folder)
        assert cell.unpinned
        climbed = replace(baseline.climbed, twin=stale_rows(baseline, name, folder))
        limits = attempt(cell, steps.derive_limits, climbed.reference, climbed.twin)
        assert isinstance(limits, Failed)
        assert "no limit can be predicted" in limits.reason
        verdict = steps.conclude(cell, replace(climbed, limits=limits)).verdict
        assert verdict.outcome is Outcome.INCOMPLETE
        assert any("T4 twin: derive_limits: " in cause and "prompt " in cause for cause in verdict.causes)


def flipped(folder: Path) -> Path:
    """Return a copy of the model with one weight changed."""
    from parity_lib.models.ensure import ensure
    from parity_lib.records.pins import load_pins

    source = ensure("synthetic-qwen2", "Q8_0", load_pins())
    data = bytearray(source.read_bytes())
    data[read_tensors(source)["blk.1.ffn_down.weight"].offset + 5] ^= 0x40
    path = folder / "flipped.gguf"
    path.write_bytes(data)
    return path


def test_nothing_is_seeded_into_a_cell_that_is_not_at_parity(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = capture_baseline(request(tmp_path / "out", candidate_file=str(flipped(tmp_path))))
    assert baseline.verdict.outcome is Outcome.DIVERGED
    with pytest.raises(UsageError, match="not at parity"):
        seed_faults(baseline, lambda _: None)
    assert not (tmp_path / "out" / KILLS).exists()
    assert report_baseline(baseline.verdict) == 1
    assert "no fault was seeded" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has one"):
        capture_baseline(request(tmp_path / "other", fault="die"))


def run(tmp_path: Path, *words: str) -> int:
    out = str(tmp_path / "out")
    prompts = ["--prompts", str(PROMPTS), "--threads", "1"]
    return main(["faults", "synthetic-llama", "Q8_0", *prompts, "--out", out, *words])


def test_command_prints_a_table_and_an_unexpected_survivor_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list of one's own holds a fault that every gate has to see, one too small to be seen, and a known one."""
    own = tmp_path / "own.toml"
    entry = '[[fault]]\nname = "{}"\nwhat = "a test"\noutcome = "DIVERGED"\nwords = ["rung=T4"]\n'
    names = ("swap_gate_up", "softmax_scale=1.0000001", "softmax_scale=1.0000002")
    blind = '[[blind]]\nfault = "*2"\nmodel = "synthetic-*"\nquant = "*"\nreason = "too small for f32"\n'
    own.write_text('schema = "parity/faults/1"\n' + "".join(map(entry.format, names)) + blind)
    assert run(tmp_path, "--faults", str(own)) == 1
    text = capsys.readouterr().out
    assert "PARITY without a fault; 3 faults to seed" in text
    assert "caught     swap_gate_up" in text
    assert "SURVIVED   softmax_scale=1.0000001" in text
    assert "survivors: softmax_scale=1.0000001; known blind spots: softmax_scale=1.0000002" in text
    assert "too small for f32" in text
    assert run(tmp_path, "--faults", str(own), "--only", "swap*") == 0
    text = capsys.readouterr().out
    assert "survivors: none; known blind spots: none" in text
    left = load_record(tmp_path / "out" / KILLS, KillMatrix)
    assert [kill.fault for kill in left.kills] == ["swap_gate_up"]
    assert [path.name for path in (tmp_path / "out" / FOLDER).iterdir()] == ["swap_gate_up"]


def test_unknown_fault_is_two_and_lists_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--only", "dropped_bias*") == 2
    text = capsys.readouterr().err
    assert "dropped_bias=q: the model's projections have no biases" in text
    assert "swapped_pairing" in text
    assert not (tmp_path / "out" / KILLS).exists()


def test_a_stale_row_stands_at_its_position(qwen2: tuple[KillMatrix, Path, list[Kill]]) -> None:
    matrix, folder, _ = qwen2
    (divergence,) = {
        Position(d.prompt_idx or 0, d.token_idx or 0)
        for d in store.load_verdict(folder / FOLDER / "stale_spool=row").divergences
        if d.prompt_idx is not None
    }
    assert (
        f"prompt_idx={divergence.prompt_idx} token_idx={divergence.token_idx} "
        in kill_of(matrix, "stale_spool=row").line
    )
