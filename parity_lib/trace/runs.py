"""The engines' runs of a trace: the reference with every node observed, the candidate replaying its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.names import Compute
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.place import Place
from parity_lib.cell.request import Cell
from parity_lib.engines import sites
from parity_lib.engines.oracle.rope import WALKED
from parity_lib.engines.targets import candidate_side
from parity_lib.engines.worker.client import Worker
from parity_lib.numerics.op_error import OpError
from parity_lib.records.runs import RunInfo

ALWAYS = ("embd", "l_out", "result_norm", "result_output")  # sites of the twin that are kept at every position


@dataclass(frozen=True, slots=True)
class Names:
    """What the two sides of a trace are called."""

    reference: str = "llama.cpp"
    candidate: str = "burn"


def names_of(cell: Cell, against: str) -> Names:
    """Return the names of a trace's sides; two stacks of burn are called by their ids."""
    if not against:
        return Names()
    stack = cell.id.stack
    return Names(against, stack) if against != stack else Names(f"{stack} (reference)", f"{stack} (candidate)")


def open_reference(cell: Cell, path: Path, compute: Compute, against: str) -> Worker:
    """Return a worker whose values lead the trace: llama.cpp on a file, or burn on the stack ``against``."""
    if not against:
        return open_llama(cell, path, kind="llama_taps")
    isa = candidate_side(cell.pins.stack(against), cell.id.isa).isa
    return open_burn(cell, "burn_taps", path=str(path), isa=isa, stack=against, compute=compute, fault=None)


def capture(
    cell: Cell,
    path: Path,
    place: Place,
    batches: Sequence[int],
    folder: Path,
    block: int | None = None,
    *,
    compute: Compute = Compute.F32,
    against: str = "",
) -> RunInfo:
    """Run the sequence with the reference, observing every node, or with ``block`` that block's nodes only.

    Args:
        cell: its ISA target and threads.
        path: what the reference reads.
        place: the traced token.
        batches: rows of each pass.
        folder: gets the capture.
        block: the only one whose nodes are observed.
        compute: arithmetic of a stack of burn; llama.cpp has its own.
        against: a stack of burn in llama.cpp's place.
    """
    cell.progress.step(f"{names_of(cell, against).reference}, every node of its graph")
    if block is None:
        watched, always = len(place.fills), list(ALWAYS)
    else:
        every = sites.expected(cell.facts.n_layer, cell.facts.biases)
        names = [site for site in every if sites.split(site)[1] == block]
        watched, always = len(batches), [*names, "embd", f"l_out-{block - 1}"]
    with open_reference(cell, path, compute, against) as engine:
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
