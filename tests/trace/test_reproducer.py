"""Reproducers of seeded faults, for real: small, whole, and replayed without the model that they were cut from."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.errors import RecordError
from parity_lib.base.names import Compute
from parity_lib.cell import steps
from parity_lib.cell.steps import Cell
from parity_lib.cli.app import main
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t3_ops import Replayed
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.runs import RunInfo
from parity_lib.trace.reproducer import format as reproducers
from parity_lib.trace.reproducer.format import LARGEST, Engines, Reproducer
from parity_lib.trace.reproducer.make import fault_in_block, make_reproducer, save_reproducer
from parity_lib.trace.reproducer.replay import ReproducerReplay, Side, replay_reproducer
from tests.shared import reference_kept_in

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
TOKENS, PASSES = [(i * 37) % 501 + 1 for i in range(22)], [21, 1]
NOT_HERE = "avx2" if platform.machine() == "aarch64" else "neon"
DROPPED = 35  # a row of ffn_down in layer 1


def _reference(reproducer: Reproducer, **changes: str) -> Engines:
    """Return the engines of a reproducer with another reference."""
    reference = structs.replace(reproducer.engines.reference, **changes)
    return structs.replace(reproducer.engines, reference=reference)


class Bench:
    """One captured run of the reference; each fault is one replay of it."""

    def __init__(self, folder: Path) -> None:
        self.model = build("llama", "Q8_0", folder / "model" / "two.gguf", Shape(n_layer=2, n_vocab=512))
        self.cell = steps.open_cell(
            model=str(self.model), prompts=str(PROMPTS), out_dir=str(folder / "out"), n_threads=1
        )
        self.nodes = folder / "nodes"
        asked = {"path": str(self.model), "isa": self.cell.sides.reference.isa, "settings": "strict", "n_threads": 1}
        with Worker("llama_taps", asked, env=worker_env("strict")) as engine:
            engine.call("capture", TOKENS, PASSES, self.nodes)
            self.run: RunInfo = engine.call("run_info")

    def with_fault(self, fault: str, candidate: Path | None = None) -> Cell:
        request = replace(self.cell.request, fault=fault)
        return replace(self.cell, request=request, candidate_path=candidate or self.model)

    def replayed(self, cell: Cell) -> Replayed:
        asked = {"path": str(cell.candidate_path), "isa": cell.sides.candidate.isa, "compute": "ggml", "n_threads": 1}
        with Worker("burn_replay", asked | {"fault": cell.request.fault or None}) as engine:
            errors = tuple(engine.call("replay", self.nodes))
        return Replayed(0, 10, "strict", tuple(PASSES), len(errors), errors)

    def save(self, cell: Cell, folder: Path) -> Path | None:
        replayed = self.replayed(cell)
        return save_reproducer(cell, self.nodes, replayed, self.model, Compute.GGML, self.run, folder)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("reproducers")
    with reference_kept_in(folder / "traces"):
        yield Bench(folder)


@pytest.fixture(scope="module")
def dropped(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reproducer of a file with one row of zeros, and the model it was cut from gone."""
    folder = tmp_path_factory.mktemp("dropped")
    other = shutil.copyfile(bench.model, folder / "other.gguf")
    reader = gguf.GGUFReader(other, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
    tensor.data[DROPPED] = 0
    reader.data.flush()
    reproducer = bench.save(bench.with_fault("", other), folder / "reproducer")
    assert reproducer is not None
    other.unlink()
    return reproducer


def n_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("fault", "site", "step", "n_judged"),
    [
        ("eps_x10@blk.1", "attn_norm-1", "one row", 256),
        ("softmax_scale", "kq_soft_max-0", "one row", None),
        ("rope_off_by_one", "Qcur-0", "one row", 64),
        ("k_head_permuted@blk.1", "Kcur.MUL_MAT-1", "some rows", 1),
        ("swap_gate_up", "ffn_swiglu-0", "one number", 1),
        ("kv_slot_stale", "kq-0", "some rows", 1),
    ],
)
def test_a_seeded_fault_is_replayed_without_the_model(
    fault: str,
    site: str,
    step: str,
    n_judged: int | None,
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = bench.save(bench.with_fault(fault), tmp_path / "made")
    assert made is not None
    hidden = bench.model.rename(bench.model.with_suffix(".hidden"))
    try:
        monkeypatch.chdir(tmp_path)
        moved = shutil.move(made, tmp_path / "elsewhere")
        replayed = replay_reproducer(moved)
        sound = replay_reproducer(moved, sound=True) if n_judged == 1 else None
    finally:
        hidden.rename(bench.model)
    reproducer = replayed.reproducer
    assert (reproducer.at.site, reproducer.step, reproducer.asked_fault) == (site, step, fault)
    assert len(reproducer.op.judged) == (n_judged or reproducer.at.position + 1)
    assert reproducer.reproduced
    assert replayed.agrees is False
    assert replayed.now == pytest.approx(replayed.recorded, rel=1e-6)
    assert replayed.recorded > 1e3 * reproducer.limit.value
    assert replayed.candidate.is_same
    assert replayed.distance(replayed.oracle, reproducer.reference) < reproducer.limit.value  # whose fault it is
    assert sound is None or sound.agrees is True
    assert n_bytes(moved) < 100_000 < LARGEST


def test_a_wrong_weight_row_is_one_dot_product_with_both_files_blocks(dropped: Path) -> None:
    replayed = replay_reproducer(dropped)
    reproducer = replayed.reproducer
    assert (reproducer.at.site, reproducer.at.channel, reproducer.step) == ("ffn_out-1", DROPPED, "one dot product")
    op = reproducer.op
    assert op.weight is not None
    assert op.other_weight is not None
    assert len(op.weight.blocks) == 512 // 32 * 34
    assert set(op.other_weight.blocks) == {0}
    assert replayed.agrees is False
    assert replayed.candidate.now is not None
    assert replayed.candidate.now.tolist() == [0.0]
    assert replayed.reference.is_same


def test_the_reproducer_of_a_healthy_op_agrees(bench: Bench, tmp_path: Path) -> None:
    cell = bench.with_fault("")
    sound = bench.replayed(cell)
    assert save_reproducer(cell, bench.nodes, sound, bench.model, Compute.GGML, bench.run, tmp_path / "none") is None
    assert not list(tmp_path.iterdir())
    error = next(error for error in sound.errors if error.site == "attn_out-1")
    reproducer = make_reproducer(cell, bench.nodes, sound, error, bench.model, Compute.GGML, bench.run)
    replayed = replay_reproducer(reproducers.save(reproducer, tmp_path / "healthy"))
    assert replayed.agrees is True
    assert replayed.candidate.is_same
    assert replayed.reference.is_same
    nan = np.full_like(replayed.reference.recorded, np.nan)
    lost = replace(replayed, reference=Side(nan, nan, ""), candidate=Side(nan, nan, ""))
    assert lost.now == 0
    assert lost.agrees is None  # equal, and no value that could agree


def test_a_fault_that_the_op_does_not_show_is_never_called_parity(dropped: Path, tmp_path: Path) -> None:
    reproducer = reproducers.load(dropped)
    lost = replace(reproducer, op=replace(reproducer.op, other_weight=None), reproduced=False)
    replayed = replay_reproducer(reproducers.save(lost, tmp_path / "lost"))
    assert replayed.now is not None
    assert replayed.now <= reproducer.limit.value
    assert replayed.agrees is None
    assert main(["replay", str(tmp_path / "lost")]) == 3


def test_a_reference_that_does_not_give_its_value_again_is_never_called_parity(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = bench.with_fault("")
    sound = bench.replayed(cell)
    error = next(error for error in sound.errors if error.site == "attn_out-1")
    reproducer = make_reproducer(cell, bench.nodes, sound, error, bench.model, Compute.GGML, bench.run)
    lost = replace(reproducer, reference=reproducer.reference * np.float32(1.01))
    folder = reproducers.save(lost, tmp_path / "lost")
    assert replay_reproducer(folder).agrees is None
    assert main(["replay", str(folder)]) == 3
    assert "llama.cpp does not give its recorded value again" in capsys.readouterr().out.splitlines()[-1]
    over = replace(lost, candidate=lost.candidate * np.float32(3), reproduced=True)
    assert replay_reproducer(reproducers.save(over, tmp_path / "over")).agrees is None
    other = replace(lost, engines=_reference(lost, commit="0" * 12))
    assert (
        replay_reproducer(reproducers.save(other, tmp_path / "other")).agrees is True
    )  # another build may be right now


def test_the_kernels_of_a_target_that_is_not_here_are_not_stood_in_for(
    dropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproducer = reproducers.load(dropped)
    engines = _reference(reproducer, isa=NOT_HERE)
    plain = replace(reproducer, engines=engines)
    assert replay_reproducer(reproducers.save(plain, tmp_path / "plain")).reference.now is not None
    tiles = replace(plain, op=replace(reproducer.op, buffer="AMX"))
    replayed = replay_reproducer(reproducers.save(tiles, tmp_path / "tiles"))
    assert replayed.agrees is None
    assert "this machine lacks the instructions of the ISA target" in replayed.reference.why
    assert main(["replay", str(tmp_path / "tiles")]) == 3
    assert capsys.readouterr().out.splitlines()[-1] == "UNDECIDED: llama.cpp could not be recomputed on this machine"


def test_what_is_written_is_read_back_and_points_nowhere(dropped: Path, bench: Bench, tmp_path: Path) -> None:
    reproducer: Reproducer = reproducers.load(dropped)
    again = reproducers.load(reproducers.save(reproducer, tmp_path / "again"))
    assert {p.name: p.read_bytes() for p in dropped.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }
    assert np.array_equal(again.reference, reproducer.reference)
    text = (dropped / "manifest.json").read_text()
    assert str(bench.model.parent) not in text
    assert str(tmp_path.parents[1]) not in text
    assert json.loads(text)["engines"]["reference"]["model_sha256"] == bench.run.model_sha256


def test_a_larger_reproducer_is_refused_and_nothing_is_left(dropped: Path, tmp_path: Path) -> None:
    reproducer = reproducers.load(dropped)
    assert reproducer.op.weight is not None
    huge = replace(reproducer.op, weight=replace(reproducer.op.weight, blocks=bytes(LARGEST)))
    with pytest.raises(RecordError, match="too large"):
        reproducers.save(replace(reproducer, op=huge), tmp_path / "huge")
    assert not list(tmp_path.iterdir())


def damage(folder: Path, how: str) -> None:
    manifest = folder / "manifest.json"
    if how == "byte":
        path = folder / "weight.blocks"
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif how == "missing":
        (folder / "candidate.f32").unlink()
    elif how == "version":
        manifest.write_text(manifest.read_text().replace("parity/reproducer/3", "parity/reproducer/2"))
    elif how == "torn":
        manifest.write_text(manifest.read_text()[:200])
    elif how == "judged":
        data = json.loads(manifest.read_text())
        data["op"]["judged"] = [7]
        manifest.write_text(json.dumps(data))
    elif how == "row":
        data = json.loads(manifest.read_text())
        data["op"]["row"] = data["op"]["n_rows"]
        manifest.write_text(json.dumps(data))
    elif how == "no file":
        data = json.loads(manifest.read_text())
        del data["files"]["weight.blocks"]
        manifest.write_text(json.dumps(data))
    else:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("byte", "weight.blocks: a file of the reproducer is not the one that was written"),
        ("missing", "candidate.f32: cannot be read"),
        ("version", "of another schema; expected parity/reproducer/3; found parity/reproducer/2"),
        ("torn", "manifest.json"),
        ("judged", "the parts of a reproducer do not fit each other"),
        ("row", "the parts of a reproducer do not fit each other"),
        ("no file", "the parts of a reproducer do not fit each other"),
        ("gone", "manifest.json: cannot be read"),
    ],
)
def test_a_damaged_reproducer_is_refused_by_name(
    how: str, words: str, dropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(dropped, tmp_path / "copy"))
    damage(copy, how)
    assert main(["replay", str(copy)]) == 3
    assert words in capsys.readouterr().err


def test_an_engine_that_is_not_here_is_named(dropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(dropped, tmp_path / "copy"))
    data = json.loads((copy / "manifest.json").read_text())
    data["cell"]["stack"] = "nowhere"
    (copy / "manifest.json").write_text(json.dumps(data))
    assert main(["replay", str(copy)]) == 3
    said = capsys.readouterr().out
    assert "burn       could not be recomputed here: " in said
    assert "llama.cpp  -" in said or "llama.cpp  0" in said
    assert said.splitlines()[-1] == "UNDECIDED: burn could not be recomputed on this machine"


def test_the_command_says_which_side_is_off(dropped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(dropped)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ffn_out-1 (MUL_MAT, Q8_0 ffn_down.weight) of two Q8_0, strict, prefill")
    assert "the candidate's file has other bytes in these rows" in said[2]
    assert sum("the same bits" in line for line in said) == 2
    assert said[-1].startswith("DIFFER: llama.cpp is nearer to float64")
    assert main(["replay"]) == 2


@pytest.mark.parametrize(
    ("fault", "block", "found"),
    [
        ("eps_x10@blk.3", 3, "eps_x10@blk.0"),
        ("eps_x10@blk.3", 2, ""),
        ("eps_x10@all", None, "eps_x10@all"),
        ("k_head_permuted", 0, "k_head_permuted@blk.0"),
        ("k_head_permuted", 1, ""),
        ("rope_off_by_one@from=20", 4, "rope_off_by_one@from=20"),
        ("", 0, ""),
    ],
)
def test_a_fault_moves_to_the_only_block(fault: str, block: int | None, found: str) -> None:
    assert fault_in_block(fault, block) == found


def test_two_sides_that_are_equal_agree_at_a_limit_of_nothing(dropped: Path) -> None:
    replayed: ReproducerReplay = replay_reproducer(dropped)
    exact = replace(replayed.reproducer, limit=structs.replace(replayed.reproducer.limit, kind="exact", value=0.0))
    same = replace(replayed, reproducer=exact, candidate=replayed.reference)
    assert same.now == 0.0
    assert same.agrees is True
