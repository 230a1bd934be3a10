"""The candidate beside itself: where a decoded row parts from the same row of a prefill, which it may not by a bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.records.traces import F32

TOGETHER = 256  # rows of the pass that holds the row: what lies inside of attention grows with them
FILLED = 1024  # rows of a pass before it


@dataclass(frozen=True, slots=True)
class Parting:
    """One row made in two ways, site by site."""

    sites: tuple[str, ...]  # that were held together, in the order of the run; none for a sequence of one row
    parted: tuple[str, ...]  # those of them that are not equal to the bit
    size: float  # at the first of them, norm of the difference over norm of the value; 0 if there is none


class BurnSelf(Burn):
    """``Burn`` that can hold its decode of a row to its prefill."""

    def part(self, sequence: Sequence[int], row: int) -> Parting:
        """Feed a row in a pass with others, and again as a pass of its own.

        Args:
            sequence: token ids; what lies before the pass of the row only fills the cache.
            row: which one is compared.

        Raises:
            EngineError: there is no such row, or a token id is not in the vocabulary.
        """
        self._check([sequence])
        if not 0 <= row < len(sequence):
            raise EngineError("there is no such row", place="row", expected=f"0 to {len(sequence) - 1}", found=row)
        if len(sequence) == 1:
            return Parting((), (), 0.0)
        start = max(0, row + 1 - TOGETHER)
        stop = min(len(sequence), start + TOGETHER)
        together = self._row(sequence, start, [stop - start], row)
        alone = self._row(sequence, start, [row - start, 1] if row > start else [1], row)
        parted = tuple(site for site in together if not _same(together[site], alone[site]))
        size = 0.0
        if parted:
            first, other = together[parted[0]].astype(np.float64), alone[parted[0]]
            norm = float(np.linalg.norm(first))
            size = float(np.linalg.norm(other - first)) / norm if norm else float("inf")
        return Parting(tuple(together), parted, size)

    def _row(self, sequence: Sequence[int], start: int, passes: Sequence[int], row: int) -> Mapping[str, F32]:
        """Return each site's value at a row, which the last of some passes from ``start`` on holds."""
        fills = [FILLED] * (start // FILLED) + [start % FILLED] * (start % FILLED > 0)
        session, first = self._new_session(1), 0
        held: dict[str, F32] = {}
        ends = len(fills) + len(passes) - 1
        for number, n_rows in enumerate([*fills, *passes]):
            rows = [(0, token) for token in sequence[first : first + n_rows]]
            keep = _Keep(held, n_rows, first, row) if number == ends else None
            with self._translated():
                if keep is None:
                    session.append(rows, logits=[])
                else:
                    session.append(rows, logits=None, observe=keep.see)
            first += n_rows
        return held


class _Keep:
    """Keeps one row of each site of a pass; of what counts keys, those that the row sees."""

    def __init__(self, held: dict[str, F32], n_rows: int, first: int, row: int) -> None:
        self._held, self._n_rows, self._first, self._row = held, n_rows, first, row

    def see(self, site: str, shape: list[int], raw: bytes) -> None:
        values: F32 = np.frombuffer(raw, "<f4").reshape(shape)
        own = self._row - self._first
        if not sites.table(site).inner:
            self._held[site] = np.array(values[own])
            return
        mine = values.reshape(-1, self._n_rows, shape[-1])[:, own]
        counts_keys = sites.split(site)[0] != "kqv"
        self._held[site] = np.array(mine[:, : self._row + 1] if counts_keys else mine)


def _same(first: F32, second: F32) -> bool:
    return first.shape == second.shape and first.tobytes() == second.tobytes()
