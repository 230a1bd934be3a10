"""Find out which ops of a stack are wrong: each on the reference's own inputs, then the model without each of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from parity_lib.base.names import Compute
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.place import Place
from parity_lib.cell.reference import Reference, score_twin
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import pair
from parity_lib.cell.t4_limits import derive_limits
from parity_lib.engines import sites
from parity_lib.engines.node_file import NodeFile
from parity_lib.fork.compare import Side, open_side, score_side
from parity_lib.judge.t4_twin import judge_twin
from parity_lib.numerics.bits import BitDifference, compare_bits
from parity_lib.numerics.op_error import OpError
from parity_lib.records.traces import F32, F64
from parity_lib.records.verdicts import RungResult

# Site -> the plain twin that can take its place (``burn_gguf.plain_ops``), and the site whose values go in.
TWINS: Mapping[str, tuple[str, str]] = {
    "attn_norm": ("rms_norm", ""),
    "ffn_norm": ("rms_norm", "ffn_inp"),
    "result_norm": ("rms_norm", ""),
    "kq_soft_max": ("soft_max", "kq"),
    "ffn_swiglu": ("swiglu", "ffn_gate"),
    "ffn_inp": ("add", "attn_out"),
    "l_out": ("add", "ffn_out"),
}


@dataclass(frozen=True, slots=True)
class WrongOp:
    """One kind of op, replayed in every layer and pass of a sequence."""

    site: str  # without layer
    op: str  # ggml's name
    twin: str  # the plain twin that can take its place, or ""
    n_wrong: int
    n_all: int
    first: OpError  # in the order of the run
    worst: OpError
    inputs: str  # what went in where it is worst


@dataclass(frozen=True, slots=True)
class Without:
    """The model with some ops of the stack replaced by plain twins."""

    side: Side
    bits: BitDifference  # against crates-io
    twin: RungResult | None  # T4 against llama.cpp on the F32 twin; None where no limits are pinned for these prompts


@dataclass(frozen=True, slots=True)
class Replay:
    """A sequence led through a stack, op by op."""

    wrong: tuple[WrongOp, ...]  # kinds of ops over their limit, in the order of the run
    n_ops: int
    deepest: float  # scaled score farthest below its row's largest that softmax was given: exp's argument


def replay_ops(cell: Cell, stack: str, place: Place) -> Replay:
    """Replay the reference's run of a sequence with the stack, op by op.

    Raises:
        EngineError, PinError: the stack is not built or cannot run here, or the engines have other sites.
    """
    folder = cell.spools / "replay"
    try:
        cell.progress.step("llama.cpp, every node of its graph")
        with open_llama(cell, kind="llama_taps") as engine:
            engine.call("capture", list(place.sequence), list(place.passes), folder, watched=len(place.fills))
        with open_side(cell, Side(stack), "burn_replay", Compute.GGML) as engine:
            errors: list[OpError] = engine.call("replay", folder, progress=cell.progress.step(f"{stack}, op by op"))
        nodes = NodeFile(folder)
        return Replay(tuple(_wrong(cell, errors, nodes)), len(errors), _deepest(cell, nodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wrong(cell: Cell, errors: Sequence[OpError], nodes: NodeFile) -> Iterator[WrongOp]:
    """Yield the kinds of ops with an error over its limit, the first in the order of the run first."""
    kinds = dict.fromkeys(sites.split(error.site)[0] for error in errors)
    for name in kinds:
        own = [error for error in errors if sites.split(error.site)[0] == name]
        over = [error for error in own if not error.share <= 1]
        if over:
            worst = max(over, key=lambda error: (error.share, error.max_abs))
            twin = TWINS.get(name, ("", ""))[0]
            inputs = _inputs(cell, worst, nodes)
            yield WrongOp(name, own[0].op, twin, len(over), len(own), over[0], worst, inputs)


def _deepest(cell: Cell, nodes: NodeFile) -> float:
    """Return the lowest argument of exp in all softmax rows of the watched passes."""
    deepest, first = 0.0, sum(nodes.batches[: nodes.watched])
    for batch in range(nodes.watched, len(nodes.batches)):
        n_rows = nodes.batches[batch]
        for layer in range(cell.facts.n_layer):
            values = nodes.get(batch, f"kq-{layer}").reshape(cell.facts.n_head, n_rows, -1)
            for row in range(n_rows):
                deepest = min(deepest, float(_below(cell, values[:, row, : first + row + 1]).min()))
        first += n_rows
    return deepest


def _below(cell: Cell, scores: F32) -> F64:
    """Return scaled scores of one position's heads, ``(n_head, n_keys)``, less the largest of each head."""
    scaled = scores.astype(np.float64) / np.sqrt(cell.facts.key_length)
    below: F64 = scaled - scaled.max(1, keepdims=True)
    return below


def _inputs(cell: Cell, error: OpError, nodes: NodeFile) -> str:
    """Return the inputs of an op at its worst position, in words; "" if they were not captured."""
    name, layer = sites.split(error.site)
    source = TWINS.get(name, ("", ""))[1]
    if name == "attn_norm":
        source, layer = ("l_out", layer - 1) if layer else ("embd", None)
    elif name == "result_norm":
        source, layer = "l_out", cell.facts.n_layer - 1
    if not source:
        return ""
    full = source if layer is None else f"{source}-{layer}"
    row = error.position - error.first_position
    n_rows = nodes.batches[error.batch]
    values = nodes.get(error.batch, full)
    if name == "kq_soft_max":
        scores: F32 = values.reshape(cell.facts.n_head, n_rows, -1)[:, row, : error.position + 1]
        return f"{scores.shape[1]} scores a head, down to {_below(cell, scores).min():.1f} below their row's largest"
    given = values.reshape(n_rows, -1)[row]
    rms = float(np.sqrt(np.square(given.astype(np.float64)).mean()))
    return f"{source} of {given.min():.4g} to {given.max():.4g}, rms {rms:.4g}"


def without_ops(cell: Cell, reference: Reference, stack: str, twins: Sequence[str]) -> Iterator[Without]:
    """Score the model on a stack as it is, with every plain twin alone, with all but one, and with all of them.

    Args:
        cell: the cell.
        reference: the tokens.
        stack: the stack under diagnosis.
        twins: names of plain twins, each once.
    """
    sizes = sorted({0, 1, len(twins) - 1, len(twins)} & set(range(len(twins) + 1)))
    try:
        reference_twin = score_twin(cell, reference)
        limits = derive_limits(cell, reference, reference_twin)
        base = score_side(cell, reference, Side("crates-io"), 0)
        for number, chosen in enumerate((c for size in sizes for c in combinations(twins, size)), start=1):
            side = Side(stack, chosen)
            rows = score_side(cell, reference, side, number)
            rung = judge_twin(pair(reference_twin, rows, rows.positions), rows.positions, limits)[0]
            yield Without(side, compare_bits(base.open(), rows.open(), base.positions), rung)
            rows.spool.unlink()
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
