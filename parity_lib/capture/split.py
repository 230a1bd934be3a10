"""Capture what the errors of the native path's products are made of, and what other arithmetic does to its logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity_lib.capture.cell_request import Cell
from parity_lib.capture.open_engines import open_burn
from parity_lib.compare.split import ErrorSplit, LogitSplit, rms_over_std
from parity_lib.engines.burn_split import ROWS
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.worker import Worker
from parity_lib.names import Compute
from parity_lib.traces import F32

LOGITS = "split.f32"


def split_errors(cell: Cell, sequence: Sequence[int], nodes: Path, file: Path, rounded: Compute) -> ErrorSplit:
    """Split every product of a captured run, and its logits by running the candidate with and without rounding.

    Args:
        cell: its candidate, fault, leg and stack.
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
