"""The plan of stacks: each one but the default has a cell; one without its instructions is not run and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parity_lib.base.names import Compute, Isa
from parity_lib.base.toml_table import fixture_path
from parity_lib.engines import machine, targets
from parity_lib.engines.burn import stacks
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.night.plan import DIVERGED, NOTEBOOKS, load_plan, plan_path
from parity_lib.night.preflight import check_plan, machine_lacks
from parity_lib.records.pins import load_pins
from parity_lib.records.prompts import load_prompts
from parity_lib.records.stack_pins import WITHOUT

TILES = "spine-amx"  # the fork's BF16 tile product


def test_every_stack_has_a_cell() -> None:
    plan, pins = load_plan(plan_path("stacks")), load_pins()
    assert {cell.stack for cell in plan.cells} == set(pins.stacks) - {CRATES_IO}
    assert not plan.stacks


@pytest.mark.slow
def test_a_cell_of_tiles_is_not_run_on_a_machine_without_them_and_says_why() -> None:
    plan, pins = load_plan(plan_path("stacks")), load_pins()
    [cell] = plan.only(TILES)
    assert (cell.isa, cell.compute, cell.required, cell.require_isa) == (Isa.AMX, Compute.BF16, False, True)
    check_plan(plan, [cell], pins, NOTEBOOKS)
    lacks = [lack.what for lack in machine_lacks(cell, Isa.AMX, plan, pins)]
    missing = machine.missing_flags(targets.TILES)
    words = "this machine cannot run the ISA target amx: a CPU without amx_bf16, amx_tile"
    assert (words in lacks) == (len(missing) == len(targets.TILES))


@pytest.mark.engine
def test_a_red_control_without_its_library_cannot_run_and_says_what_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, pins = load_plan(plan_path("smoke")), load_pins()
    control = next(cell for cell in plan.cells if cell.control)
    sound = replace(control, control=False, fault="")
    monkeypatch.setattr(stacks, "stacks_dir", lambda: tmp_path)
    lacks = [
        {lack.next_step: lack.what for lack in machine_lacks(cell, Isa.AVX2, plan, pins) if "stack" in lack.what}
        for cell in (control, sound)
    ]
    assert list(lacks[0]) == ["parity stack build crates-io --faults"]
    assert "no fault can be seeded on the stack crates-io" in lacks[0]["parity stack build crates-io --faults"]
    assert lacks[1] == {}


def test_the_plan_of_the_repaired_fork_has_the_smoke_plan_s_models_and_leaves_each_fix_out_once() -> None:
    plan, smoke, pins = load_plan(plan_path("fixed")), load_plan(plan_path("smoke")), load_pins()
    whole = {(cell.model, cell.quant, cell.compute) for cell in plan.cells if cell.stack == "overlay-fixed"}
    production = {(model.id, model.quant) for model in pins.models if model.role == "production"}
    judged = {(cell.model, cell.quant, cell.compute) for cell in smoke.cells if cell.isa != Isa.AMX}
    assert whole == {cell for cell in judged if cell[:2] not in production}
    lacking = [cell.stack.partition(WITHOUT)[2] for cell in plan.cells if WITHOUT in cell.stack]
    assert sorted(lacking) == sorted(pins.stack("overlay-fixed").fixes)
    assert {cell.at for cell in plan.cells if cell.expect == DIVERGED} == {"T3"}


def test_the_deep_prompt_is_the_longest_one_of_the_suite() -> None:
    [deep] = load_prompts(fixture_path("deep_prompt.toml")).prompts
    longest = max(load_prompts().prompts, key=lambda prompt: len(prompt.text))
    assert (deep.text, deep.n_tokens) == (longest.text, longest.n_tokens)
