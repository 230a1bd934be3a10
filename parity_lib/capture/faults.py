"""Seed every known fault into the candidate of one cell, and hold how each ends against how it has to end.

The reference is captured once. A fault then costs one start of the candidate, one forced pass and one judgement.
"""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib import store
from parity_lib.capture import cell as steps
from parity_lib.capture.cell import Cell, CellRequest, Finding, Judgement, Reference
from parity_lib.capture.cell_judge import Bf16Rows
from parity_lib.capture.folder import let_go
from parity_lib.capture.logits import Rows
from parity_lib.compare.kills import ENGINE, RECORD, Drill, Kill, KillMatrix, gate_margin, judge_kill, load_drills
from parity_lib.compare.pins import PinCheck
from parity_lib.engines.machine import machine_class
from parity_lib.errors import ParityError, UsageError
from parity_lib.fixture_file import close_matches
from parity_lib.names import Outcome
from parity_lib.record_file import save_record
from parity_lib.spreads import SelfSpread
from parity_lib.traces import Position
from parity_lib.verdicts import Verdict

KILLS = "kills.json"
FOLDER = "faults"  # of the cells with a fault, inside of the folder of the cell without one
ROW = 2  # of the first prompt: the row that a wrong token or a stale row is put into

Say = Callable[[Kill], None]


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """The cell without a fault: what every fault is judged with, and its own verdict."""

    cell: Cell
    drills: tuple[Drill, ...]
    not_seeded: Mapping[str, str]  # fault -> why it does not fit
    pins: tuple[PinCheck, ...]
    tokens: Finding | None  # None: the file has no vocabulary
    weights: Finding
    reference: Reference
    twin: Rows
    spread: SelfSpread | Bf16Rows
    candidate: Rows
    ops: Finding
    itself: Finding
    isa: Finding
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the cell without a fault; nothing is shown by a fault unless it is PARITY."""
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
        ParityError: as the steps of a cell; what was found is in the cell's folder.
    """
    if request.fault or request.control:
        raise UsageError("the cell without a fault has one", expected="none", found=request.fault or "a red control")
    cell = steps.open_cell(request)
    shutil.rmtree(cell.out_dir / FOLDER, ignore_errors=True)  # of an earlier run: must not be taken for this one's
    (cell.out_dir / KILLS).unlink(missing_ok=True)
    _chosen(_drills(cell, (), faults), cell, only)
    pins = steps.check_pins(cell)
    tokens = steps.compare_tokens(cell)
    weights = steps.compare_weights(cell)
    reference = steps.capture_reference(cell)
    twin = steps.capture_twin(cell, reference)
    spread = steps.capture_spread(cell, reference, twin)
    candidate = steps.capture_candidate(cell, reference)
    ops = steps.replay_ops(cell, reference)
    itself = steps.check_self(cell, reference, candidate)
    isa = steps.prove_isa(cell, reference, candidate)
    found = {"tokens": tokens, "ops": ops, "itself": itself, "isa": isa}
    judgement = steps.judge(cell, pins, weights, reference, twin, candidate, spread=spread, **found)
    store.save_verdict(judgement.verdict, cell.out_dir)
    drills, not_seeded = _chosen(_drills(cell, reference.prompts, faults), cell, only)
    return Baseline(
        cell, drills, not_seeded, pins, tokens, weights, reference, twin, spread, candidate, ops, itself, isa, judgement
    )


