"""What a night asks of one cell's folder: its key, whether its record is sound, and its lines."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from parity_lib import store
from parity_lib.capture.cell import REQUIRED
from parity_lib.errors import ParityError
from parity_lib.fixture_file import fixture_path
from parity_lib.names import Outcome
from parity_lib.night.plan import PlanCell
from parity_lib.verdicts import CellId, Verdict, conclude

FIXTURES = ("gguf_parity.toml", "prompts.toml", "tolerances.toml")


def cell_key(cell: PlanCell, isa: str, notebooks: Path) -> str:
    """Return the cell's name with the leg filled in, and 8 digits over everything that can change its result.

    That is the entry of the plan, the fixtures and the notebook; engines and machine are in the record itself.
    """
    digest = hashlib.sha256(f"{cell.content()} {isa}".encode())
    prompts = [fixture_path(cell.prompts)] if cell.prompts else []
    for path in [*map(fixture_path, FIXTURES), *prompts, notebooks / f"{cell.notebook}.ipynb"]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{replace(cell, isa=isa).name}-{digest.hexdigest()[:8]}"


def sound_verdict(folder: Path, identity: CellId, cell: PlanCell) -> tuple[Verdict | None, list[str]]:
    """Return the record in a cell's folder if it is this cell's own and follows from its rungs, else None and why not.

    The night trusts no word that it can check: the outcome is concluded again from the rungs, with those that a cell
    must have climbed; cell, control and fault are compared with what the plan asked for.
    """
    try:
        verdict = store.load_verdict(folder)
    except ParityError as error:
        return None, [f"no verdict record: {error}"]
    wrong = verdict.contradictions()
    outcome, causes = conclude(verdict.rungs, required=REQUIRED)
    if verdict.outcome is Outcome.PARITY and outcome is not Outcome.PARITY:
        wrong += causes
    if verdict.cell != identity or verdict.control != cell.control:
        wrong.append(f"the verdict is of another cell: {verdict.cell}")
    if verdict.outcome is not Outcome.INCOMPLETE:
        candidate = verdict.runs.get("candidate")
        if candidate is None:
            wrong.append("the verdict does not say which candidate ran")
        elif (candidate.fault or "") != cell.fault:
            wrong.append(f"the candidate ran with fault {candidate.fault!r}, the plan says {cell.fault!r}")
    return (None if wrong else verdict), wrong


def rename_inside(partial: Path, final: Path) -> None:
    """Let what was written into the cell's working folder name the folder that a reader will find."""
    for path in (*partial.glob("*.ipynb"), *partial.glob("*.log"), partial / store.VERDICT):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if str(partial) in text:
                path.write_text(text.replace(str(partial), str(final)), encoding="utf-8")


def cause_line(outcome: Outcome, cell: CellId, cause: str) -> str:
    """Return the greppable line of a cause; a divergence has lines of its own, so what comes with it is a gap."""
    word = {Outcome.DIVERGED: "INCOMPLETE", Outcome.PARITY: "UNEXPECTED"}.get(outcome, outcome.value)
    return f"{word} {cell.fields()} cause={json.dumps(cause, ensure_ascii=False)}"
