"""The same rows on other ways through the candidate: mixed into one pass, one token at a time, from a restored state.

Only digests leave: a row is hashed where it is made, because it is compared for equality and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parity_lib.base.progress import Progress
from parity_lib.numerics.metrics import row_digests
from parity_lib.records.traces import F32

Digests = npt.NDArray[np.uint8]  # (n, 32): SHA-256 of each row, as ``LogitTrace.row_sha256``
Span = tuple[int, int]  # rows of one sequence: the first, and the one after the last
Session = Any  # burn_gguf.Session
NewSession = Callable[[int], Session]  # for so many sequences, all empty

BLOCK_BYTES = 64 << 20  # of logits that one pass gives back
PASS_ROWS = 1024  # of a pass without logits: its activations stay below the weights of any model that is worth it


def of_file(path: Path, counts: Sequence[int], n_vocab: int) -> list[Digests]:
    """Return the digests of a spool's rows, for each sequence; ``counts`` are its rows."""
    ends = np.cumsum(counts)
    if not ends[-1]:
        return [np.empty((0, 32), np.uint8) for _ in counts]
    rows: F32 = np.memmap(path, "<f4", "r", shape=(int(ends[-1]), n_vocab))
    return np.split(row_digests(rows), ends[:-1])


def interleaved(
    new_session: NewSession, sequences: Sequence[Sequence[int]], n_vocab: int, progress: Progress
) -> list[Digests]:
    """Return the digests of all rows, fed position by position and, at each position, from the last sequence back.

    Neighbours in a pass are rows of different sequences, and passes end anywhere in them: nothing but the tokens
    before a row stands where it stood when whole sequences were fed one after the other.
    """
    session = new_session(len(sequences))
    order = [
        (index, tokens[position])
        for position in range(max(map(len, sequences)))
        for index, tokens in reversed(list(enumerate(sequences)))
        if position < len(tokens)
    ]
    found: list[list[Digests]] = [[] for _ in sequences]
    size = max(1, BLOCK_BYTES // (4 * n_vocab))
    for start in range(0, len(order), size):
        block = order[start : start + size]
        for (index, _), digest in zip(block, _append(session, block, n_vocab), strict=True):
            found[index].append(digest)
        progress(start + len(block), len(order))
    return _joined(found)


def decoded(
    new_session: NewSession,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Span],
    restore_at: int,
    n_vocab: int,
    progress: Progress,
) -> tuple[list[Digests], list[Digests]]:
    """Return the digests of each sequence's span, one token at a time through the cache, all sequences in lockstep.

    The first step has a pass of one row in it, as every step of a product's decode is: a crate may multiply a single
    row by other code than two (gemm does, under burn-flex), and rows in lockstep would hide it.

    Args:
        new_session: makes an empty session.
        sequences: what is fed. What lies before a sequence's span is prefilled, in at least two passes.
        spans: the rows that are decoded, of each sequence.
        restore_at: after so many steps the state is saved. A new session takes it over and decodes the rest again.
        n_vocab: logits in a row; what a session gives back is held to it.
        progress: called with (rows done, rows).

    Returns:
        The digests of all rows of the spans, and those of ``span[0] + restore_at`` on from the restored state.
    """
    session = new_session(len(sequences))
    before = [
        (index, token)
        for index, (tokens, (start, _)) in enumerate(zip(sequences, spans, strict=True))
        for token in tokens[:start]
    ]
    n_steps = max(stop - start for start, stop in spans)
    total = len(before) + sum(stop - start for start, stop in spans)
    done = 0
    for block in _passes(before):
        session.append(block, [], [])
        progress(done := done + len(block), total)
    straight: list[list[Digests]] = [[] for _ in sequences]
    state = session.save() if restore_at == 0 else b""
    for step in range(n_steps):
        _step(session, sequences, spans, step, straight, n_vocab)
        progress(done := min(done + len(sequences), total), total)
        if step + 1 == restore_at:
            state = session.save()
    again = new_session(len(sequences))
    again.restore(state)
    restored: list[list[Digests]] = [[] for _ in sequences]
    for step in range(restore_at, n_steps):
        _step(again, sequences, spans, step, restored, n_vocab)
    return _joined(straight), _joined(restored)


def _passes(rows: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut rows into passes: at least two, so that a sequence is also continued with many rows at once."""
    size = max(1, min(PASS_ROWS, -(-len(rows) // 2)))
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def _step(
    session: Session,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[Span],
    step: int,
    found: list[list[Digests]],
    n_vocab: int,
) -> None:
    """Feed one token to each sequence that is not at its end; in the first step one sequence alone, then the rest."""
    alive = [index for index, (start, stop) in enumerate(spans) if start + step < stop]
    rows = [(index, sequences[index][spans[index][0] + step]) for index in alive]
    passes = [rows] if step > 0 else [rows[:1], rows[1:]]
    for fed in filter(None, passes):
        for (index, _), digest in zip(fed, _append(session, fed, n_vocab), strict=True):
            found[index].append(digest)


def _append(session: Session, rows: Sequence[tuple[int, int]], n_vocab: int) -> Digests:
    raw, _ = session.append(list(rows))
    return row_digests(np.frombuffer(raw, "<f4").reshape(len(rows), n_vocab))


def _joined(found: Sequence[Sequence[Digests]]) -> list[Digests]:
    return [np.array(digests, np.uint8).reshape(-1, 32) for digests in found]
