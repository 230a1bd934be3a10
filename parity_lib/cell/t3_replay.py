"""Capture the reference's graph on a few sequences and replay it through the candidate: the capture of rung T3.

What an op gets wrong does not depend on what a prompt says, so a cell replays two: the first, and one that changes from
night to night. ``full`` replays all. Of each, the last rows up to ``watched_rows`` are observed, most in one prefill
and the last two one by one, as a decode; rows before them only fill the cache. Files with types that the target
re-orders for kernels of its own are replayed a second time with those.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute, Settings
from parity_lib.cell import hardness
from parity_lib.cell.climbed import Finding
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.place import watched_rows
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.engines import sites
from parity_lib.engines.llamacpp.buffers import reordering
from parity_lib.engines.llamacpp.settings import N_UBATCH
from parity_lib.engines.node_file import NodeFile
from parity_lib.judge.t3_ops import Replayed, judge_ops, kinds, non_finite_words
from parity_lib.model_file.header import ModelFile
from parity_lib.models.twins import ensure_twin
from parity_lib.records.hardness import Extreme, Hardness
from parity_lib.records.measured import Measured, Ops, ReplayedRows

DECODED = 2  # rows that follow one by one
PLAIN_BUFFERS = frozenset({"CPU", "CPU_Mapped"})  # ggml-cpu's own, and the memory map of the file


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Rows of one sequence, as both engines are fed them."""

    prompt_idx: int
    n_prompt: int  # tokens of the prompt
    sequence: tuple[int, ...]
    passes: tuple[int, ...]  # rows of each
    n_fills: int  # of the passes, those that only fill the cache

    @property
    def watched(self) -> tuple[int, ...]:
        """Return the number of rows of each observed pass."""
        return self.passes[self.n_fills :]


def replay_cell(cell: Cell, reference: Reference) -> Finding:
    """Replay the chosen prompts of a cell, and judge every op (T3).

    Raises:
        EngineError: an engine refused or died, the two have other sites, or weights were not in the requested buffers.
    """
    numbers = chosen(len(reference.prompts), cell.request.day, full=cell.request.full)
    lost = first_non_finite(reference)
    if lost is not None and lost not in numbers:
        numbers = (*numbers, lost)
    excerpts = [excerpt(cell, reference, number) for number in numbers]
    replays = replay(cell, excerpts, Settings.STRICT)
    reordered = reordering(cell.sides.reference.isa, set(cell.facts.types))
    if reordered and cell.id.compute != Compute.BF16:
        replays += replay(cell, excerpts[:1], Settings.REPACKED)
    rung, divergences = judge_ops(replays)
    told = Ops(tuple(map(_told, replays)), kinds(replays), non_finite_words(replays))
    return Finding(rung, tuple(divergences), Measured(ops=told, hardness=_hardness(cell, replays)))


def _hardness(cell: Cell, replays: Sequence[Replayed]) -> Hardness | None:
    """Return how far the reference's values reach in what was replayed with strict settings."""
    strict = [replay for replay in replays if replay.reach]
    biases = hardness.bias_norms(ModelFile(cell.model_path), cell.facts.biases)
    return hardness.join([replay.reach for replay in strict], sum(sum(one.batches) for one in strict), biases)


def first_non_finite(reference: Reference) -> int | None:
    """Return the first prompt with a logit of the reference that is not finite, or None."""
    rows = reference.rows.open()
    bad = (p.prompt_idx for p, row in zip(reference.rows.positions, rows, strict=True) if not np.isfinite(row).all())
    return next(bad, None)


def _told(replay: Replayed) -> ReplayedRows:
    return ReplayedRows(replay.prompt_idx, str(replay.settings), replay.batches, replay.weights_in)


def chosen(n_prompts: int, day: int, *, full: bool) -> tuple[int, ...]:
    """Return the numbers of the prompts that are replayed: the first, and one of the others by the day."""
    if full or n_prompts <= 2:
        return tuple(range(n_prompts))
    return (0, 1 + day % (n_prompts - 1))


def excerpt(cell: Cell, reference: Reference, number: int) -> Excerpt:
    """Return the rows of one prompt that are replayed: its last ones, as many as fit."""
    sequence = tuple(reference.sequences[number])
    decoded = min(DECODED, len(sequence) - 1)
    prefilled = min(watched_rows(cell.facts), len(sequence)) - decoded
    before = len(sequence) - prefilled - decoded
    fills = [N_UBATCH] * (before // N_UBATCH) + [before % N_UBATCH] * (before % N_UBATCH > 0)
    passes = (*fills, prefilled, *[1] * decoded)
    return Excerpt(number, len(reference.prompts[number]), sequence, passes, len(fills))


def replay(cell: Cell, excerpts: Sequence[Excerpt], settings: Settings) -> list[Replayed]:
    """Capture each excerpt with llama.cpp, every node observed, and replay it with burn; one capture on disk at a time.

    In bf16 the reference runs the BF16 twin, and in other policies the file as it is, with burn emulating the
    reference's quantiser of activations.
    """
    is_bf16 = cell.id.compute == Compute.BF16
    path = ensure_twin(cell.model_path, cell.pins, kind="BF16") if is_bf16 else cell.model_path
    folder = cell.spools / "nodes"
    compute = Compute.BF16 if is_bf16 else Compute.GGML
    fused = sites.fused(cell.pins.stack(cell.id.stack).implementation, compute)
    n_sites = len(sites.expected(cell.facts.n_layer, cell.facts.biases, fused))
    replays = []
    with (
        open_llama(cell, path, settings, kind="llama_taps") as reference,
        open_burn(cell, "burn_replay", compute=compute) as candidate,
    ):
        for part in excerpts:
            progress = cell.progress.step(f"op by op, prompt {part.prompt_idx}, {settings}")
            try:
                reference.call("capture", list(part.sequence), list(part.passes), folder, watched=part.n_fills)
                errors = candidate.call("replay", folder, progress=progress)
                weights_in = check_buffers(folder, settings)
                reach = _reach(cell, part, folder) if settings is Settings.STRICT else {}
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            expected = n_sites * len(part.watched)
            replays.append(
                Replayed(
                    part.prompt_idx, part.n_prompt, settings, part.watched, expected, tuple(errors), weights_in, reach
                )
            )
    return replays


def _reach(cell: Cell, part: Excerpt, folder: Path) -> dict[str, Extreme]:
    return hardness.reach(NodeFile(folder), cell.facts, part.prompt_idx, part.n_prompt)


def check_buffers(folder: Path, settings: Settings) -> Counter[str]:
    """Return how many products had their weight in each of the reference's buffers.

    Raises:
        EngineError: weights were re-ordered that should not be, or none were where that was the point.
    """
    found = Counter(NodeFile(folder).weights_in)
    if (settings is Settings.REPACKED) == (set(found) <= PLAIN_BUFFERS):
        raise EngineError(
            "the reference's weights are not in the requested buffers",
            place=f"settings {settings}",
            expected="some re-ordered for kernels of their own" if settings is Settings.REPACKED else "as in the file",
            found=dict(found),
        )
    return found
