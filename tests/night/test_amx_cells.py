"""Cells of the ISA target amx: on which machines they stand in a plan, and what they require there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError
from parity_lib.night.plan import Plan, load_plan, plan_path

from .conftest import MODEL

MEASURED = json.loads((Path(__file__).parents[1] / "fixtures" / "amx.json").read_text())
WITHOUT = " ".join(flag for flag in MEASURED["cpu_flags"].split() if not flag.startswith("amx"))


def plan_on(folder: Path, flags: str, name: str = "smoke") -> Plan:
    cpuinfo = folder / f"cpuinfo-{len(flags)}"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t: {flags}\n")
    return load_plan(plan_path(name), cpuinfo=cpuinfo)


def test_the_default_plan_has_amx_cells_only_where_a_machine_has_amx(tmp_path: Path) -> None:
    here, there = plan_on(tmp_path, MEASURED["cpu_flags"]), plan_on(tmp_path, WITHOUT)
    amx = [cell for cell in here.cells if cell.isa == "amx"]
    assert {(cell.model, cell.quant) for cell in amx} == {(c["model"], c["quant"]) for c in MEASURED["cells"]}
    assert not any(cell.required or cell.require_isa for cell in amx), "that burn has no tiles is reported there"
    assert there.cells == tuple(cell for cell in here.cells if cell.isa != "amx")


def test_acceptance_keeps_its_amx_cells_everywhere_and_requires_both_sides(tmp_path: Path) -> None:
    for flags in (MEASURED["cpu_flags"], WITHOUT):
        amx = [cell for cell in plan_on(tmp_path, flags, "acceptance").cells if cell.isa == "amx"]
        assert len(amx) == 10
        assert all(cell.required and cell.require_isa and not cell.where_possible for cell in amx)


def test_a_cell_of_the_host_is_possible_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    head = 'schema = "parity/plan/1"\ntitle = "t"\nheadline = "h"\n[[cell]]\n'
    path.write_text(f"{head}{MODEL}where_possible = true\n")
    with pytest.raises(FixtureError, match="possible everywhere"):
        load_plan(path)
