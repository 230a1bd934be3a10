"""Spools of logit rows in, traces out: which row is which position, top-k and statistics taken block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import EngineError, TraceMismatchError
from parity_lib.numerics.metrics import PairStatistics, RowStatistics, pair_statistics, row_digests, row_statistics
from parity_lib.records.runs import RunInfo
from parity_lib.records.traces import F32, I32, LogitTrace, PairTrace, Position

BLOCK_BYTES = 64 << 20  # of one side; a row of a 128k vocabulary has 0.5 MB

U8 = npt.NDArray[np.uint8]
Sequences = Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows that one engine delivered, where they lie, and which position each one is."""

    run: RunInfo
    spool: Path
    n_vocab: int
    positions: tuple[Position, ...]  # (n,), in the order of the file
    fed_id: I32  # (n,): the token that was fed to get this row

    def open(self) -> F32:
        """Return the rows, memory-mapped read-only, ``(n, n_vocab)`` float32."""
        return np.memmap(self.spool, dtype="<f4", mode="r", shape=(len(self.positions), self.n_vocab))

    @cached_property
    def digests(self) -> U8:
        """Return the SHA-256 of each row, ``(n, 32)``; the file is read once."""
        data = self.open()
        return np.concatenate([row_digests(data[at]) for at in _blocks(len(data), self.n_vocab)])


def fed_sequences(prompts: Sequences, generated: Sequences) -> list[list[int]]:
    """Return the sequences that every engine is fed: each prompt and its generated tokens without the last one."""
    return [[*prompt, *tokens[:-1]] for prompt, tokens in zip(prompts, generated, strict=True)]


def delivered(
    run: RunInfo, spool: Path, n_vocab: int, sequences: Sequences, prompt_lengths: Sequence[int], counts: Sequence[int]
) -> Rows:
    """Name the rows of a spool.

    Args:
        run: info of the engine that wrote it.
        spool: raw float32 rows, sequences one after the other; see ``engines/worker/protocol.py``.
        n_vocab: logits in a row.
        sequences: what was fed.
        prompt_lengths: tokens of each prompt; its last one gives ``token_idx`` 0.
        counts: rows that the engine says it wrote for each sequence. Fewer than fed is kept as it is and
            shows up as missing positions; the file must hold exactly their sum.

    Raises:
        EngineError: more rows than tokens, another number of sequences, or a file of another size.
    """
    if len(counts) != len(sequences) or any(not 0 <= c <= len(s) for c, s in zip(counts, sequences, strict=False)):
        raise EngineError(
            "the engine claims rows for tokens that it was not fed",
            place=run.engine,
            expected=f"at most {[len(s) for s in sequences]}",
            found=list(counts),
        )
    expected, found = sum(counts) * n_vocab * 4, spool.stat().st_size if spool.exists() else 0
    if expected != found:
        raise EngineError(
            "the spool does not hold the rows that the engine reported",
            place=f"{run.engine}: {spool.name}",
            expected=f"{sum(counts)} rows of {n_vocab} logits, {expected} bytes",
            found=f"{found} bytes, {found / (4 * n_vocab):g} rows",
            next_step="run the cell again; if it stays, rows were dropped by the engine",
        )
    positions = [
        Position(prompt_idx, row - (n_prompt - 1))
        for prompt_idx, (n_prompt, count) in enumerate(zip(prompt_lengths, counts, strict=True))
        for row in range(count)
    ]
    fed = [token for sequence, count in zip(sequences, counts, strict=True) for token in sequence[:count]]
    return Rows(run, spool, n_vocab, tuple(positions), np.array(fed, np.int32))


def missing(rows: Rows, expected: Sequence[Position]) -> tuple[Position, ...]:
    """Return the expected positions that the engine did not deliver, in fed order."""
    have = set(rows.positions)
    return tuple(position for position in expected if position not in have)


def trace(rows: Rows) -> LogitTrace:
    """Return one engine's trace: top-64, logsumexp, standard deviation and digest of each row."""
    data = rows.open()
    parts = [row_statistics(data[at]) for at in _blocks(len(data), rows.n_vocab)]
    return _trace(rows, np.arange(len(data)), _join(parts))


def pair(reference: Rows, candidate: Rows, expected: Sequence[Position]) -> PairTrace:
    """Return both traces and their statistics over the whole vocabulary, for every position that both delivered.

    A position that is missing on a side is named in ``extra``; the judge counts against ``expected``.

    Raises:
        TraceMismatchError: the vocabularies differ, a position was fed another token, or nothing is left.
    """
    if reference.n_vocab != candidate.n_vocab:
        raise TraceMismatchError(
            "the vocabularies differ in size",
            place=f"{reference.run.model_path}, {candidate.run.model_path}",
            expected=reference.n_vocab,
            found=candidate.n_vocab,
        )
    at_reference = {position: i for i, position in enumerate(reference.positions)}
    at_candidate = {position: i for i, position in enumerate(candidate.positions)}
    common = [position for position in expected if position in at_reference and position in at_candidate]
    if not common:
        raise TraceMismatchError(
            "no position was delivered by both engines", expected=len(expected), found=0, place=candidate.run.engine
        )
    r = np.array([at_reference[p] for p in common])
    c = np.array([at_candidate[p] for p in common])
    ours, theirs = reference.open(), candidate.open()
    blocks = _blocks(len(common), reference.n_vocab)
    parts = [pair_statistics(_take(ours, r[at]), _take(theirs, c[at])) for at in blocks]
    names = [f.name for f in fields(PairStatistics) if f.name not in ("reference", "candidate")]
    return PairTrace(
        _trace(reference, r, _join([p.reference for p in parts])),
        _trace(candidate, c, _join([p.candidate for p in parts])),
        **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names},
        extra={
            "missing_reference": [list(p) for p in missing(reference, expected)],
            "missing_candidate": [list(p) for p in missing(candidate, expected)],
        },
    )


def _blocks(n_rows: int, n_vocab: int) -> Iterator[slice]:
    step = max(1, BLOCK_BYTES // (4 * n_vocab))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _take(rows: F32, index: np.ndarray) -> F32:
    """Return the rows of an index: a view where they lie one after the other, which they nearly always do."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index) and np.all(np.diff(index) == 1):
        return np.asarray(rows[first : last + 1])
    return np.ascontiguousarray(rows[index])


def _join(parts: Sequence[RowStatistics]) -> RowStatistics:
    return RowStatistics(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(RowStatistics)))


def _trace(rows: Rows, index: np.ndarray, found: RowStatistics) -> LogitTrace:
    positions = [rows.positions[i] for i in index]
    return LogitTrace(
        run=rows.run,
        n_vocab=rows.n_vocab,
        prompt_idx=np.array([p.prompt_idx for p in positions], np.int32),
        token_idx=np.array([p.token_idx for p in positions], np.int32),
        fed_id=rows.fed_id[index],
        row_sha256=rows.digests[index],
        **{f.name: getattr(found, f.name) for f in fields(RowStatistics)},
    )
