"""Seed every known fault into the candidate of one cell, and compare how each run ends with its expected end.

The reference is captured once. A fault then costs one start of the candidate, one teacher-forced pass, one judgement.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib.base.choice import choose
from parity_lib.base.errors import UsageError
from parity_lib.base.names import Outcome
from parity_lib.base.record import save_record
from parity_lib.cell import steps
from parity_lib.cell.request import let_go
from parity_lib.cell.rows import Rows
from parity_lib.cell.steps import Cell, CellRequest, Climbed, Judgement, Reference
from parity_lib.engines.machine import machine_class
from parity_lib.faults.judge import ENGINE, RECORD, Kill, KillMatrix, SeededFault, gate_margin, judge_kill, load_faults
from parity_lib.faults.two_libraries import compare_libraries
from parity_lib.records import store
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import Verdict

KILLS = "kills.json"
FOLDER = "faults"  # of the cells with a fault, inside of the folder of the cell without one
ROW = 2  # of the first prompt: the row that a wrong token or a stale row is put into

Say = Callable[[Kill], None]


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """The cell without a fault: what every fault is judged with, and its own verdict."""

    cell: Cell
    faults: tuple[SeededFault, ...]
    not_seeded: Mapping[str, str]  # fault -> why it does not fit
    climbed: Climbed
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the cell without a fault; a fault shows something only if it is PARITY."""
        return self.judgement.verdict


def capture_baseline(request: CellRequest, only: str = "", faults: Path | None = None) -> Baseline:
    """Climb the ladder once without a fault, and choose the faults that fit the model.

    Args:
        request: the cell; its own ``fault`` must be empty.
        only: a shell pattern of fault names; a plain word matches anywhere in the name.
        faults: a list of the user's own; None is ``fixtures/faults.toml``.

    Raises:
        UsageError: ``only`` matches no fault that fits this model, what there is, is listed; or the request has a
            fault of its own.
        ParityError: as ``open_cell``, or the verdict cannot be written.
    """
    if request.fault or request.control:
        raise UsageError("the cell without a fault has one", expected="none", found=request.fault or "a red control")
    cell = steps.open_cell(request)
    shutil.rmtree(cell.out_dir / FOLDER, ignore_errors=True)  # of an earlier run: must not be taken for this one's
    (cell.out_dir / KILLS).unlink(missing_ok=True)
    _chosen(_listed(cell, (), faults), cell, only)
    climbed = steps.climb(cell)
    judgement = steps.conclude(cell, climbed)
    store.save_verdict(judgement.verdict, cell.out_dir)
    prompts = climbed.reference.prompts if isinstance(climbed.reference, Reference) else ()
    listed, not_seeded = _chosen(_listed(cell, prompts, faults), cell, only)
    return Baseline(cell, listed, not_seeded, climbed, judgement)


