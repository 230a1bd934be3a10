"""Replay a capture with a float64 oracle: the error of each op of both engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.burn.replay import BurnReplay, Walk
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.oracle.nodes import OracleNodes
from parity_lib.numerics.op_error import EXACT_OPS, KernelErrors, op_error
from parity_lib.records.traces import F32, F64


class BurnKernels(BurnReplay):
    """``BurnReplay`` with the float64 oracle beside it."""

    def kernels(self, folder: Path, reference: Path, *, progress: Progress) -> list[KernelErrors]:
        """Return the errors of every op, in order: of one engine to the other, and of each to float64 where it rounds.

        Args:
            folder: a capture of ``LlamaTaps``, every pass of it watched.
            reference: the file that the reference read.
            progress: called with positions done and to do.

        Raises:
            EngineError: the engines disagree on the sites, or the capture lacks one.
        """
        capture = NodeFile(Path(folder))
        oracle = OracleNodes(capture, Path(reference))
        session, first, found = self._new_session(1), 0, list[KernelErrors]()
        expected = sites.expected(self._facts["n_layer"], self._facts["biases"])
        for batch, n_rows in enumerate(capture.batches):
            walk = _Arbitrated(capture, batch, first, expected, oracle)
            rows = [(0, token) for token in capture.tokens[first : first + n_rows]]
            with self._translated():
                session.append(rows, logits=None, observe=walk.see)
            walk.finish()
            found += walk.kernels
            first += n_rows
            progress(first, len(capture.tokens))
        return found


class _Arbitrated(Walk):
    """A walk that asks the float64 oracle at each site."""

    def __init__(self, capture: NodeFile, batch: int, first: int, expected: Sequence[str], oracle: OracleNodes) -> None:
        super().__init__(capture, batch, first, expected, rounds=False)
        self._oracle = oracle
        self.kernels: list[KernelErrors] = []

    def _compare(self, site: str, reference: F32, candidate: F32) -> None:
        super()._compare(site, reference, candidate)
        op, buffer = sites.table(site).op, self._capture.buffer(self._batch, site)
        if op in EXACT_OPS and not is_residual(site):
            self.kernels.append(KernelErrors("", buffer, None, None, self._errors[-1]))
            return
        exact = self._oracle.value(site, self._first, self._n_rows)
        scale = self._oracle.scale(site, self._first, self._n_rows, exact)
        seen = exact.shape[-1]  # without the keys that the mask hides
        noise = [relative_noise(side[..., :seen], exact, scale) for side in (reference, candidate)]
        if seen < reference.shape[-1]:
            exact = np.pad(exact, ((0, 0), (0, 0), (0, reference.shape[-1] - seen)))
        sides = (None, None) if op in EXACT_OPS else (reference, candidate)
        theirs, ours = (
            None if side is None else op_error(site, op, self._batch, self._first, exact, side) for side in sides
        )
        kind, length = self._oracle.weight_type(site), self._oracle.length(site)
        self.kernels.append(KernelErrors(kind, buffer, theirs, ours, self._errors[-1], length, *noise))


def is_residual(site: str) -> bool:
    """Return whether a site is a sum of the residual stream."""
    return sites.split(site)[0] in ("ffn_inp", "l_out")


def relative_noise(values: F32, exact: F64, scale: F64) -> float:
    """Return the mean square of the errors over the mean square of what they are relative to."""
    return float(np.sum(np.square(values - exact)) / np.sum(np.square(scale)))
