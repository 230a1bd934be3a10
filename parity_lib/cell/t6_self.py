"""The capture of T6: recompute the candidate's rows on every other path and compare with the teacher-forced pass.

Again for all rows would be three more teacher-forced passes and a decode. A part is enough: what a relation finds does
not depend on which row it is: another number of rows in a product, another place among them, keys that are grouped in
another way, another split over threads. What does depend on the position is where one block of keys ends and the next
begins, so every prompt is decoded across such an end, as late as it has one. A long prompt has many, and what lies
before the last one costs as much as the teacher-forced pass: it is decoded across another one each day. ``full``
makes every row again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.progress import Progress
from parity_lib.cell.rows import Rows
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t6_self import Expected, Found, judge_self
from parity_lib.records.measured import Itself
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import Divergence, RungResult

KEY_BLOCK = 32  # the candidate pads its keys to a multiple of this (KEY_PAD in burn_gguf/src/attention.rs)
DECODED = 8  # rows of each prompt, half of them on each side of an end of a block
PASS_ROWS = 256  # at least two prompts, and as many more as stay below this, for relations that feed whole prompts
THREAD_ROWS = 160  # the same for the run with one thread, which has no second core to help


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows are made again, and how. Rows of a sequence count from 0."""

    spans: tuple[tuple[int, int], ...]  # rows of each prompt that are decoded: the first, and the one after the last
    restore_at: int  # steps of the decode after which a new session takes over
    alone: tuple[int, ...]  # prompts that are scored one by one
    permuted: tuple[int, ...]  # prompts whose rows are mixed
    threads: tuple[int, ...]  # prompts that are scored with
    n_threads: int  # threads, another number than the teacher-forced pass had

    def expected(self, prompt_lengths: Sequence[int], lengths: Sequence[int]) -> dict[str, tuple[Position, ...]]:
        """Return the rows that each relation has to give, as positions.

        Args:
            prompt_lengths: tokens of each prompt.
            lengths: tokens that each prompt is fed, with those of its continuation.
        """
        whole = [(0, length) for length in lengths]
        spans = {
            "decode": dict(enumerate(self.spans)),
            "restored": {i: (start + self.restore_at, stop) for i, (start, stop) in enumerate(self.spans)},
            "alone": {i: whole[i] for i in self.alone},
            "permuted": {i: whole[i] for i in self.permuted},
            "threads": {i: whole[i] for i in self.threads},
        }
        return {
            name: tuple(
                Position(i, row - (prompt_lengths[i] - 1)) for i, span in by_prompt.items() for row in range(*span)
            )
            for name, by_prompt in spans.items()
            if by_prompt
        }


def make_plan(lengths: Sequence[int], n_threads: int, *, day: int = 0, full: bool = False) -> Plan:
    """Choose the rows of each relation.

    Args:
        lengths: tokens that each prompt is fed.
        n_threads: of the teacher-forced pass.
        day: chooses where prompts of more than ``PASS_ROWS`` are decoded; 0 is as late as can be.
        full: every row of every prompt, in every relation.

    A single prompt has no others to be alone among or mixed with: those two relations are left out.
    """
    by_length = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    spans = tuple((0, length) if full else _span(length, day) for length in lengths)
    several = by_length if len(lengths) > 1 else []
    short = [i for i in several if lengths[i] <= PASS_ROWS]
    two = [several[0], (short or several)[-1]] if several else []  # the shortest, and the longest that is quick
    other = 1 if n_threads > 1 else 2
    return Plan(
        spans=spans,
        restore_at=min(stop - start for start, stop in spans) // 2,
        alone=tuple(several if full else dict.fromkeys(two)),
        permuted=tuple(several if full else _few(several, lengths, PASS_ROWS, at_least=2)),
        threads=tuple(by_length if full else _few(by_length, lengths, THREAD_ROWS, at_least=1)),
        n_threads=other,
    )


