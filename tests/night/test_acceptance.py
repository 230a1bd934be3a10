"""The acceptance plan: everything that the claim is about stands in it, and what is missing is said in one list."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_lib.base.names import Isa, Outcome
from parity_lib.cli.app import main
from parity_lib.engines.burn import build_info, stacks
from parity_lib.night.night import NightOptions, run_night
from parity_lib.night.plan import load_plan, plan_path
from parity_lib.records.night_record import Night, load_night
from parity_lib.records.pins import PRODUCTION, load_pins

from .conftest import MODEL, make_books

pytestmark = pytest.mark.slow

LARGE, QUANTS, PROXY = ("llama-3-8b", "qwen2.5-7b"), ("Q4_K_M", "Q8_0"), ("llama-3.2-3b", "Q4_K_M")
STACKS = ("crates-io", "overlay")
WANTED = {*itertools.product(LARGE, QUANTS, (Isa.AVX2, Isa.AVX512, Isa.AMX), STACKS)}
CONTROLS = 7  # an architecture and an ISA target each
WANTED |= {(*PROXY, Isa.NEON, stack) for stack in STACKS}


def test_plan_is_complete() -> None:
    plan = load_plan(plan_path("acceptance"))
    cells = [cell for cell in plan.cells if not cell.control]
    assert {(cell.model, cell.quant, cell.isa, cell.stack) for cell in cells} == WANTED
    assert plan.complete
    assert all(cell.required and cell.expect == "parity" and not cell.fault for cell in cells)
    controls = [cell for cell in plan.cells if cell.control]
    assert len(controls) == CONTROLS
    assert {(cell.model, cell.isa) for cell in controls} == {(model, isa) for model, _, isa, _ in WANTED}
    assert all(cell.fault and cell.required for cell in controls)
    assert all(cell.prompts == "" for cell in plan.cells)  # the frozen suite
    pins = load_pins()
    assert {(pin.id, pin.quant) for pin in pins.models if pin.role == PRODUCTION} == {(m, q) for m, q, _, _ in WANTED}
    assert set(STACKS) <= set(pins.stacks)
    assert not plan.stacks


@pytest.fixture(scope="module", autouse=True)
def nothing_built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Look for stacks in an empty folder: here a machine may have built some."""
    empty = tmp_path_factory.mktemp("stacks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "stacks_dir", lambda: empty)
        build_info.load.cache_clear()
        yield
    build_info.load.cache_clear()


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Night, Path]:
    """Return exit status, record and folder of the shipped plan. No machine has all of its targets."""
    out = tmp_path_factory.mktemp("acceptance")
    status = main(["nightly", "--plan", "acceptance", "--out", str(out)])
    folder = next(path.parent for path in out.glob("*/night.json"))
    return status, load_night(folder), folder


def test_night_is_refused_and_nothing_ran(refused: tuple[int, Night, Path]) -> None:
    status, night, folder = refused
    assert (status, night.exit_status, night.outcome) == (3, 3, Outcome.INCOMPLETE)
    assert len(night.cells) == len(WANTED) + CONTROLS
    assert {cell.outcome for cell in night.cells} == {Outcome.INCOMPLETE}
    assert all(cell.causes and not cell.good and not cell.folder for cell in night.cells)
    assert not list(folder.glob("cells/*"))
    assert (folder / "index.html").is_file()
    assert "production models did not run" in night.headline


def listed(text: str) -> list[str]:
    """Return the entries of the list of what is missing; fails if there are two lists."""
    lines = text.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("refused: ")]
    return list(itertools.takewhile(lambda line: line.startswith("  - "), lines[start + 1 :]))


def test_there_is_one_list_with_everything_missing_once(refused: tuple[int, Night, Path]) -> None:
    _, night, folder = refused
    text = (folder / "night.log").read_text(encoding="utf-8")
    assert (
        f"refused: {len(WANTED) + CONTROLS} of {len(WANTED) + CONTROLS} required cells cannot run on this machine"
        in text
    )
    entries = listed(text)
    counts = {entry.rpartition(" (")[0][4:]: int(entry.rpartition(" (")[2].split()[0]) for entry in entries}
    assert len(counts) == len(entries)
    assert all("; next: " in lack for lack in counts)
    [lack] = [lack for lack in counts if "the stack overlay is not what is built here: the stack is not built" in lack]
    assert "next: parity stack build overlay --source DIR" in lack
    for cell in night.cells:  # what a cell waits for is in the list, word for word, and nothing else
        own = [lack for lack in counts if lack in cell.causes[0]]
        assert sum(map(len, own)) + len("; ") * (len(own) - 1) == len(cell.causes[0])
    for lack, count in counts.items():
        assert count == sum(lack in cell.causes[0] for cell in night.cells)


def part(folder: Path, text: str, only: str = "") -> tuple[Night, str]:
    path, stream = folder / "part.toml", io.StringIO()
    path.write_text('schema = "parity/plan/1"\ntitle = "a part"\nheadline = "a test"\ncomplete = true\n' + text)
    books = folder / "notebooks" if (folder / "notebooks").exists() else make_books(folder)
    night, _ = run_night(NightOptions(str(path), folder / "out", only, notebooks=books), stream)
    return night, stream.getvalue()


def test_only_what_was_chosen_is_asked_for_and_a_stack_that_is_lacking_stops_the_rest(tmp_path: Path) -> None:
    cells = f'[stacks]\nnext = "the fork"\n[[cell]]\n{MODEL}[[cell]]\n{MODEL}stack = "next"\n'
    night, text = part(tmp_path, cells)
    assert (night.outcome, night.exit_status) == (Outcome.INCOMPLETE, 3)
    assert "not run: the plan is refused as a whole" in night.cells[0].causes[0]
    assert listed(text) == [entry for entry in listed(text) if "the stack next is not pinned (the fork)" in entry]
    assert listed(text)[0].endswith("(1 cell)")
    chosen, text = part(tmp_path, cells, "*-crates-io-*")
    assert (chosen.outcome, chosen.exit_status) == (Outcome.PARITY, 0)
    assert "refused" not in text
