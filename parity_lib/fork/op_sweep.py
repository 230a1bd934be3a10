"""Call a stack's ops on inputs that a real model gives them now and then, and hold each result to float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity_lib.fork.probe import StackProbe
from parity_lib.records.traces import F32, F64

LIMIT = 4e-6
"""Largest difference from float64, as a share of what the op's result is measured by: the largest of its row, or the
input itself for SwiGLU. Rounding of f32 sums of 2,048 terms and of a composed sigmoid stays below a third of it."""
WIDTH = 27  # keys of a softmax row: whole vectors of 16 or 8, and some that are left over
FAR = tuple(range(0, 121, 3))  # distances of a score below its row's largest; f32 exp underflows at 87.3 and 103.9


@dataclass(frozen=True, slots=True)
class Case:
    """One op on one family of inputs: the worst result, and for which input."""

    op: str
    case: str
    share: float  # largest difference over what it is measured by; a NaN makes it infinite
    worst: str  # input, exact result, result
    same_bits: bool | None  # a value's bits do not depend on its place in the buffer; None: not checked

    @property
    def sound(self) -> bool:
        """Return whether the op is right here."""
        return self.share <= LIMIT and self.same_bits is not False


class StackOps(StackProbe):
    """``StackProbe`` that tries ops one by one; see there for its arguments."""

    def sweep(self) -> list[Case]:
        """Try every op."""
        return [*self._soft_max(), *self._swiglu(), *self._rms_norm()]

    def _soft_max(self) -> list[Case]:
        """Run softmax on one score at 0 with equal ones far below, and on scores over the whole range of exp."""
        rows = np.array([[0.0, *[-far] * (WIDTH - 1)] for far in FAR], "<f4")
        found = self._weights(rows)
        place = found.copy()  # equal scores have equal weights: each has the bits of the first of them
        place[:, 1:] = found[:, 1:2]
        cases = [
            _case("soft_max", "one key ahead by 0 to 120", rows, _soft_max(rows), found, np.ones(rows.shape), place)
        ]
        for n in (7, 16, WIDTH, 64):
            row = -np.linspace(0, 110, n, dtype="<f4")[np.newaxis]
            words = f"{n} keys, scores down to -110"
            cases.append(_case("soft_max", words, row, _soft_max(row), self._weights(row), np.ones(row.shape)))
        return cases

    def _weights(self, rows: F32) -> F32:
        raw = self._extension.op_soft_max(rows.tobytes(), rows.shape[1], [rows.shape[1]] * len(rows), 1.0)
        return np.frombuffer(raw, "<f4").reshape(rows.shape)

    def _swiglu(self) -> list[Case]:
        found = []
        for words, low, high in (("gates of -20 to 20", -20, 20), ("gates of -120 to 120", -120, 120)):
            gate = np.linspace(low, high, 481, dtype="<f4")
            exact = gate / (1 + np.exp(-gate.astype(np.float64)))
            alone = np.concatenate([self._gated(np.array([value], "<f4")) for value in gate])
            inside = np.array([self._gated(np.full(48, value, "<f4"))[3] for value in gate])
            size = np.maximum(1, np.abs(gate.astype(np.float64)))
            found.append(_case("swiglu", f"{words}, in a buffer", gate, exact, inside, size, alone))
        return found

    def _gated(self, gate: F32) -> F32:
        raw = self._extension.op_swiglu(gate.tobytes(), np.ones_like(gate).tobytes())
        return np.frombuffer(raw, "<f4")

    def _rms_norm(self) -> list[Case]:
        found = []
        for n_rows in (1, 32, 100):
            rows = np.random.default_rng(5).standard_normal((n_rows, 576)).astype("<f4")
            rows *= np.float32(10.0) ** np.random.default_rng(6).integers(-3, 3, (n_rows, 1))
            rows = rows.astype("<f4")
            wide = rows.astype(np.float64)
            exact = wide / np.sqrt(np.square(wide).mean(1, keepdims=True) + 1e-5)
            together = self._normed(rows)
            alone = np.concatenate([self._normed(row[np.newaxis]) for row in rows])
            size = np.abs(exact).max(1, keepdims=True) * np.ones_like(exact)
            found.append(_case("rms_norm", f"{n_rows} rows of 576", rows, exact, together, size, alone))
        return found

    def _normed(self, rows: F32) -> F32:
        raw = self._extension.op_rms_norm(rows.tobytes(), np.ones(rows.shape[1], "<f4").tobytes(), 1e-5)
        return np.frombuffer(raw, "<f4").reshape(rows.shape)


def _soft_max(rows: F32) -> F64:
    weights = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    exact: F64 = weights / weights.sum(1, keepdims=True)
    return exact


def _case(op: str, words: str, given: F32, exact: F64, found: F32, size: F64, elsewhere: F32 | None = None) -> Case:
    """Compare with float64, and with the same values computed at another place in a buffer."""
    with np.errstate(invalid="ignore"):
        share = np.abs(found.astype(np.float64) - exact) / size
    share = np.where(np.isfinite(share), share, np.inf)
    at = np.unravel_index(int(share.argmax()), share.shape)
    same = None if elsewhere is None else bool(np.array_equal(found.view(np.uint32), elsewhere.view(np.uint32)))
    worst = f"{op} of {given[at]:.6g}: {exact[at]:.6g} is right, found {found[at]:.6g}"
    return Case(op, words, float(share[at]), worst, same)
