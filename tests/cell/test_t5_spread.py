"""The reference run in several ways, for real, on a synthetic model: each variant is what its name says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.errors import EngineError
from parity_lib.base.json_text import dump_line
from parity_lib.base.names import Kind, Outcome, Settings
from parity_lib.base.record import decode_record
from parity_lib.cell import rows as logits
from parity_lib.cell import steps
from parity_lib.cell import t5_spread as module
from parity_lib.cell.derive import pin_of, write_pins
from parity_lib.cell.rows import Rows
from parity_lib.cell.steps import Cell, Reference
from parity_lib.cell.t5_spread import capture_spread
from parity_lib.engines.llamacpp import isa_build
from parity_lib.engines.llamacpp.build import kept_wheel
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.isa_build import find_other_build, unpack
from parity_lib.engines.llamacpp.receipt import FILE_NAME
from parity_lib.engines.llamacpp.recipe import compiler_version, host_target, recipe_for
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.self_spread import numbers
from parity_lib.judge.t5_native import judge_native
from parity_lib.records.pins import load_pins
from parity_lib.records.runs import LlamaRun, llama
from parity_lib.records.self_spread import DEFAULT, DEFAULT_DECODE, FLASH_F16, OTHER_BUILD, SelfSpread
from parity_lib.records.self_spread_pins import load_spreads
from parity_lib.records.traces import Position
from tests.shared import SoundCell

pytestmark = pytest.mark.engine

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()
Captured = tuple[Cell, Reference, Rows, Rows, SelfSpread]


def capture(folder: Path, quant: str) -> Captured:
    (folder / "prompts.toml").write_text(PROMPTS)
    prompts = str(folder / "prompts.toml")
    wishes: dict[str, Any] = {"model": "synthetic-llama", "quant": quant, "prompts": prompts, "n_threads": 1}
    cell = steps.open_cell(out_dir=folder / quant, **wishes)
    reference = steps.capture_reference(cell)
    twin = steps.capture_twin(cell, reference)
    candidate = steps.capture_candidate(cell, reference)
    return cell, reference, twin, candidate, capture_spread(cell, reference, twin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spread")


@pytest.fixture(scope="module")
def captured(sound_cell: SoundCell) -> Captured:
    climbed = sound_cell.climbed
    return sound_cell.cell, climbed.reference, climbed.twin, climbed.candidate, climbed.spread  # type: ignore[return-value]


@pytest.fixture(scope="module")
def repacked(folder: Path) -> Captured:
    return capture(folder, "Q4_K_M")


def expected(captured: Captured) -> tuple[Position, ...]:
    return steps.positions(captured[0], captured[1])


def test_every_variant_ran_as_it_is_called(captured: Captured) -> None:
    spread = captured[4]
    assert [v.name for v in spread.variants][:3] == [DEFAULT, FLASH_F16, DEFAULT_DECODE]
    runs = {v.name: v.run for v in (*spread.variants, spread.twin)}
    for name in (DEFAULT, FLASH_F16, DEFAULT_DECODE):
        assert (runs[name].flash_attn, runs[name].type_k, runs[name].type_v) == ("enabled", "f16", "f16")
    assert (runs["twin"].flash_attn, runs["twin"].type_k) == ("disabled", "f32")
    assert [runs[n].settings for n in (DEFAULT, FLASH_F16, DEFAULT_DECODE)] == ["default", "flash_f16", "default"]
    assert [runs[n].batch for n in (DEFAULT, FLASH_F16, DEFAULT_DECODE)] == [512, 512, 1]
    assert [runs[n].tiled for n in (DEFAULT, FLASH_F16, DEFAULT_DECODE, "twin")] == [True, False, True, False]


def test_the_record_covers_every_position_and_survives_a_file(captured: Captured) -> None:
    spread = captured[4]
    assert [Position(*p) for p in zip(spread.prompt_idx, spread.token_idx, strict=True)] == list(expected(captured))
    for variant in (*spread.variants, spread.twin):
        assert len(variant) == variant.asked == len(spread)
    again = decode_record(json.loads(dump_line(spread)), SelfSpread, "here")
    assert dump_line(again) == dump_line(spread)


def test_the_spread_is_that_of_a_sound_reference(captured: Captured) -> None:
    spread = captured[4]
    assert DEFAULT in spread.counted
    assert 1e-4 < numbers(spread.variants[0]).rms < 0.05
    assert 1e-4 < numbers(spread.twin).rms < 0.05
    assert OTHER_BUILD in spread.absent or spread.variant(OTHER_BUILD) is not None


def test_without_the_twin_s_rows_they_are_made_and_give_the_same_record(captured: Captured) -> None:
    cell, reference, _, _, spread = captured
    again = capture_spread(cell, reference)
    arrays = ("rms", "std", "mean", "delta", "kl", "pair_sigma", "top1_equal", "top5_equal", "rows")
    for ours, theirs in zip((*spread.variants, spread.twin), (*again.variants, again.twin), strict=True):
        assert ours.same_as == theirs.same_as
        for name in arrays:
            assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes(), (ours.name, name)
    assert not sorted(cell.spools.glob("spread-*"))


def test_no_rows_are_left_behind_but_those_of_the_cell(captured: Captured) -> None:
    assert not sorted(captured[0].spools.glob("spread-*"))
    assert captured[1].rows.open().shape[0] == len(captured[4])


def test_repacked_weights_are_seen_and_strict_has_none(repacked: Captured) -> None:
    spread = repacked[4]
    buffers = {v.name: set(v.run.weight_buffers_mib) for v in (*spread.variants, spread.twin)}
    assert "CPU_REPACK" in buffers[DEFAULT] & buffers[DEFAULT_DECODE]
    assert "CPU_REPACK" not in buffers[FLASH_F16] | buffers["twin"]
    assert spread.variants[1].same_as == ""  # repacked products are others than plain ones
    assert spread.counted[:2] == (DEFAULT, FLASH_F16)


def lying_in(reference: Reference, buffers: dict[str, float]) -> LlamaRun:
    """The reference's run with its weights in other buffers."""
    run = llama(reference.rows.run)
    return structs.replace(run, isa_evidence=structs.replace(run.isa_evidence, weight_buffers_mib=buffers))


