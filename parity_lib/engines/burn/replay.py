"""Replay a capture of the reference through the candidate: each op on the reference's own inputs.

It is the candidate's forward pass that runs, with its cache, positions, mask and wiring. At every site its value is
compared and then replaced by the reference's, so that the next op starts from what the reference had. What is compared
is each op's own error; one pass over all sites proves the path by induction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute
from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.node_file import NodeFile
from parity_lib.numerics.op_error import OpError, not_finite, op_error
from parity_lib.records.traces import F32, F64

PANEL = 1 << 22  # weights that are float64 at a time: 32 MB
Summed = Callable[[str, NodeFile, int], F64 | None]


class BurnReplay(Burn):
    """``Burn`` that can be led through the reference's values."""

    def replay(self, folder: Path, *, progress: Progress) -> list[OpError]:
        """Replay a capture of ``LlamaTaps``; return the error of every op of every pass, in order.

        Raises:
            EngineError: the engines disagree on the sites, or the capture is damaged.
        """
        capture = NodeFile(Path(folder))
        self._check([capture.tokens])
        session = self._extension.Session(self._model, 1)
        errors: list[OpError] = []
        first = 0
        for batch, n_rows in enumerate(capture.batches):
            fused = self._facts["fused"]
            expected = sites.expected(self._facts["n_layer"], self._facts["biases"], fused)
            # A BF16 twin has its table of embeddings in BF16 too, while the policy rounds what is multiplied.
            rounds = self._compute == Compute.BF16
            walk = Walk(capture, batch, first, expected, fused, rounds=rounds, summed=self._summed)
            rows = [(0, token) for token in capture.tokens[first : first + n_rows]]
            watched = batch >= capture.watched
            with self._translated():
                session.append(rows, logits=None if watched else [], observe=walk.see if watched else walk.fill)
            errors += walk.finish() if watched else []
            first += n_rows
            progress(first, len(capture.tokens))
        return errors

    def _summed(self, site: str, capture: NodeFile, batch: int) -> F64 | None:
        """Return the sum of (weight x activation)^2 of each value of a product with a weight; None for any other op."""
        if sites.table(site).op != "MUL_MAT" or not sites.table(site).weight:
            return None
        shapes = {name: shape for name, _, shape in self.tensors()}
        tensor = sites.weight_name(site, tied="output.weight" not in shapes)
        weights: F32 = np.frombuffer(self.dequantize(tensor), "<f4").reshape(shapes[tensor])
        given = capture.get(batch, sites.producer(site, self._facts["n_layer"])).reshape(capture.batches[batch], -1)
        squares = np.square(given, dtype=np.float64)
        step = max(1, PANEL // weights.shape[1])
        panels = (weights[start : start + step] for start in range(0, len(weights), step))
        return np.concatenate([squares @ np.square(panel, dtype=np.float64).T for panel in panels], axis=1)


class Walk:
    """One pass: sees each site of the candidate, compares, hands back the reference's value."""

    def __init__(
        self,
        capture: NodeFile,
        batch: int,
        first: int,
        expected: Sequence[str],
        fused: Collection[str] = (),
        *,
        rounds: bool,
        summed: Summed | None = None,
    ) -> None:
        self._capture, self._batch, self._first, self._rounds, self._summed = capture, batch, first, rounds, summed
        self._n_rows = capture.batches[batch]
        self._expected, self._fused = list(expected), fused
        self._errors: list[OpError] = []
        self._lost = np.zeros(self._n_rows, bool)  # positions at which the reference's values are not finite up to here

    def see(self, site: str, shape: list[int], raw: bytes) -> bytes:
        """Compare the candidate's value of a site and return the reference's."""
        candidate = np.frombuffer(raw, "<f4").reshape(shape)
        if self._rounds and site == sites.EMBD.name:
            candidate = as_bf16(candidate)
        whole = self._capture.get(self._batch, site)
        if sites.table(site).inner:
            reference = self._inner(site, whole, candidate)
        else:
            reference = whole.reshape(self._n_rows, -1)
            self._compare(site, reference, candidate)
        return np.ascontiguousarray(reference, "<f4").tobytes()

    def fill(self, site: str, _shape: list[int], _raw: bytes) -> bytes | None:
        """Replace the keys and values in the candidate's cache by the reference's; leave every other site unchanged."""
        if not sites.is_cached(site):
            return None
        return np.ascontiguousarray(self._capture.get(self._batch, site), "<f4").tobytes()

    def finish(self) -> list[OpError]:
        """Return every error; raise unless each expected site was passed once and the reference had no other."""
        seen = [error.site for error in self._errors]
        left = [site for site in self._capture.left(self._batch, seen) if sites.split(site)[0] not in self._fused]
        if sorted(seen) != sorted(self._expected) or left:
            raise EngineError(
                "the engines do not have the same sites",
                place=f"pass {self._batch}",
                expected=f"{len(self._expected)} sites, each once",
                found=f"candidate {len(seen)}; missing {sorted(set(self._expected) - set(seen))[:5]}; "
                f"of the reference not compared {left[:5]}",
            )
        return self._errors

    def _inner(self, site: str, whole: F32, candidate: F32) -> F32:
        """Compare the values that the mask keeps; return the reference's value with the candidate's padding.

        The reference pads keys to a multiple of 256 with arbitrary values, the candidate to one of 32 with zeros.
        """
        n_heads = len(candidate) // self._n_rows
        ours = candidate.reshape(n_heads, self._n_rows, -1)
        theirs = whole.reshape(n_heads, self._n_rows, -1)
        if sites.split(site)[0] == "kqv":
            self._compare(site, theirs, ours)
            return theirs
        n_keys = ours.shape[-1]
        visible = np.arange(n_keys) <= self._first + np.arange(self._n_rows)[:, np.newaxis]
        cut = np.where(visible, theirs[..., :n_keys], np.float32(0))
        self._compare(site, cut, np.where(visible, ours, np.float32(0)))
        return cut

    def _compare(self, site: str, reference: F32, candidate: F32) -> None:
        self._lost = self._lost | not_finite(reference)
        op = sites.judged_op(site, self._fused)
        error = op_error(site, op, self._batch, self._first, reference, candidate, self._lost)
        if not error.share <= 1 and self._summed is not None:  # rarely: the scale of a row costs as much as the op
            summed = self._summed(site, self._capture, self._batch)
            error = op_error(site, op, self._batch, self._first, reference, candidate, self._lost, summed)
        self._errors.append(error)


def as_bf16(values: F32) -> F32:
    """Return values rounded to BF16, to nearest even, as float32."""
    rounded: F32 = dequantize(quantize(values, GGMLQuantizationType.BF16), GGMLQuantizationType.BF16)
    return rounded
