"""Trace one token: separate local from inherited error, sum it to the logit, assign it to an engine.

Four runs on the same fed tokens. The native path, led op by op through the reference's values (T3: local error). The
F32 twin, where the candidate runs beside the reference (total error at each site). The float64 oracle on the same
file (whose error). And runs that start from the reference's residual stream, layer by layer (what each adds to one
logit). Engines are opened one after the other, each in a worker process of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.names import Compute
from parity_lib.cell import prompt_tokens
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.place import Place, find_place
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t4_limits import limits_of_rows
from parity_lib.engines import sites
from parity_lib.engines.burn.follow import LOGITS, Entered, Followed
from parity_lib.engines.burn.self_check import Parting
from parity_lib.engines.node_file import NodeFile
from parity_lib.judge.align import align
from parity_lib.judge.error_split import ErrorSplit
from parity_lib.judge.t3_ops import Replayed, judge_ops
from parity_lib.judge.t4_twin import judge_twin
from parity_lib.judge.waterfall import Waterfall, waterfall
from parity_lib.numerics.op_error import OpError
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.runs import RunInfo
from parity_lib.records.traces import PairTrace
from parity_lib.records.verdicts import Divergence, RungResult
from parity_lib.trace.deployed import REPRODUCER, Native, trace_native
from parity_lib.trace.layers import Layers, compare_layers
from parity_lib.trace.runs import Names, capture, names_of, replay, run_oracle


@dataclass(frozen=True, slots=True, eq=False)
class TokenTrace:
    """Everything that was found about one token."""

    cell: Cell
    place: Place
    pair: PairTrace  # the reference on the F32 twin and burn, at every row of the sequence
    limits: DriftLimits
    twin: RungResult  # T4 of these rows
    twin_divergences: tuple[Divergence, ...]
    ops: Replayed  # T3 on the native path: local errors
    native: RungResult  # T3
    split: ErrorSplit  # of every product on the native path
    reproducer: Path | None  # of the first op over its limit on the native path
    reproducer_lost: str  # why there is none although an op is over
    twin_ops: tuple[OpError, ...]  # local errors on the twin, in f32
    own: Parting  # burn's decode of the token against its prefill, on the deployed file
    followed: Followed  # total errors on the twin
    layers: Layers  # on the twin
    native_layers: Layers  # on the deployed file, the float64 oracle with the reference's quantiser of activations
    delta_id: int  # the token whose logit is taken apart
    entered: Entered | None  # None where a logit of the row is not finite
    by_layer: Waterfall | None
    block: int | None  # the one with the largest part
    by_op: Waterfall | None  # inside of that block
    token_text: Mapping[int, bytes]
    runs: Mapping[str, RunInfo]
    against: str = ""  # the stack of burn in llama.cpp's place

    @property
    def names(self) -> Names:
        """Return what its two sides are called."""
        return names_of(self.cell, self.against)


def trace_token(
    cell: Cell, reference: Reference, prompt: str | int = 0, token: int = 0, *, against: str = ""
) -> TokenTrace:
    """Trace one token of one prompt; ``fault`` in the cell's request is seeded into the candidate.

    Args:
        cell: the cell.
        reference: its tokens; llama.cpp generated them, whatever the trace compares.
        prompt: number or name.
        token: 0 chooses the first generated token.
        against: a stack of burn that takes llama.cpp's place, or "".

    Raises:
        UsageError: no such prompt, token or stack.
        EngineError: an engine refused, died, or the two have other sites.
    """
    place = find_place(cell, reference, prompt, token)
    if against:
        cell.pins.stack(against)
    shutil.rmtree(cell.out_dir / REPRODUCER, ignore_errors=True)  # of an earlier trace
    folder = cell.spools / "trace"
    try:
        native = trace_native(cell, place, folder / "native", against)
        return _trace_twin(cell, place, reference, native, folder, against)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)


def _trace_twin(
    cell: Cell, place: Place, reference: Reference, native: Native, folder: Path, against: str
) -> TokenTrace:
    nodes, names = folder / "twin", names_of(cell, against)
    passes = (*place.fills, len(place.sequence) - place.first)
    reference_run = capture(cell, cell.twin_path, place, passes, nodes, against=against)
    twin_ops = replay(cell, Compute.F32, nodes)
    with open_burn(cell, "burn_follow", compute=Compute.F32) as engine:
        followed = engine.call("follow", nodes, cell.facts.n_head, cell.facts.n_head_kv)
        candidate_run = engine.call("run_info")
    with open_burn(cell, "burn_self") as engine:
        own = engine.call("part", list(place.sequence), place.row)
    oracle_run = run_oracle(cell, cell.model_path, place, folder, rounded=False)
    runs = {"reference-twin": reference_run, "candidate": candidate_run, "oracle": oracle_run}
    pair, limits = _pair(cell, place, folder, runs)
    rung, divergences, _ = judge_twin(pair, place.positions, limits)
    seen = align(pair, place.positions)
    delta_id = int(seen.delta_id[place.row])
    entered = _enter(cell, place, nodes, delta_id, names) if seen.finite[place.row] else None
    falls = _falls(cell, place, nodes, entered, delta_id, against)
    return TokenTrace(
        cell=cell,
        place=place,
        pair=pair,
        limits=limits,
        twin=rung,
        twin_divergences=tuple(divergences),
        ops=native.ops,
        native=judge_ops([native.ops])[0],
        split=native.split,
        reproducer=native.reproducer,
        reproducer_lost=native.reproducer_lost,
        twin_ops=tuple(twin_ops),
        own=own,
        followed=followed,
        layers=compare_layers(cell.facts.n_layer, place, nodes, folder),
        native_layers=native.layers,
        delta_id=delta_id,
        entered=entered,
        **falls,
        token_text=prompt_tokens.used_text(reference.token_text, pair),
        runs=runs,
        against=against,
    )


def _pair(cell: Cell, place: Place, folder: Path, runs: Mapping[str, RunInfo]) -> tuple[PairTrace, DriftLimits]:
    """Return the traces of the sequence's rows, and their limits, predicted for this sequence."""
    nodes = NodeFile(folder / "twin")
    spools = {
        "reference-twin": nodes.rows("result_output"),
        "candidate": np.fromfile(folder / "twin" / LOGITS, "<f4"),
    }
    rows = {}
    for name, values in spools.items():
        values.tofile(folder / f"{name}.f32")
        fed = np.array(place.sequence, np.int32)
        rows[name] = Rows(runs[name], folder / f"{name}.f32", cell.facts.n_vocab, place.positions, fed)
    pair = logits.pair(rows["reference-twin"], rows["candidate"], place.positions)
    return pair, limits_of_rows(cell, place.sequence, pair.reference, place.positions)


