"""Checks of this machine's set-up: what works, what does not, and what to do about it. Changes no file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import ParityError, PinError

ROOT = Path(__file__).resolve().parents[2]
ROOM_BYTES = 5_000_000_000  # the default models, their F32 twins, and the logit rows of a cell while it runs


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check. ``ok`` is None for a plain fact."""

    name: str
    ok: bool | None
    found: str
    next_step: str = ""
    needed: bool = True  # without it the default plan cannot run

    @property
    def blocks(self) -> bool:
        """Return whether the default plan cannot run because of this."""
        return self.ok is False and self.needed

    def text(self) -> str:
        """Return the check as one line, and what to do on a second one."""
        sign = {True: "ok  ", False: "FAIL" if self.needed else "no  ", None: "    "}[self.ok]
        line = f"{sign} {self.name:24} {self.found}"
        return line if not self.next_step or self.ok else f"{line}\n{'':29} next: {self.next_step}"


def examine() -> list[Check]:
    """Return every check, in the order in which a broken set-up is repaired."""
    groups = (_machine, _fixtures, _reference, _candidate, _notebooks, _models, _disk)
    return [check for group in groups for check in _guarded(group)]


def _guarded(group: Callable[[], Iterator[Check]]) -> list[Check]:
    """Return a group's checks; an error of the hierarchy is a failed check, and the next group still runs."""
    checks: list[Check] = []
    try:
        checks.extend(group())
    except ParityError as error:
        found = str(error).removesuffix(f"; next: {error.next_step}")
        checks.append(Check(group.__name__.strip("_"), ok=False, found=found, next_step=error.next_step or ""))
    return checks


def _machine() -> Iterator[Check]:
    from parity_lib.engines import machine, targets
    from parity_lib.engines.burn.sources import CRATES_IO
    from parity_lib.records.isa_evidence import BURN
    from parity_lib.records.pins import load_pins

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("machine", None, f"{machine.host()}, class {machine.machine_class()}, {cores} cores, {_memory()}")
    yield Check("python", None, f"{sys.version.split()[0]}, {sys.executable}")
    pins = load_pins()
    yield Check("ISA target of this machine", ok=True, found=targets.host(pins, CRATES_IO))
    for name in pins.llama_cpp.targets:
        try:
            sides = targets.sides(pins, CRATES_IO, name)
        except PinError as error:
            step = "cells of this ISA target are not run here"
            yield Check(f"ISA target {name}", ok=False, found=str(error.found), next_step=step, needed=False)
            continue
        own = targets.own_target(pins.stack(CRATES_IO))
        runs = {e: f"runs {s.isa}" + (f", because {s.lacks}" if s.lacks else "") for e, s in sides.by_engine()}
        if sides.candidate.isa != own:
            runs[BURN] = f"as published chooses {own} on this CPU"
        yield Check(f"ISA target {name}", ok=True, found="; ".join(f"{e} {words}" for e, words in runs.items()))


def _memory() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        return f"{int(sizes['MemAvailable'].split()[0]) / 1e6:.1f} GB of memory free"
    except (OSError, KeyError, ValueError):
        return "memory unknown"


def _fixtures() -> Iterator[Check]:
    from parity_lib.night.plan import load_plan, plan_path
    from parity_lib.records.pins import load_pins
    from parity_lib.records.prompts import load_prompts
    from parity_lib.records.tolerances import load_tolerances

    pins, prompts, limits = load_pins(), load_prompts(), load_tolerances()
    yield Check("pins", ok=True, found=f"{len(pins.models)} model files, llama.cpp {pins.llama_cpp.commit[:8]}")
    yield Check("prompts", ok=True, found=f"{len(prompts)} prompts, {prompts.sha256[:12]}")
    plan = load_plan(plan_path("smoke"))
    yield Check("plan smoke", ok=True, found=f"{len(plan.cells)} cells")
    lacking = [f"{c.model} {c.quant}" for c in plan.cells if c.required and not limits.has(c.model, c.quant)]
    found = f"{len(limits.all)} pinned" + (f"; none for {', '.join(lacking)}" if lacking else "")
    yield Check("limits", not lacking, found, "parity bands MODEL QUANT --write")


def _reference() -> Iterator[Check]:
    from parity_lib.base.names import Settings
    from parity_lib.engines.llamacpp.engine import worker_env
    from parity_lib.engines.llamacpp.recipe import host_target
    from parity_lib.engines.worker.client import Worker
    from parity_lib.records.pins import load_pins

    # In a worker: an illegal instruction or a broken library must not take this command with it.
    with Worker("parity_lib.engines.llamacpp.abi:Probe", {}, env=worker_env(Settings.STRICT), timeout=60) as probe:
        library = probe.call("describe")
    target = host_target(load_pins().llama_cpp)
    same = library["target"] == target
    yield Check("llama.cpp", ok=True, found=f"{library['version']} {library['commit']}, its build matches its receipt")
    step = f"python -m parity_lib.engines.llamacpp.build --target {target}"
    yield Check("llama.cpp build", same, f"ISA target {library['target']}, {library['compiler']}", step)
    yield Check("llama.cpp features", None, library["system_info"])


def _candidate() -> Iterator[Check]:
    from parity_lib.engines.burn import stacks
    from parity_lib.engines.burn.engine import CRATES_IO, load
    from parity_lib.records.pins import load_pins

    _, build = load(CRATES_IO)
    crates = ", ".join(f"{name} {version}" for name, version in build.crates.items() if name != "pyo3")
    found = f"fresh, {build.library}, stack {build.stack}: {crates}; {build.rustc}"
    yield Check("burn extension", ok=True, found=found)
    seeded = stacks.find(load_pins().stack(CRATES_IO), faults=True)
    found = f"{len(seeded.faults)} faults can be seeded, library {seeded.library_sha256[:12]}"
    yield Check("burn with faults", ok=True, found=found)


def _notebooks() -> Iterator[Check]:
    from importlib.metadata import version

    tools = ", ".join(f"{name} {version(name)}" for name in ("papermill", "nbconvert", "ipykernel", "jupyterlab"))
    yield Check("notebook tools", ok=True, found=tools)


def _models() -> Iterator[Check]:
    from parity_lib.models.ensure import list_models
    from parity_lib.models.recipes import command_for
    from parity_lib.records.pins import DEFAULT, load_pins

    for status in list_models(load_pins()):
        default = status.pin.role == DEFAULT
        ready = status.state == "ready"
        found = f"{status.state}{', F32 twin made' if status.twin else ''}{'; ' + status.note if status.note else ''}"
        step = "parity models prepare" if default else command_for(status.pin)
        if default and status.state == "absent":
            # Absent is not a failure: a nightly run makes the files that it needs.
            yield Check(f"{status.pin.id} {status.pin.quant}", None, f"not made yet; {step}")
        else:
            broken = status.state == "differs"
            yield Check(f"{status.pin.id} {status.pin.quant}", ready, found, step, needed=default and broken)


def _disk() -> Iterator[Check]:
    from parity_lib.base.surroundings import cache_dir

    for name, folder in (("cache", cache_dir()), ("reports", ROOT / "reports")):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        writable = os.access(there, os.W_OK)
        found = f"{folder}: {free / 1e9:.1f} GB free{'' if writable else ', not writable'}"
        step = f"have {ROOM_BYTES / 1e9:.0f} GB there, or set PARITY_CACHE to another disk"
        yield Check(f"disk: {name}", writable and free > ROOM_BYTES, found, step)
