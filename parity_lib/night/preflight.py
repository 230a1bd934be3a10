"""Checks a plan before it runs: unknown names, and what this machine lacks for its cells."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_lib.base.errors import EngineError, ParityError, PinError
from parity_lib.base.toml_table import fixture_path
from parity_lib.engines import targets
from parity_lib.engines.burn.build_info import CRATES_IO, check_built
from parity_lib.engines.llamacpp.isa_build import target_receipt
from parity_lib.faults.names import check_faults
from parity_lib.models.cache import models_dir
from parity_lib.models.recipes import command_for
from parity_lib.night.job import check_notebooks
from parity_lib.night.plan import HOST, Plan, PlanCell
from parity_lib.records.pins import ON_REQUEST, Pins
from parity_lib.records.tolerances import load_tolerances


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that this machine does not have, and what to do about it."""

    what: str  # one sentence
    next_step: str

    def __str__(self) -> str:
        return f"{self.what}; next: {self.next_step}"


def check_plan(plan: Plan, cells: Sequence[PlanCell], pins: Pins, notebooks: Path) -> None:
    """Refuse what no machine could run: an unknown id, fault or prompts file, a notebook that takes other parameters.

    Raises:
        UsageError: the first thing that is unknown, with what there is instead.
    """
    for cell in cells:
        pins.model(cell.model, cell.quant)
        if cell.stack not in plan.stacks:
            pins.stack(cell.stack)
        if cell.prompts:
            fixture_path(cell.prompts)
        if cell.isa != HOST:
            pins.llama_cpp.target(cell.isa)
    check_faults((cell.fault, f"{plan.path.name}: {cell.name}") for cell in cells if cell.fault)
    sources = {cell.notebook: notebooks / f"{cell.notebook}.ipynb" for cell in cells}
    check_notebooks((path, cell_parameters(cells[0], HOST, path, Path("out"), {})) for path in sources.values())


def cell_parameters(
    cell: PlanCell, isa: str, notebook: Path, out_dir: Path, run_wide: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the parameters of a cell's notebook: the plan's, and those of ``run_wide`` that the notebook declares."""
    parameters: dict[str, Any] = {
        "model": cell.model,
        "quant": cell.quant,
        "isa": isa,
        "stack": cell.stack,
        "compute": cell.compute,
        "prompts": cell.prompts and str(fixture_path(cell.prompts)),
        "fault": cell.fault,
        "control": cell.control,
        "out_dir": str(out_dir),
    }
    known = declared_names(notebook)
    return parameters | {name: value for name, value in run_wide.items() if name in known}


def declared_names(notebook: Path) -> frozenset[str]:
    """Return the names that a notebook's parameters cell assigns; empty where it cannot be read.

    Whether values fit is papermill's to say, in a process of its own (``check_notebooks``).
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        lines = ast.parse("".join(tagged[0]["source"])).body if tagged else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError):
        return frozenset()
    targets: list[ast.expr] = [line.target for line in lines if isinstance(line, ast.AnnAssign)]
    targets += [target for line in lines if isinstance(line, ast.Assign) for target in line.targets]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def machine_lacks(cell: PlanCell, isa: str, plan: Plan, pins: Pins) -> list[Lack]:
    """Return what keeps a cell from running here: instructions, the reference's build, the stack, a file."""
    return [*_target_lacks(cell, isa, pins), *_stack_lacks(cell, plan, pins), *_file_lacks(cell, pins)]


def _target_lacks(cell: PlanCell, isa: str, pins: Pins) -> list[Lack]:
    """Return that neither engine can run the ISA target here, or that llama.cpp is not built for its own."""
    stack = cell.stack if cell.stack in pins.stacks else CRATES_IO
    try:
        reference = targets.sides(pins, stack, isa).reference.isa
    except PinError as error:
        what = f"this machine cannot run the ISA target {isa}: {error.found}"
        return [Lack(what, f"run these cells on a machine of that ISA target: parity nightly --only '*-{isa}-*'")]
    try:
        target_receipt(pins.llama_cpp, reference)
    except ParityError as error:
        what = f"llama.cpp is not built for the ISA target {reference}: {error.what}"
        return [Lack(what, f"parity isa build {reference}")]
    return []


def _stack_lacks(cell: PlanCell, plan: Plan, pins: Pins) -> list[Lack]:
    stack = cell.stack
    if stack not in pins.stacks:
        step = "pin it in fixtures/gguf_parity.toml and build it; until then leave its cells out"
        return [Lack(f"the stack {stack} is not pinned ({plan.stacks[stack]})", step)]
    try:
        check_built(stack)
    except (EngineError, PinError) as error:
        found = error.found or error.what
        step = "make setup" if stack == CRATES_IO else error.next_step or f"parity stack build {stack}"
        return [Lack(f"the stack {stack} is not what is built here: {error.what}, found {found}", step)]
    try:
        if cell.fault:
            check_built(stack, faults=True)
    except (EngineError, PinError) as error:
        what = f"no fault can be seeded on the stack {stack}: {error.what}, found {error.found}"
        return [Lack(what, error.next_step or f"parity stack build {stack} --faults")]
    return []


def _file_lacks(cell: PlanCell, pins: Pins) -> list[Lack]:
    pin = pins.model(cell.model, cell.quant)
    path = models_dir() / pin.file_name
    if pin.recipe.kind not in ON_REQUEST or path.exists():  # what the nightly run makes or fetches is no lack
        return []
    word = "staged" if pin.recipe.kind == "staged" else "fetched"
    what = f"{pin.file_name} is not {word} on this machine ({pin.file.bytes / 1e9:.1f} GB, {pin.recipe.repository})"
    return [Lack(what, command_for(pin))]


def limits_lack(cell: PlanCell) -> list[Lack]:
    """Return a lack if the limits of a cell's model were not derived, else an empty list."""
    if load_tolerances().has(cell.model, cell.quant):
        return []
    return [Lack(f"{cell.model} {cell.quant} has no limits", f"parity bands {cell.model} {cell.quant} --write")]


def listing(lacks: Mapping[str, Sequence[Lack]]) -> list[str]:
    """Return one list of everything that is missing, each thing once, with how many cells wait for it.

    Args:
        lacks: cell name -> what it lacks.
    """
    waiting: dict[Lack, int] = {}
    for found in lacks.values():
        for lack in found:
            waiting[lack] = waiting.get(lack, 0) + 1
    n_cells = sum(bool(found) for found in lacks.values())
    lines = [f"refused: {n_cells} of {len(lacks)} required cells cannot run on this machine. What is missing:"]
    return lines + [f"  - {lack} ({count} cell{'s' if count > 1 else ''})" for lack, count in waiting.items()]
