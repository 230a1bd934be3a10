"""What an engine is: token ids in, logits out. It does not sample, compare or print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from parity_lib.base.progress import Progress
from parity_lib.records.traces import RunInfo


class Engine(Protocol):
    """The calls that both engines answer, each inside its own worker process.

    A *spool* is a raw file of little-endian float32 logit rows, ``(n_rows, n_vocab)``,
    C-contiguous, sequences one after the other, one row for each fed token, in order.
    """

    def run_info(self) -> RunInfo:
        """Return what ran: engine, commit, build, settings, threads, file and its SHA-256."""
        ...

    def n_vocab(self) -> int:
        """Return the number of logits in a row."""
        ...

    def score(self, sequences: Sequence[Sequence[int]], spool: Path, *, progress: Progress) -> list[int]:
        """Feed each sequence from an empty cache, write every row's logits, return rows written for each.

        Raises ``EngineError`` if a sequence is empty, holds an id outside of the vocabulary
        or is longer than the model's context.
        """
        ...

    def close(self) -> None:
        """Free the model. A closed engine refuses every other call."""
        ...
