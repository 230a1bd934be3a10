"""One site of the candidate: its value in a captured pass, and its value in the reduced model of one op."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute
from parity_lib.engines import sites
from parity_lib.engines.burn.replay import BurnReplay, Walk, as_bf16
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.one_op import OneOp
from parity_lib.records.traces import F32


class BurnSite(BurnReplay):
    """``BurnReplay`` that hands out one site's value."""

    def recorded(self, folder: Path, batch: int, site: str) -> tuple[F32, F32]:
        """Replay a capture up to a pass; return (reference, candidate) of a site as they were compared.

        Each is ``(n_positions, width)``, or ``(n_head, n_positions, width)`` inside of attention.

        Raises:
            EngineError: the pass does not have the site.
        """
        capture = NodeFile(Path(folder))
        session, first = self._new_session(1), 0
        expected = sites.expected(self._facts["n_layer"], self._facts["biases"])
        for number, n_rows in enumerate(capture.batches[: batch + 1]):
            walk = _Kept(capture, number, first, expected, site, rounds=self._compute == Compute.BF16)
            rows = [(0, token) for token in capture.tokens[first : first + n_rows]]
            with self._translated():
                session.append(rows, logits=None, observe=walk.see if number == batch else walk.fill)
            first += n_rows
        if walk.pair is None:
            raise EngineError("the candidate does not pass the site", place=f"pass {batch}", expected=site)
        return walk.pair

    def value(self, op: OneOp) -> F32:
        """Return the site's value of a reduced op at its position, flat; this engine's file is its reduced model."""
        session, first = self._new_session(1), 0
        seen: list[F32] = []
        with self._translated():
            for n_rows in op.passes():
                inputs = _Inputs(op, first, n_rows)
                session.append([(0, 0)] * n_rows, logits=None, observe=inputs.give)
                seen = inputs.seen
                first += n_rows
        if len(seen) != 1:
            raise EngineError("the candidate does not pass the site once", place=op.site, found=len(seen))
        rounds = self._compute == Compute.BF16 and op.site == sites.EMBD.name
        return as_bf16(seen[0][np.newaxis])[0] if rounds else seen[0]


class _Kept(Walk):
    """A walk that keeps both values of one site."""

    def __init__(
        self, capture: NodeFile, batch: int, first: int, expected: Sequence[str], site: str, *, rounds: bool
    ) -> None:
        super().__init__(capture, batch, first, expected, rounds=rounds)
        self._wanted = site
        self.pair: tuple[F32, F32] | None = None

    def _compare(self, site: str, reference: F32, candidate: F32) -> None:
        if site == self._wanted:
            self.pair = np.array(reference), np.array(candidate)
        super()._compare(site, reference, candidate)


class _Inputs:
    """One pass of the reduced model: puts the op's inputs where they belong and takes its output."""

    def __init__(self, op: OneOp, first: int, n_rows: int) -> None:
        self._op, self._first, self._n_rows = op, first, n_rows
        self._given = {given.site: given for given in op.inputs}
        self._last = first + n_rows == op.position + 1
        self.seen: list[F32] = []

    def give(self, site: str, shape: list[int], raw: bytes) -> bytes | None:
        name = sites.split(site)[0]
        if name == self._op.site:
            if self._last:
                self.seen.append(self._taken(np.frombuffer(raw, "<f4").reshape(shape)))
            return None
        given = self._given.get(name)
        if given is None:
            return None
        out = np.zeros(shape, np.float32)
        if sites.table(name).inner:
            if self._last:
                width = min(shape[1], given.values.shape[1])
                heads = out.reshape(len(given.values), self._n_rows, -1)
                heads[:, -1, :width] = given.values[:, :width]
        else:
            for row, values in zip(given.rows, given.values, strict=True):
                if self._first <= row < self._first + self._n_rows:
                    out[row - self._first] = values
        return out.tobytes()

    def _taken(self, values: F32) -> F32:
        """Return the value at the last row; of what counts keys, as many as there are."""
        if not self._op.table.inner:
            return np.array(values[-1])
        last = values.reshape(self._op.sizes.n_head, self._n_rows, -1)[:, -1]
        return np.array(last if self._op.site == "kqv" else last[:, : self._op.position + 1]).reshape(-1)
