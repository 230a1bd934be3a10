"""Make a reproducer: find the smallest piece of an op with which the candidate still gives its recorded value."""

from __future__ import annotations

import platform
import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from msgspec.structs import replace

from parity_lib.base.json_text import encode
from parity_lib.base.names import Compute
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.request import Cell
from parity_lib.engines import machine, sites
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.one_op import OneOp, write_model
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.one_op import Limit, Worst, distance, passed_limit, worst_number
from parity_lib.judge.t3_ops import Replayed
from parity_lib.model_file.facts import facts_of
from parity_lib.model_file.header import ModelFile
from parity_lib.numerics.op_error import OpError
from parity_lib.records.runs import OracleRun, RunInfo
from parity_lib.records.traces import F32
from parity_lib.trace.reproducer.format import LARGEST, At, Engines, Reproducer, Side, save
from parity_lib.trace.reproducer.reduce import Cut, Source, cuts

_BLOCK = re.compile(r"@blk\.(\d+)$")
_HEAD = "k_head_permuted"  # without a block it is block 0's


def save_reproducer(
    cell: Cell, nodes: Path, replayed: Replayed, file: Path, compute: Compute, reference: RunInfo, folder: Path
) -> Path | None:
    """Save a reproducer of the first op of a replay that is over its limit; None without such an op.

    Args:
        cell: its candidate, fault, ISA target and stack.
        nodes: the capture that was replayed, still there.
        replayed: what came of it.
        file: what the reference read.
        compute: the candidate's arithmetic in that replay.
        reference: the reference's run.
        folder: where the reproducer goes; it appears whole or not at all.

    Raises:
        EngineError: an engine refused or died.
        RecordError: the folder cannot be written.
    """
    error = next((error for error in replayed.errors if not error.share <= 1), None)
    if error is None:
        return None
    return save(make_reproducer(cell, nodes, replayed, error, file, compute, reference), folder)


def make_reproducer(
    cell: Cell, nodes: Path, replayed: Replayed, error: OpError, file: Path, compute: Compute, reference: RunInfo
) -> Reproducer:
    """Return the reproducer of one op of a replay, over its limit or not; arguments as ``save_reproducer``."""
    with open_burn(cell, "burn_site", compute=compute) as engine:
        theirs, ours = engine.call("recorded", nodes, error.batch, error.site)
        candidate: RunInfo = engine.call("run_info")
    limit = passed_limit(error, theirs)
    worst = worst_number(error, theirs, ours, limit)
    reference_file, other_file = ModelFile(file), ModelFile(cell.candidate_path)
    source = Source(
        nodes=NodeFile(nodes),
        facts=facts_of(reference_file),
        candidate_facts=facts_of(other_file),
        reference=reference_file,
        candidate=other_file,
        compute=compute,
        error=error,
        limit=limit,
        worst=worst,
        values=(theirs, ours),
    )
    fault = fault_in_block(cell.request.fault, sites.split(error.site)[1])
    cut, reproduced = _smallest(cell, source, fault)
    return Reproducer(
        cell=replace(cell.id, compute=str(compute)),
        at=_at(replayed, error, worst, source.position),
        step=cut.step,
        limit=limit,
        op=cut.op,
        fault=fault,
        asked_fault=cell.request.fault,
        reproduced=reproduced,
        reference=cut.reference,
        candidate=cut.candidate,
        engines=Engines(_versions(reference), _versions(candidate)),
        architecture=platform.machine(),
        machine_class=machine.machine_class(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def fault_in_block(fault: str, block: int | None) -> str:
    """Return a seeded fault renamed for the single block of a reduced model; "" if it is in another block."""
    named = _BLOCK.search(fault)
    if named is None and fault != _HEAD:
        return fault
    wanted = int(named[1]) if named else 0
    return f"{fault.partition('@')[0]}@blk.0" if wanted == block else ""


def reduced_value(cell_log: Path | None, op: OneOp, fault: str, isa: str, stack: str) -> F32:
    """Return the candidate's value of a reduced op, computed in a worker."""
    with tempfile.TemporaryDirectory(prefix="parity-reproducer-") as folder:
        path = write_model(op, Path(folder) / "reduced.gguf")
        asked = {"path": str(path), "isa": isa, "stack": stack, "compute": op.compute, "n_threads": 1}
        with Worker("burn_site", asked | {"fault": fault or None}, log=cell_log) as engine:
            value: F32 = engine.call("value", op)
    return value


def _smallest(cell: Cell, source: Source, fault: str) -> tuple[Cut, bool]:
    """Return the first cut in which the candidate gives its recorded value again, and whether there is one."""
    first: Cut | None = None
    for cut in cuts(source):
        if _bytes(cut.op) > LARGEST:
            continue
        first = first or cut
        value = reduced_value(cell.log("burn"), cut.op, fault, cell.sides.candidate.isa, cell.id.stack)
        if _shows(source, cut) and _is_same(source.limit, cut, value):
            return cut, True
    if first is None:  # every cut is too large: a dot product of 600,000 numbers
        first = next(cuts(source))
    return first, False


def _shows(source: Source, cut: Cut) -> bool:
    """Return whether a cut is over the limit as the whole op is; one of an op inside of its limits need not be."""
    return source.error.share <= 1 or distance(source.limit, cut.reference, cut.candidate, cut.op.judged) > (
        source.limit.value
    )


def _is_same(limit: Limit, cut: Cut, value: F32) -> bool:
    """Return whether a value is the candidate's recorded one, and no nearer to the reference than that."""
    if distance(limit, cut.candidate, value, cut.op.judged) > limit.value:
        return False
    over = [distance(limit, cut.reference, ours, cut.op.judged) > limit.value for ours in (cut.candidate, value)]
    return over[0] == over[1]


def _bytes(op: OneOp) -> int:
    weights = [rows.blocks for rows in (op.weight, op.other_weight) if rows is not None]
    return sum(given.values.nbytes for given in op.inputs) + sum(map(len, weights))


def _at(replayed: Replayed, error: OpError, worst: Worst, position: int) -> At:
    return At(
        site=error.site,
        op=error.op,
        settings=str(replayed.settings),
        phase=error.phase,
        prompt_idx=replayed.prompt_idx,
        token_idx=position - (replayed.n_prompt - 1),
        position=position,
        head=worst.head,
        channel=worst.channel,
        nmse=error.nmse,
        position_nmse=error.position_nmse,
        channel_nmse=error.channel_nmse,
    )


def _versions(run: RunInfo) -> Side:
    """Return the fields of a run info that name the code and the file, without host and path."""
    build = {} if isinstance(run, OracleRun) else encode(run.build)
    return Side(
        engine=run.engine,
        version=run.version,
        commit=run.commit,
        isa=run.isa_requested,
        stack=run.stack,
        compute=run.compute,
        model_sha256=run.model_sha256,
        build={k: build[k] for k in ("source_sha256", "lock_sha256", "crates", "libraries") if k in build},
    )