def test_a_variant_that_did_not_run_as_it_is_called_is_refused(repacked: Captured) -> None:
    cell, reference, *_ = repacked
    default = module.WAYS[0]
    with pytest.raises(EngineError, match="did not run as the variant is called"):
        module._prove(cell, default, llama(reference.rows.run))  # strict rows, said to be those of the defaults
    repack = lying_in(reference, {"CPU": 1.0, "CPU_REPACK": 2.0})
    module._prove(cell, default, repack)
    with pytest.raises(EngineError, match="outside of AMX or CPU_REPACK"):
        module._prove(cell, module.WAYS[1], repack)


@pytest.mark.parametrize(
    ("isa", "buffers", "good"),
    [
        ("amx", {"CPU_Mapped", "AMX"}, True),  # as measured on AMX: K-quants lie in AMX
        ("amx", {"CPU_Mapped", "CPU_REPACK"}, False),
        ("amx", {"CPU_Mapped"}, False),
        ("avx512", {"CPU_Mapped", "CPU_REPACK"}, True),
        ("avx512", {"CPU_Mapped", "AMX"}, False),
        ("avx2", {"CPU_Mapped"}, False),
        ("neon", {"CPU_Mapped"}, True),  # the CPU's own extensions decide there
    ],
)
def test_weights_may_lie_where_the_target_can_put_them(
    repacked: Captured, isa: str, buffers: set[str], good: bool
) -> None:
    cell, reference, *_ = repacked
    run = structs.replace(lying_in(reference, dict.fromkeys(buffers, 1.0)), isa_requested=isa)
    if good:
        module._prove(cell, module.WAYS[0], run)
    else:
        with pytest.raises(EngineError, match="did not run as the variant is called"):
            module._prove(cell, module.WAYS[0], run)
    if buffers & {"AMX", "CPU_REPACK"}:
        with pytest.raises(EngineError, match="outside of AMX or CPU_REPACK"):
            module._prove(cell, module.WAYS[1], run)


def test_settings_that_were_not_taken_are_refused(captured: Captured) -> None:
    kwargs = {"path": str(captured[0].model_path), "settings": Settings.DEFAULT, "isa": captured[0].sides.reference.isa}
    with pytest.raises(EngineError, match="other switches"), Worker("llama_cpp", kwargs, env=worker_env("strict")):
        pass


@pytest.mark.parametrize("which", ["captured", "repacked"])
def test_a_sound_candidate_passes_t5(which: str, request: pytest.FixtureRequest) -> None:
    found: Captured = request.getfixturevalue(which)
    cell, reference, _, candidate, spread = found
    pin = pin_of(spread, cell.id.model, cell.id.quant, "a test")
    pair = logits.pair(reference.rows, candidate, expected(found))
    for each in (pin, None):
        rung, divergences, _ = judge_native(pair, expected(found), spread, each)
        assert (rung.outcome, divergences) == (Outcome.PARITY, [])
        assert rung.compared == 20


def scaled(rows: Rows, around: Rows, factor: float, spool: Path) -> Rows:
    """Return rows that are ``factor`` times as far from other ones."""
    exact = around.open().astype(np.float64)
    (exact + factor * (rows.open() - exact)).astype("<f4").tofile(spool)
    return replace(rows, spool=spool)


