"""The candidate beside itself: where a decoded row parts from the same row of a prefill, which it may not by a bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from parity_lib.engines import sites
from parity_lib.engines.burn import Burn
from parity_lib.engines.burn_paths import PASS_ROWS
from parity_lib.errors import EngineError
from parity_lib.traces import F32

MAX_INNER = 256  # rows up to which the inside of attention is held together too: it grows with their square


@dataclass(frozen=True, slots=True)
class Parting:
    """One row made in two ways, site by site."""

    sites: tuple[str, ...]  # that were held together, in the order of the run
    parted: tuple[str, ...]  # those of them that are not equal to the bit
    size: float  # at the first of them, norm of the difference over norm of the value; 0 if there is none


class BurnSelf(Burn):
    """``Burn`` that can hold its decode of a row to its prefill."""

    def part(self, sequence: Sequence[int], row: int) -> Parting:
        """Feed a sequence up to a row in passes of many rows, and again with that row as a pass of its own.

        Args:
            sequence: token ids; of those after the row, the prefill gets what its pass has room for.
            row: which one is compared.

        Raises:
            EngineError: there is no such row, or a token id is not in the vocabulary.
        """
        self._check([sequence])
        if not 0 <= row < len(sequence):
            raise EngineError("there is no such row", place="row", expected=f"0 to {len(sequence) - 1}", found=row)
        start = row - row % PASS_ROWS
        before = [PASS_ROWS] * (row // PASS_ROWS)
        together = self._row(sequence, [*before, min(PASS_ROWS, len(sequence) - start)], row - start)
        alone = self._row(sequence, [*before, *([row - start] if row > start else []), 1], 0)
        parted = tuple(site for site in together if not _same(together[site], alone[site]))
        size = 0.0
        if parted:
            first, other = together[parted[0]].astype(np.float64), alone[parted[0]]
            norm = float(np.linalg.norm(first))
            size = float(np.linalg.norm(other - first)) / norm if norm else float("inf")
        return Parting(tuple(together), parted, size)

    def _row(self, sequence: Sequence[int], passes: Sequence[int], row: int) -> Mapping[str, F32]:
        """Return each site's value at one row of the last of some passes."""
        session, first = self._new_session(1), 0
        last = sum(passes) - passes[-1]
        names = sites.expected(self._facts["n_layer"], self._facts["n_bias"] > 0)
        held = [name for name in names if last + passes[-1] <= MAX_INNER or not sites.table(name).inner]
        taps: Mapping[str, tuple[list[int], bytes]] = {}
        for n_rows in passes:
            rows = [(0, token) for token in sequence[first : first + n_rows]]
            with self._translated():
                _, taps = session.append(rows, taps=held if first == last else [], logits=None if first == last else [])
            first += n_rows
        return {site: _at(site, *taps[site], passes[-1], row, last + row) for site in held}


def _at(site: str, shape: list[int], raw: bytes, n_rows: int, row: int, position: int) -> F32:
    values: F32 = np.frombuffer(raw, "<f4").reshape(shape)
    if not sites.table(site).inner:
        whole: F32 = values[row]
        return whole
    mine: F32 = values.reshape(-1, n_rows, shape[-1])[:, row]
    return mine if sites.split(site)[0] == "kqv" else mine[:, : position + 1]


def _same(first: F32, second: F32) -> bool:
    return first.shape == second.shape and first.tobytes() == second.tobytes()