def _enter(cell: Cell, place: Place, nodes: Path, token: int, names: Names) -> Entered:
    progress = cell.progress.step(f"burn from {names.reference}'s residual stream, layer by layer")
    with open_burn(cell, "burn_follow", compute=Compute.F32) as engine:
        entered: Entered = engine.call("enter", nodes, place.row, token, progress=progress)
    return entered


def _falls(cell: Cell, place: Place, nodes: Path, entered: Entered | None, token: int, against: str) -> dict[str, Any]:
    """Return the waterfall by layer, the block with its largest part, and the waterfall inside of that."""
    if entered is None:
        return {"by_layer": None, "block": None, "by_op": None}
    names = ["embd", *(f"layer {layer}" for layer in range(cell.facts.n_layer)), "result_norm", "result_output"]
    by_layer = waterfall(names, [value for _, value in entered.values])
    block = max(range(cell.facts.n_layer), key=lambda layer: _size(by_layer.parts[1 + layer].value))
    if place.first > 0:  # inside of attention, only the last positions were kept
        nodes = nodes.with_name("block")
        fills = [512] * (len(place.sequence) // 512)
        rest = len(place.sequence) - sum(fills)
        passes = [*fills, *([rest] if rest else [])]
        capture(cell, cell.twin_path, place, passes, nodes, block, against=against)
    progress = cell.progress.step(f"burn inside of layer {block}, op by op")
    with open_burn(cell, "burn_follow", compute=Compute.F32) as engine:
        led = engine.call("lead", nodes, block, cell.facts.n_head, place.row, token, progress=progress)
    by_op = waterfall([sites.split(site)[0] for site, _ in led[1:]], [value for _, value in led])
    return {"by_layer": by_layer, "block": block, "by_op": by_op}


def _size(value: float) -> float:
    return abs(value) if value == value else float("inf")
