"""Seed faults of one op each, one at a time, and see which op rung T3 names.

The reference is captured once, on the file as it is. A fault then costs one replay: with a switch of the candidate, or
on a copy of the file in which a few bytes are changed and put back.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from parity_lib.base.choice import choose
from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute
from parity_lib.base.record import save_record
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.prompt_tokens import prompt_tokens
from parity_lib.cell.request import Cell
from parity_lib.engines import sites
from parity_lib.engines.machine import machine_class
from parity_lib.faults.file_edits import edited, fits
from parity_lib.faults.op_judge import (
    BIAS,
    OUTPUT_BIAS,
    WIDE,
    OpFault,
    Trial,
    TrialTable,
    judge_trial,
    load_op_faults,
    share_of,
)
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.numerics.op_error import OpError

TRIALS = "place_trials.json"
FEWEST, MOST = 48, 64  # positions of the sequence
FED = 5  # the position whose token's row is edited
Say = Callable[[Trial], None]


def seed_op_faults(cell: Cell, say: Say, only: str = "", path: Path | None = None) -> TrialTable:
    """Seed every fault of one op that fits the model; write and return the table.

    Args:
        cell: the model; its own fault must be empty.
        say: called with each trial as it ends.
        only: a shell pattern of names; a plain word matches anywhere.
        path: a list of the user's own; None is ``fixtures/op_faults.toml``.

    Raises:
        UsageError: no fault that fits matches.
        EngineError: without a fault an op is over its limit already, or an engine refused or died.
    """
    began, folder = time.monotonic(), cell.spools / "faults"
    listed, not_seeded = _chosen(cell, load_op_faults(path), only)
    try:
        tokens = _capture(cell, folder / "nodes")
        copy = Path(shutil.copyfile(cell.model_path, folder / "edited.gguf"))
        sound = _replay(cell, cell.model_path, folder / "nodes", None)
        if not share_of(sound) <= 1:
            worst = max(sound, key=lambda error: error.share)
            raise EngineError(
                "an op is over its limit without a fault, so no fault was seeded", place=worst.site, found=worst.share
            )
        trials = []
        for seeded in listed:
            trials.append(_seed(cell, seeded, folder / "nodes", copy, tokens))
            say(trials[-1])
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
    table = TrialTable(
        cell=cell.id,
        n_positions=len(tokens),
        n_ops=len(sound),
        sound_share=share_of(sound),
        trials=tuple(trials),
        not_seeded=not_seeded,
        machine_class=machine_class(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
    )
    save_record(table, cell.out_dir / TRIALS)
    return table


def _capture(cell: Cell, folder: Path) -> list[int]:
    """Capture a sequence of 48 to 64 tokens with llama.cpp, a prefill and two decodes; return its tokens."""
    with open_llama(cell, kind="llama_taps") as engine:
        longest = max(prompt_tokens(cell.suite, cell.facts, engine), key=len)
        tokens = (longest * FEWEST)[: max(FEWEST, min(MOST, len(longest)))]
        engine.call("capture", tokens, [len(tokens) - 2, 1, 1], folder)
    return tokens


def _replay(cell: Cell, path: Path, nodes: Path, fault: str | None) -> list[OpError]:
    with open_burn(cell, "burn_replay", path=str(path), compute=Compute.GGML, fault=fault) as engine:
        errors: list[OpError] = engine.call("replay", nodes)
    return errors


def _chosen(cell: Cell, listed: Sequence[OpFault], only: str) -> tuple[tuple[OpFault, ...], dict[str, str]]:
    named = [(seeded.at(_block(cell, seeded)[0])[0], seeded) for seeded in listed]
    return choose(only, named, "fault that fits this model", cell.id, lambda seeded: _misfit(cell, seeded))


def _misfit(cell: Cell, seeded: OpFault) -> str:
    if seeded.needs == BIAS and not cell.facts.has_qkv_bias:
        return "the model's projections have no biases"
    if seeded.needs == OUTPUT_BIAS and seeded.at(0)[2] not in cell.facts.biases:
        return "the model has no such bias"
    if seeded.needs == WIDE and set(cell.facts.types) <= {"F32", "BF16"} and "BF16" in cell.facts.types:
        return "its weights are BF16 already"
    return _block(cell, seeded)[1]


def _block(cell: Cell, seeded: OpFault) -> tuple[int, str]:
    """Return the first block from a fault's depth on (then from block 0) that it fits, and "" or why there is none."""
    n_layer = cell.facts.n_layer
    start = seeded.block(n_layer)
    if not seeded.tensor:
        return start, ""
    tensors = ModelFile(cell.model_path).tensors
    for block in (*range(start, n_layer), *range(start)):
        found = tensors.get(_stored(cell, seeded.at(block)[2]))
        if found is not None and fits(seeded.edit, found.type):
            return block, ""
    return start, f"no such tensor has a type with a {seeded.edit.replace('_', ' ')}"


def _stored(cell: Cell, tensor: str) -> str:
    return "token_embd.weight" if tensor == "output.weight" and cell.facts.tied_output else tensor


def _seed(cell: Cell, seeded: OpFault, nodes: Path, copy: Path, tokens: Sequence[int]) -> Trial:
    began = time.monotonic()
    name, site, tensor = seeded.at(_block(cell, seeded)[0])
    sites.table(site)  # raises for a site that does not exist
    if not tensor:
        errors = _replay(cell, cell.model_path, nodes, name)
    else:
        stored = ModelFile(copy).tensors[_stored(cell, tensor)]
        with edited(copy, stored, seeded.edit, _row(seeded, stored, tokens)):
            errors = _replay(cell, copy, nodes, None)
    return judge_trial(name, seeded.what, tensor or "engine", site, errors, time.monotonic() - began)


def _row(seeded: OpFault, tensor: Tensor, tokens: Sequence[int]) -> int:
    if seeded.row == "fed":
        return tokens[FED]
    if seeded.row == "unfed":
        return next(token for token in range(tensor.shape[0] * 2 // 5, tensor.shape[0]) if token not in set(tokens))
    return tensor.shape[0] * 2 // 5
