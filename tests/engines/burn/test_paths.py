"""What a decode is fed: a token a pass for each sequence, and once a pass of one row, as a product decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from parity_lib.engines.burn.paths import decoded

SEQUENCES, SPANS, N_VOCAB = [[3, 1, 4, 1, 5], [9, 2, 6]], [(2, 5), (1, 3)], 4


class Rows:
    """An engine whose row tells the tokens before it, and ``alone`` more where it is a pass by itself."""

    def __init__(self, n_seq: int, alone: float) -> None:
        self.fed: list[list[int]] = [[] for _ in range(n_seq)]
        self.alone = alone

    def append(self, rows: Sequence[tuple[int, int]], *only_fed: object) -> tuple[bytes, dict[str, Any]]:
        told = []
        for index, token in rows:
            self.fed[index].append(token)
            told.append(np.full(N_VOCAB, float("".join(map(str, self.fed[index]))), "<f4"))
        values = np.array(told, "<f4") + np.float32(self.alone if len(rows) == 1 else 0)
        return b"" if only_fed else values.tobytes(), {}

    def save(self) -> bytes:
        return repr(self.fed).encode()

    def restore(self, state: bytes) -> None:
        self.fed = [[int(word) for word in part.split(",")] for part in state.decode().strip("[]").split("], [")]


@pytest.mark.parametrize("alone", [0.0, 0.5])
def test_bits_of_a_row_by_itself_are_seen_beside_other_sequences(alone: float) -> None:
    sessions: list[Rows] = []

    def new(n_seq: int) -> Rows:
        sessions.append(Rows(n_seq, alone))
        return sessions[-1]

    straight, restored = decoded(new, SEQUENCES, SPANS, 1, N_VOCAB, lambda *_: None)
    honest, _ = decoded(lambda n: Rows(n, 0.0), SEQUENCES, SPANS, 1, N_VOCAB, lambda *_: None)
    assert [session.fed for session in sessions] == [SEQUENCES, SEQUENCES]
    assert [len(digests) for digests in straight] == [3, 2]
    assert [len(digests) for digests in restored] == [2, 1]
    first = [bool((digests[0] == other[0]).all()) for digests, other in zip(straight, honest, strict=True)]
    assert first == [alone == 0.0] * 2  # the first step feeds each of two sequences by itself