def _span(length: int, day: int) -> tuple[int, int]:
    """Return the rows of one prompt to decode: around the end of a block of keys, else its last ones."""
    n_ends = (length - DECODED // 2) // KEY_BLOCK
    if n_ends > 0 and length > PASS_ROWS:
        n_ends -= day % n_ends
    stop = n_ends * KEY_BLOCK + DECODED // 2 if n_ends > 0 else length
    return max(0, stop - DECODED), stop


def _few(by_length: Sequence[int], lengths: Sequence[int], limit: int, *, at_least: int) -> list[int]:
    """Return the shortest prompts with at most ``limit`` rows in all, but ``at_least`` so many prompts."""
    chosen: list[int] = []
    for i in by_length:
        if len(chosen) >= at_least and sum(lengths[j] for j in chosen) + lengths[i] > limit:
            break
        chosen.append(i)
    return chosen


def rows_again(
    burn: Worker,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    plan: Plan,
    folder: Path,
    progress: Progress,
) -> Found:
    """Compute the rows of a plan with the candidate, and return their digests.

    Args:
        burn: the candidate, as it scored.
        sequences: what is fed, of all prompts.
        prompt_lengths: tokens of each prompt.
        plan: what to make.
        folder: for rows until they are hashed.
        progress: called with (rows done, rows) of the decode, which takes longest.
    """
    found: dict[str, dict[Position, bytes]] = {}

    def keep(name: str, prompt: int, first: int, digests: Any) -> None:  # noqa: ANN401 - an array, out of a worker
        rows = found.setdefault(name, {})
        for row, digest in enumerate(digests, start=first):
            rows[Position(prompt, row - (prompt_lengths[prompt] - 1))] = bytes(digest)

    straight, restored = burn.call("decoded_digests", sequences, plan.spans, plan.restore_at, progress=progress)
    for prompt, (start, _) in enumerate(plan.spans):
        keep("decode", prompt, start, straight[prompt])
        keep("restored", prompt, start + plan.restore_at, restored[prompt])
    for prompt in plan.alone:
        [digests] = burn.call("row_digests", [sequences[prompt]], folder)
        keep("alone", prompt, 0, digests)
    if plan.permuted:
        mixed = burn.call("interleaved_digests", [sequences[i] for i in plan.permuted])
        for prompt, digests in zip(plan.permuted, mixed, strict=True):
            keep("permuted", prompt, 0, digests)
    again = burn.call("row_digests", [sequences[i] for i in plan.threads], folder, n_threads=plan.n_threads)
    for prompt, digests in zip(plan.threads, again, strict=True):
        keep("threads", prompt, 0, digests)
    return found


def check(
    burn: Worker,
    sequences: Sequence[Sequence[int]],
    prompt_lengths: Sequence[int],
    lengths: Sequence[int],
    candidate: Rows,
    *,
    folder: Path,
    progress: Progress,
    day: int = 0,
    full: bool = False,
) -> tuple[RungResult, list[Divergence], Itself]:
    """Judge rung T6 of a candidate: make a plan, make its rows again, compare their digests with the first pass's.

    Args:
        burn: the candidate, opened as for the teacher-forced pass.
        sequences: what was fed.
        prompt_lengths: tokens of each prompt.
        lengths: tokens that each sequence was to have, from what was asked for: what is expected counts by these.
        candidate: the rows of the teacher-forced pass.
        folder: for rows until they are hashed.
        progress: called with (rows done, rows).
        day: see ``make_plan``.
        full: every row in every relation.
    """
    plan = make_plan(lengths, candidate.run.n_threads, day=day, full=full)
    expected: Expected = plan.expected(prompt_lengths, lengths)
    found = rows_again(burn, sequences, prompt_lengths, plan, folder, progress)
    rows = {position: bytes(digest) for position, digest in zip(candidate.positions, candidate.digests, strict=True)}
    finite = [bool(np.isfinite(row).all()) for row in candidate.open()]
    lost = {position for position, is_finite in zip(candidate.positions, finite, strict=True) if not is_finite}
    rung, divergences, relations = judge_self(rows, expected, found, lost)
    threads = f"{candidate.run.n_threads} and {plan.n_threads}"
    return rung, divergences, Itself(relations, full=full, threads=threads, rows=len(rows))
