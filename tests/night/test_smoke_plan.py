"""The real Qwen2.5 in the default plan: named with its command where it is absent, and no night fails for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_lib.base.names import Isa, Outcome
from parity_lib.models.cache import models_dir
from parity_lib.night.plan import load_plan, plan_path
from parity_lib.night.preflight import machine_lacks
from parity_lib.records.pins import load_pins
from parity_lib.records.tolerances import load_tolerances

from .conftest import MODEL, make_books
from .test_nightly import night

REAL = 'model = "qwen2.5-coder-0.5b"\nquant = "Q4_K_M"\nrequired = false\n'
COMMAND = "parity models fetch qwen2.5-coder-0.5b Q4_K_M"


@pytest.mark.engine
def test_the_plan_has_the_real_file_and_lacks_it_until_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoke, pins = load_plan(plan_path("smoke")), load_pins()
    [cell] = [cell for cell in smoke.cells if cell.model == "qwen2.5-coder-0.5b"]
    assert not cell.required
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))
    steps = [lack.next_step for lack in machine_lacks(cell, Isa.AVX2, smoke, pins)]
    assert COMMAND in steps
    models_dir().mkdir(parents=True)
    (models_dir() / pins.model(cell.model, cell.quant).file_name).touch()
    assert COMMAND not in [lack.next_step for lack in machine_lacks(cell, Isa.AVX2, smoke, pins)]


def test_the_limits_of_each_required_cell_are_pinned() -> None:
    tolerances, cells = load_tolerances(), load_plan(plan_path("smoke")).cells
    wanted = {(cell.model, cell.quant) for cell in cells if cell.required and not cell.prompts}
    assert len(wanted) > 8
    assert [key for key in sorted(wanted) if not tolerances.has(*key)] == []


@pytest.mark.engine
@pytest.mark.slow
def test_a_night_without_the_file_ends_as_it_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    record, _, text = night(make_books(tmp_path), MODEL, REAL)
    cell, absent = record.cells
    assert (cell.outcome, record.exit_status) == (Outcome.PARITY, 0)
    assert (absent.outcome, absent.good) == (Outcome.NOT_RUN, True)
    assert COMMAND in absent.causes[0]
    assert f"next: {COMMAND}" in text
