"""The native path of a trace: T3 of one sequence, the error split of its products, a capsule of what is over."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from parity_lib.capture.capsule_save import save_capsule
from parity_lib.capture.cell_request import Cell
from parity_lib.capture.model_twins import ensure_twin
from parity_lib.capture.open_engines import open_burn
from parity_lib.capture.split import split_errors
from parity_lib.capture.trace_layers import Layers, compare_layers
from parity_lib.capture.trace_place import Place
from parity_lib.capture.trace_runs import arbitrate, capture, replay
from parity_lib.compare.ops import Replayed
from parity_lib.compare.split import ErrorSplit
from parity_lib.engines import sites
from parity_lib.errors import ParityError
from parity_lib.names import Compute, Settings

CAPSULE = "capsule"  # folder beside the page


@dataclass(frozen=True, slots=True)
class Native:
    """What is found on the native path, while the capture of the deployed file is there."""

    ops: Replayed  # T3
    split: ErrorSplit
    layers: Layers  # end to end, the arbiter rounding activations as the reference does
    capsule: Path | None  # of the first op over its limit
    capsule_lost: str  # why there is none although an op is over


def trace_native(cell: Cell, place: Place, folder: Path) -> Native:
    """Lead the candidate through the reference's run of the deployed file; in bf16, of its BF16 twin."""
    is_bf16 = cell.id.compute == Compute.BF16
    path = ensure_twin(cell.model_path, cell.pins, kind="BF16") if is_bf16 else cell.model_path
    watched = place.passes[len(place.fills) :]
    n_sites = len(sites.expected(cell.facts.n_layer, cell.facts.has_qkv_bias))
    compute = Compute.BF16 if is_bf16 else Compute.GGML
    run = capture(cell, path, place, place.passes, folder)
    try:
        errors = tuple(replay(cell, compute, folder))
        found = Replayed(place.prompt_idx, place.n_prompt, Settings.STRICT, watched, n_sites * len(watched), errors)
        split = split_errors(cell, place.sequence, folder, path, compute)
        layers = _end_to_end(cell, place, path, compute, folder)
        capsule, lost = None, ""
        try:
            capsule = save_capsule(cell, folder, found, path, compute, run, cell.out_dir / CAPSULE)
        except ParityError as error:  # the trace says what is wrong without it
            lost = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Native(found, split, layers, capsule, lost)


def _end_to_end(cell: Cell, place: Place, path: Path, compute: Compute, folder: Path) -> Layers:
    """Let the candidate run beside the capture with the reference's rounding, and hold both against the arbiter."""
    with open_burn(cell, "burn_follow", compute=compute) as engine:
        engine.call("follow", folder, cell.facts.n_head, cell.facts.n_head_kv)
    exact = folder.with_name("rounded")
    try:
        arbitrate(cell, path, place, exact, rounded=True)
        return compare_layers(cell.facts.n_layer, place, folder, exact)
    finally:
        shutil.rmtree(exact, ignore_errors=True)