def seed_faults(baseline: Baseline, say: Say) -> KillMatrix:
    """Seed one fault after the other, each into a fresh worker; write and return the matrix.

    Raises:
        UsageError: the cell without a fault is not at parity: whatever a fault did could not be told from that.
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
    kills = []
    for drill in baseline.drills:
        kills.append(_seed(baseline, drill))
        say(kills[-1])
    matrix = KillMatrix(
        cell=baseline.cell.id,
        positions=len(baseline.candidate.positions),
        rungs=tuple(r.rung for r in baseline.verdict.rungs if r.outcome is Outcome.PARITY),
        baseline_margin=gate_margin(baseline.verdict),
        kills=tuple(kills),
        not_seeded=dict(baseline.not_seeded),
        machine_class=machine_class(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
    )
    save_record(matrix.to_json(), baseline.cell.out_dir / KILLS, "kills")
    shutil.rmtree(baseline.cell.spools, ignore_errors=True)
    let_go(baseline.cell.out_dir)
    return matrix


def _drills(cell: Cell, prompts: tuple[tuple[int, ...], ...], faults: Path | None) -> tuple[Drill, ...]:
    """Return the drills by the names of this model; positions are known once the prompts are tokenised."""
    last = len(cell.suite.prompts) - 1
    places = {
        "block": 2 * cell.facts.n_layer // 5,
        "last": last,
        "cut": cell.suite.prompts[last].n_tokens - 1,
        "token": ROW - (len(prompts[0]) - 1) if prompts else 0,
    }
    return load_drills(cell.id, places, faults)


def _chosen(drills: tuple[Drill, ...], cell: Cell, only: str) -> tuple[tuple[Drill, ...], dict[str, str]]:
    """Return the drills that fit the model and match ``only``, and of those that match the ones that do not fit."""
    pattern = only if any(c in only for c in "*?[") else f"*{only}*"
    matching = [drill for drill in drills if fnmatch.fnmatchcase(drill.fault, pattern)]
    misfits = {drill.fault: reason for drill in matching if (reason := _misfit(drill, cell))}
    fitting = tuple(drill for drill in matching if drill.fault not in misfits)
    if not fitting:
        names = [drill.fault for drill in drills if not _misfit(drill, cell)]
        raise UsageError(
            f"no fault that fits this model matches --only{close_matches(only, names)}",
            place=cell.id,
            expected=", ".join(names),
            found=f"{only}" + "".join(f"; {fault}: {reason}" for fault, reason in misfits.items()),
        )
    return fitting, misfits


def _misfit(drill: Drill, cell: Cell) -> str:
    """Return why a fault does not fit the model or its prompts; nothing if it does."""
    if drill.needs_bias and not cell.facts.has_qkv_bias:
        return "the model's projections have no biases"
    if drill.fault == "stale_trace=prompt" and len(cell.suite) < 2:
        return "there is only one prompt"
    if drill.fault in (f"token_off={ROW}", "stale_spool=row") and cell.suite.prompts[0].n_tokens <= ROW:
        return f"the first prompt may have fewer than {ROW + 1} rows"
    return ""


def _seed(baseline: Baseline, drill: Drill) -> Kill:
    """Return what becomes of one fault; its verdict stays in a folder of its own."""
    began = time.monotonic()
    folder = baseline.cell.out_dir / FOLDER / drill.fault
    folder.mkdir(parents=True)
    fault = "" if drill.at == RECORD else drill.fault
    request = replace(baseline.cell.request, fault=fault, out_dir=folder)
    # Limits of the sound cell: nothing that a fault has touched may measure them again.
    cell = replace(baseline.cell, request=request, out_dir=folder, started=began, bands=baseline.judgement.bands)
    changed = None
    try:
        if drill.at == RECORD:
            twin, candidate = stale_rows(baseline, drill.fault, folder), baseline.candidate
            ops, itself, isa = baseline.ops, baseline.itself, baseline.isa
        else:
            twin, candidate = baseline.twin, steps.capture_candidate(cell, baseline.reference)
            ops = steps.replay_ops(cell, baseline.reference)
            itself = steps.check_self(cell, baseline.reference, candidate)
            isa = steps.prove_isa(cell, baseline.reference, candidate)
        judgement = steps.judge(
            cell,
            baseline.pins,
            baseline.weights,
            baseline.reference,
            twin,
            candidate,
            spread=baseline.spread,
            tokens=baseline.tokens,
            ops=ops,
            itself=itself,
            isa=isa,
        )
        verdict = judgement.verdict
        changed = _rows_changed(baseline.judgement, judgement) if drill.at == ENGINE else None
    except ParityError:
        verdict = store.load_verdict(folder)  # the step that failed has left it
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
    verdict = replace(verdict, unpinned=baseline.verdict.unpinned)
    store.save_verdict(verdict, folder)
    store.save_divergences(verdict, folder / "divergences.jsonl")
    return judge_kill(drill, verdict, changed, time.monotonic() - began)


def _rows_changed(sound: Judgement, faulty: Judgement) -> int | None:
    """Return how many rows of the candidate have other bits; None where the two are not of the same positions."""
    ours, theirs = sound.twin.candidate.row_sha256, faulty.twin.candidate.row_sha256
    return int((ours != theirs).any(axis=1).sum()) if ours.shape == theirs.shape else None


def stale_rows(baseline: Baseline, fault: str, folder: Path) -> Rows:
    """Return rows of the reference's twin that are not what they are taken for."""
    twin = baseline.twin
    if fault == "stale_trace=file":
        return baseline.reference.rows
    if fault == "stale_trace=prompt":
        n_prompts = len(baseline.reference.prompts)
        moved = tuple(Position((at.prompt_idx + 1) % n_prompts, at.token_idx) for at in twin.positions)
        return replace(twin, positions=moved)
    spool = folder / ".spool" / twin.spool.name
    spool.parent.mkdir()
    shutil.copyfile(twin.spool, spool)
    rows = np.memmap(spool, dtype="<f4", mode="r+", shape=(len(twin.positions), twin.n_vocab))
    rows[ROW] = rows[ROW - 1]
    rows.flush()
    return replace(twin, spool=spool)
