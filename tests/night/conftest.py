"""Notebooks that end in every way a notebook can, and plans of them; no engine is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from parity_lib.base.json_text import dump_line
from tests.run_info import run_info

MODEL = 'model = "synthetic-llama"\nquant = "Q8_0"\n'
PRODUCTION = 'model = "llama-3-8b"\nquant = "Q4_K_M"\n'
FOREIGN = "neon" if os.uname().machine == "x86_64" else "avx2"
PARAMETERS = """model: str = ""  # id
quant: str = ""  # quant
isa: str = ""  # ISA target
stack: str = ""  # stack
compute: str = ""  # policy
prompts: str = ""  # file
fault: str = ""  # fault
control: bool = False  # control
out_dir: str = ""  # folder"""
# A record as a real cell leaves it; ``outcome`` is set by the line before it.
RECORD = """import json
from datetime import UTC, datetime
from parity_lib.records import store
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.base.record import decode_record
from parity_lib.records.runs import BurnRun
from parity_lib.records.verdicts import CellId, Divergence, RungResult, Verdict, conclude
run = {"isa_requested": isa, "compute": compute, "stack": stack, "fault": seeded or None}
run = decode_record(json.loads(BURN_RUN) | run, BurnRun, "a test")
bad = [Divergence(Rung.T4, Kind.TOP1, 0.5, 3, 17, delta=0.75, delta_id=7)] if broken else []
ok = Outcome.PARITY
RUNGS = (Rung.T0, Rung.T2, Rung.T3, Rung.T5, Rung.T6, Rung.T7)
rungs = [RungResult(rung, ok, 5, 5, None, None, "pins") for rung in RUNGS]
worst = 0.75 if broken else 0.25
rungs += [RungResult(Rung.T4, Outcome.DIVERGED if broken else ok, 5, compared, worst, 0.5, "logits", note=note)]
outcome, causes = conclude(rungs, required=(Rung.T4,))
created = datetime.now(UTC).isoformat(timespec="seconds")
verdict = Verdict(CellId(model, quant, isa, stack, compute), outcome, tuple(rungs), tuple(bad), {"candidate": run},
                  False, False, causes, control=control, created_at=created)
store.save_verdict(verdict, out_dir)""".replace("BURN_RUN", repr(dump_line(run_info("burn"))))
SETUP = "broken, compared, seeded, note = bool(fault), 5, fault, ''"
ASSERT = "verdict.require_parity()"
SOUND = [SETUP, RECORD, ASSERT]


def notebook(path: Path, cells: list[str], parameters: str = PARAMETERS) -> None:
    found: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Test"}]
    for number, source in enumerate([parameters, *cells]):
        tags = ["parameters"] if number == 0 else ["raises-exception"] if source.startswith(ASSERT) else []
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source}
        found.append(cell | {"outputs": [], "execution_count": None})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(content), encoding="utf-8")


PAGES = {
    "00_machine_and_pins": (["1"], 'x: str = ""  # nothing'),
    "06_night": (
        ["from parity_lib.records.night_record import load_night\nprint(load_night(run_dir).outcome)"],
        'run_dir: str = ""  # folder',
    ),
}


def make_books(folder: Path, **cells: list[str]) -> Path:
    """Write the notebooks of a night: two pages, ``02_logits``, and others by name."""
    books = folder / "notebooks"
    books.mkdir()
    for name, (page, parameters) in PAGES.items():
        notebook(books / f"{name}.ipynb", page, parameters)
    for name, sources in {"02_logits": SOUND, **cells}.items():
        notebook(books / f"{name}.ipynb", sources)
    return books


def plan(folder: Path, *cells: str, head: str = "") -> str:
    path = folder / "plan.toml"
    head = 'schema = "parity/plan/1"\ntitle = "a test"\nheadline = "crates.io burn"\n' + head
    path.write_text(head + "".join(f"[[cell]]\n{cell}" for cell in cells), encoding="utf-8")
    return str(path)