def seed_faults(baseline: Baseline, say: Say) -> KillMatrix:
    """Seed one fault after the other, each into a fresh worker; write and return the matrix.

    Raises:
        UsageError: the cell without a fault is not at parity: whatever a fault did could not be told from that.
        EngineError: the library with faults is not built, or without a fault its bits are not those of the judged one.
        RecordError: a record cannot be written.
    """
    if baseline.verdict.outcome is not Outcome.PARITY:
        raise UsageError(
            "the cell without a fault is not at parity, so no fault was seeded",
            place=baseline.cell.id,
            expected=Outcome.PARITY,
            found=baseline.verdict.outcome,
            next_step="bring this cell to parity first; its verdict.json says what broke",
        )
    began = time.monotonic()
    same_rows = compare_libraries(baseline.cell)
    kills = []
    for seeded in baseline.faults:
        kills.append(_seed(baseline, seeded))
        say(kills[-1])
    matrix = KillMatrix(
        cell=baseline.cell.id,
        positions=0 if baseline.judgement.twin is None else len(baseline.judgement.twin),
        rungs=tuple(r.rung for r in baseline.verdict.rungs if r.outcome is Outcome.PARITY),
        baseline_margin=gate_margin(baseline.verdict),
        same_rows=same_rows,
        kills=tuple(kills),
        not_seeded=dict(baseline.not_seeded),
        machine_class=machine_class(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
    )
    save_record(matrix, baseline.cell.out_dir / KILLS)
    shutil.rmtree(baseline.cell.spools, ignore_errors=True)
    let_go(baseline.cell.out_dir)
    return matrix


def _listed(cell: Cell, prompts: tuple[tuple[int, ...], ...], faults: Path | None) -> tuple[SeededFault, ...]:
    """Return the faults to seed, with this model's names; positions need the tokenised prompts."""
    last = len(cell.suite.prompts) - 1
    places = {
        "block": 2 * cell.facts.n_layer // 5,
        "last": last,
        "cut": cell.suite.prompts[last].n_tokens - 1,
        "token": ROW - (len(prompts[0]) - 1) if prompts else 0,
    }
    return load_faults(cell.id, places, faults)


def _chosen(listed: tuple[SeededFault, ...], cell: Cell, only: str) -> tuple[tuple[SeededFault, ...], dict[str, str]]:
    """Return the faults that match ``only`` and fit the model, and those that match but do not fit, with the reason."""
    named = [(seeded.fault, seeded) for seeded in listed]
    return choose(only, named, "fault that fits this model", cell.id, lambda seeded: _misfit(seeded, cell))


def _misfit(seeded: SeededFault, cell: Cell) -> str:
    """Return why a fault does not fit the model or its prompts; "" if it fits."""
    if seeded.needs_bias and not cell.facts.has_qkv_bias:
        return "the model's projections have no biases"
    if seeded.fault == "stale_trace=prompt" and len(cell.suite) < 2:
        return "there is only one prompt"
    if seeded.fault in (f"token_off={ROW}", "stale_spool=row") and cell.suite.prompts[0].n_tokens <= ROW:
        return f"the first prompt may have fewer than {ROW + 1} rows"
    return ""


def _seed(baseline: Baseline, seeded: SeededFault) -> Kill:
    """Return what becomes of one fault; its verdict stays in a folder of its own."""
    began = time.monotonic()
    folder = baseline.cell.out_dir / FOLDER / seeded.fault
    folder.mkdir(parents=True)
    fault = "" if seeded.at == RECORD else seeded.fault
    request = replace(baseline.cell.request, fault=fault, out_dir=folder)
    cell = replace(baseline.cell, request=request, out_dir=folder, started=began)
    try:
        if seeded.at == RECORD:  # the limits stay those of the sound cell, as for every fault
            climbed = replace(baseline.climbed, twin=stale_rows(baseline, seeded.fault, folder))
        else:
            climbed = steps.climb_candidate(cell, baseline.climbed)
        judgement = steps.conclude(cell, climbed)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
    changed = _rows_changed(baseline.judgement, judgement) if seeded.at == ENGINE else None
    store.save_verdict(judgement.verdict, folder)
    store.save_divergences(judgement.verdict, folder / "divergences.jsonl")
    return judge_kill(seeded, judgement.verdict, changed, time.monotonic() - began)


def _rows_changed(sound: Judgement, faulty: Judgement) -> int | None:
    """Return how many rows of the candidate have other bits; None if the positions differ."""
    if sound.twin is None or faulty.twin is None:
        return None
    ours, theirs = sound.twin.candidate.row_sha256, faulty.twin.candidate.row_sha256
    return int((ours != theirs).any(axis=1).sum()) if ours.shape == theirs.shape else None


def stale_rows(baseline: Baseline, fault: str, folder: Path) -> Rows:
    """Return rows of the reference's twin that are not what they are taken for."""
    reference, twin = baseline.climbed.reference, baseline.climbed.twin
    assert isinstance(reference, Reference), "a cell at parity has its reference"
    assert isinstance(twin, Rows), "a cell at parity has its twin"
    if fault == "stale_trace=file":
        return reference.rows
    if fault == "stale_trace=prompt":
        n_prompts = len(reference.prompts)
        moved = tuple(Position((at.prompt_idx + 1) % n_prompts, at.token_idx) for at in twin.positions)
        return replace(twin, positions=moved)
    spool = folder / ".spool" / twin.spool.name
    spool.parent.mkdir()
    shutil.copyfile(twin.spool, spool)
    rows = np.memmap(spool, dtype="<f4", mode="r+", shape=(len(twin.positions), twin.n_vocab))
    rows[ROW] = rows[ROW - 1]
    rows.flush()
    return replace(twin, spool=spool)
