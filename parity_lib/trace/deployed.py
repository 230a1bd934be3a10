"""The native path of a trace: T3 of one sequence, the error split of its products, a reproducer of what is over."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_lib.base.errors import ParityError
from parity_lib.base.names import Compute, Settings
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.place import Place
from parity_lib.cell.request import Cell
from parity_lib.engines import sites
from parity_lib.engines.burn.split import ROWS
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.error_split import ErrorSplit, LogitSplit, rms_over_std
from parity_lib.judge.t3_ops import Replayed
from parity_lib.models.twins import ensure_twin
from parity_lib.records.traces import F32
from parity_lib.trace.layers import Layers, compare_layers
from parity_lib.trace.reproducer.make import save_reproducer
from parity_lib.trace.runs import capture, replay, run_oracle

LOGITS = "split.f32"

REPRODUCER = "reproducer"  # folder beside the page
NO_REPRODUCER = "a reproducer holds llama.cpp's values; trace each stack against llama.cpp for one"


@dataclass(frozen=True, slots=True)
class Native:
    """What is found on the native path, while the capture of the deployed file is there."""

    ops: Replayed  # T3
    split: ErrorSplit
    layers: Layers  # end to end, the float64 oracle rounding activations as the reference does
    reproducer: Path | None  # of the first op over its limit
    reproducer_lost: str  # why there is none although an op is over


def trace_native(cell: Cell, place: Place, folder: Path, against: str = "") -> Native:
    """Replay the reference's run of the deployed file (in bf16: of its BF16 twin) with the candidate.

    Args:
        cell: the cell.
        place: the traced token.
        folder: where the capture lies meanwhile.
        against: a stack of burn in llama.cpp's place; it rounds activations as llama.cpp does.
    """
    is_bf16 = cell.id.compute == Compute.BF16
    path = ensure_twin(cell.model_path, cell.pins, kind="BF16") if is_bf16 else cell.model_path
    watched = place.passes[len(place.fills) :]
    n_sites = len(sites.expected(cell.facts.n_layer, cell.facts.biases))
    compute = Compute.BF16 if is_bf16 else Compute.GGML
    run = capture(cell, path, place, place.passes, folder, compute=compute, against=against)
    try:
        errors = tuple(replay(cell, compute, folder))
        found = Replayed(place.prompt_idx, place.n_prompt, Settings.STRICT, watched, n_sites * len(watched), errors)
        split = split_errors(cell, place.sequence, folder, path, compute)
        layers = _end_to_end(cell, place, path, compute, folder)
        reproducer, lost = None, NO_REPRODUCER if against and any(not error.share <= 1 for error in errors) else ""
        if not against:
            try:
                reproducer = save_reproducer(cell, folder, found, path, compute, run, cell.out_dir / REPRODUCER)
            except ParityError as error:  # the trace says what is wrong without it
                lost = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Native(found, split, layers, reproducer, lost)


def _end_to_end(cell: Cell, place: Place, path: Path, compute: Compute, folder: Path) -> Layers:
    """Run the candidate with the reference's rounding, and compare both engines with the oracle."""
    with open_burn(cell, "burn_follow", compute=compute) as engine:
        engine.call("follow", folder, cell.facts.n_head, cell.facts.n_head_kv)
    exact = folder.with_name("rounded")
    try:
        run_oracle(cell, path, place, exact, rounded=True)
        return compare_layers(cell.facts.n_layer, place, folder, exact)
    finally:
        shutil.rmtree(exact, ignore_errors=True)


def split_errors(cell: Cell, sequence: Sequence[int], nodes: Path, file: Path, rounded: Compute) -> ErrorSplit:
    """Split every product of a captured run, and its logits by running the candidate with and without rounding.

    Args:
        cell: its candidate, fault, ISA target and stack.
        sequence: the tokens that were captured.
        nodes: the capture, still there.
        file: what the reference read.
        rounded: the candidate's policy that rounds activations as the reference does on that file.

    Raises:
        EngineError: an engine refused or died, or the capture lacks a site.
    """
    progress = cell.progress.step("what each product's error is made of")
    with open_burn(cell, "burn_split", compute=Compute.F32) as engine:
        products = engine.call("split", nodes, file, progress=progress)
        plain = _rows(engine, sequence, nodes)
    with open_burn(cell, compute=rounded) as engine:
        with_rounding = _rows(engine, sequence, nodes)
    captured = NodeFile(nodes)
    first = captured.first_watched
    reference = captured.rows("result_output", first)
    rows = (reference, plain[first:], with_rounding[first:])
    logits = None
    if all(np.isfinite(values).all() for values in rows):
        logits = LogitSplit(
            rounded=str(rounded),
            n_positions=len(reference),
            plain_to_reference=rms_over_std(reference, rows[1]),
            plain_to_rounded=rms_over_std(reference, reference + (rows[2].astype(np.float64) - rows[1])),
            rounded_to_reference=rms_over_std(reference, rows[2]),
        )
    return ErrorSplit(tuple(products), logits, min(ROWS, len(reference)))


def _rows(engine: Worker, sequence: Sequence[int], nodes: Path) -> F32:
    """Return the candidate's own rows of a sequence, ``(n, n_vocab)``."""
    spool = nodes / LOGITS
    engine.call("score", [list(sequence)], spool)
    rows: F32 = np.fromfile(spool, "<f4").reshape(-1, engine.call("n_vocab"))
    spool.unlink()
    return rows