def test_a_reference_whose_activation_path_broke_is_caught(captured: Captured, tmp_path: Path) -> None:
    # Three times the error of rounding activations, with the candidate as it was: the twin is green, T5 is not.
    cell, reference, twin, candidate, spread = captured
    pin = pin_of(spread, cell.id.model, cell.id.quant, "a test")
    broken = scaled(reference.rows, twin, 3, tmp_path / "broken.f32")
    sick = capture_spread(cell, replace(reference, rows=broken), twin)
    pair = logits.pair(broken, candidate, expected(captured))
    rung, divergences, _ = judge_native(pair, expected(captured), sick, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert Kind.SPREAD in {d.kind for d in divergences}


def test_a_missing_row_of_a_variant_is_incomplete(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, reference, twin, candidate, _ = captured
    pair = logits.pair(reference.rows, candidate, expected(captured))
    score = module._score

    def short(*args: Any) -> Rows:
        rows = score(*args)
        return replace(rows, positions=rows.positions[:-1], fed_id=rows.fed_id[:-1]) if args[2].batch == 1 else rows

    monkeypatch.setattr(module, "_score", short)
    holed = capture_spread(cell, reference, twin)
    rung, _, _ = judge_native(pair, expected(captured), holed, None)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "default_decode: 19 of 20 positions" in rung.note
    with pytest.raises(EngineError, match="no row for some position"):
        pin_of(holed, cell.id.model, cell.id.quant, "a test")


def test_long_prompts_are_not_decoded_one_by_one(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, reference, twin, _, _ = captured
    longest = max(len(s) for s in reference.sequences)
    assert longest > min(len(s) for s in reference.sequences)
    ways = (*module.WAYS[:2], replace(module.WAYS[2], longest=longest - 1))
    monkeypatch.setattr(module, "WAYS", ways)
    decode = capture_spread(cell, reference, twin).variant(DEFAULT_DECODE)
    assert decode is not None
    assert 0 < len(decode) == decode.asked < 20
    monkeypatch.setattr(module, "DECODE_TOKENS", 1)
    without = capture_spread(cell, reference, twin)
    assert without.variant(DEFAULT_DECODE) is None
    assert "longer than 1 tokens" in without.absent[DEFAULT_DECODE]


def test_a_pin_is_written_in_place_of_the_old_one(captured: Captured, tmp_path: Path) -> None:
    cell, *_, spread = captured
    path = tmp_path / "spread.toml"
    path.write_text('schema = "parity/spreads/1"\n')
    pin = pin_of(spread, cell.id.model, cell.id.quant, "first")
    write_pins([pin, replace(pin, quant="other")], path)
    write_pins([replace(pin, prompts_sha256="ab" * 32, source="second")], path)
    found = {(p.quant, p.source) for p in load_spreads(path).pins}
    assert found == {("Q8_0", "second"), ("other", pin.source)}
    assert pin.source.endswith("first")
    assert pin.model_sha256 == captured[1].rows.run.model_sha256


# --- another ISA target's build


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that set-up kept for this machine's ISA target, linked into a folder of the test's own."""
    pin = load_pins().llama_cpp
    recipe = recipe_for(pin, host_target(pin), compiler_version())
    kept = kept_wheel(recipe, isa_build.cache_dir() / "wheels" / recipe.key)
    assert kept is not None, "set-up keeps the wheel that it installed"
    folder = tmp_path_factory.mktemp("cache") / "wheels" / recipe.key
    folder.mkdir(parents=True)
    for path in (kept, kept.parent / FILE_NAME):
        (folder / path.name).symlink_to(path)
    return folder / kept.name


def test_a_kept_build_runs_in_a_worker_and_gives_the_installed_one_s_bits(
    captured: Captured, wheel: Path, tmp_path: Path
) -> None:
    cell, reference, *_ = captured
    folder = unpack(wheel)
    assert unpack(wheel) == folder  # made once
    kwargs = {"path": str(cell.model_path), "isa": cell.sides.reference.isa, "n_threads": 1}
    env = worker_env("strict") | {"LLAMA_CPP_LIB_PATH": str(folder)}
    with Worker("llama_cpp", kwargs, env=env) as engine:
        engine.call("score", reference.sequences, tmp_path / "rows")
        assert engine.call("run_info").settings.environment["LLAMA_CPP_LIB_PATH"] == str(folder)
    assert (tmp_path / "rows").read_bytes() == reference.rows.open().tobytes()


def test_a_build_that_is_there_is_found_and_one_that_is_not_is_explained(wheel: Path, tmp_path: Path) -> None:
    pin = load_pins().llama_cpp
    found = find_other_build(pin, "of-no-target", wheel.parents[2])
    assert isinstance(found, isa_build.OtherBuild)
    assert found.isa == host_target(pin)
    assert (found.folder / FILE_NAME).is_file()
    why = find_other_build(pin, "of-no-target", tmp_path)
    assert isinstance(why, str)
    assert "no wheel in the cache" in why
    for target in pin.targets:
        assert target in why
