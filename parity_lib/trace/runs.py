"""The engines' runs of a trace: llama.cpp with every node observed, burn replaying llama.cpp's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parity_lib.base.names import Compute
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.place import Place
from parity_lib.cell.request import Cell
from parity_lib.engines import sites
from parity_lib.engines.oracle.rope import WALKED
from parity_lib.engines.worker.client import Worker
from parity_lib.numerics.op_error import OpError
from parity_lib.records.runs import RunInfo

ALWAYS = ("embd", "l_out", "result_norm", "result_output")  # sites of the twin that are kept at every position


def capture(
    cell: Cell, path: Path, place: Place, batches: Sequence[int], folder: Path, block: int | None = None
) -> RunInfo:
    """Run the sequence with llama.cpp, observing every node, or with ``block`` that block's nodes only."""
    cell.progress.step("llama.cpp, every node of its graph")
    if block is None:
        watched, always = len(place.fills), list(ALWAYS)
    else:
        every = sites.expected(cell.facts.n_layer, cell.facts.biases)
        names = [site for site in every if sites.split(site)[1] == block]
        watched, always = len(batches), [*names, "embd", f"l_out-{block - 1}"]
    with open_llama(cell, path, kind="llama_taps") as engine:
        engine.call("capture", list(place.sequence), list(batches), folder, watched=watched, always=always)
        run: RunInfo = engine.call("run_info")
    return run


def replay(cell: Cell, compute: Compute, folder: Path) -> list[OpError]:
    """Return the local error of every op of a capture."""
    with open_burn(cell, "burn_replay", compute=compute) as engine:
        errors: list[OpError] = engine.call("replay", folder, progress=cell.progress.step("burn, op by op"))
    return errors


def run_oracle(cell: Cell, path: Path, place: Place, folder: Path, *, rounded: bool) -> RunInfo:
    """Run the sequence with the float64 oracle on a file; ``rounded``: with the reference's activation rounding."""
    progress = cell.progress.step("the float64 oracle" + (", activations rounded" if rounded else ""))
    asked = {"path": str(path), "n_threads": cell.n_threads, "angles": WALKED, "rounded": rounded}
    with Worker("oracle", asked, log=cell.log("oracle")) as engine:
        engine.call("taps", list(place.sequence), folder, progress=progress)
        run: RunInfo = engine.call("run_info")
    return run
