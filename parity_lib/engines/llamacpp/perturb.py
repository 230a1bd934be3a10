"""Runs the reference with noise on every value that its graph computes: what rounding errors of a size do to logits.

Monte Carlo arithmetic (Parker 1997), on the nodes of a graph in place of single operations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.llamacpp.abi import GgmlTensor
from parity_lib.engines.llamacpp.settings import N_UBATCH
from parity_lib.engines.llamacpp.taps import LlamaTaps, node_key, values_of
from parity_lib.numerics.kernel_noise import (
    KERNELS,
    KEYS,
    RESULT,
    SUMS,
    TERMS,
    VALUES,
    WEIGHT,
    BothNoise,
    KernelNoise,
    of_op,
)
from parity_lib.records.traces import F32, F64, I32

POOL = 1 << 22  # normal numbers that are made once, and read at random places: 16 MB
TILE = 1 << 17  # values that are perturbed at a time: 512 KB, which stay in a core's cache
LARGEST = 32
"""Terms of a sum whose squares are multiplied one by one: those of the largest inputs, where most of a sum comes from.
The other terms count by their mean, so that a pass with noise costs no second product of the same size."""
_INNER = {"kq": KEYS, "kqv": VALUES}


class LlamaPerturbed(LlamaTaps):
    """``LlamaTaps`` on an F32 file whose nodes can get noise while it scores."""

    _noise: _Noise | None = None

    def perturb(
        self,
        sequences: Sequence[Sequence[int]],
        clean: Path,
        ids: I32,
        kernels: KernelNoise | BothNoise,
        *,
        seed: int,
        progress: Progress,
    ) -> tuple[F64, F64]:
        """Score with noise of each kernel's own size on its values, and return how far the logits move.

        Args:
            sequences: token ids.
            clean: the rows that ``score`` gave for the same sequences, raw float32.
            ids: of each row, in the order of the file, the ids whose logits are wanted, ``(n, k)``.
            kernels: the size of the noise of each kernel.
            seed: of the noise; the same seed gives the same numbers on one machine.
            progress: called with rows done and to do.

        Returns:
            The root mean square over the vocabulary of what each row moved, ``(n,)``, and what its logits at ``ids``
            moved, ``(n, k)``; logits, perturbed minus clean.

        Raises:
            EngineError: a node's value, or what it is computed from, is not float32 in this process's memory.
        """
        rows = self._check(sequences, [1] * len(sequences))
        self._grow(max(rows))
        still = np.memmap(clean, "<f4", "r", shape=(sum(rows), self._vocabulary.n_tokens))
        moved = _Moved(still, ids, progress)
        self._noise = noise = _Noise(self._library.base, kernels, np.random.Generator(np.random.PCG64(seed)))
        try:
            for tokens in sequences:
                self._clear()
                for start in range(0, len(tokens), N_UBATCH):
                    moved.add(self._decode(tokens[start : start + N_UBATCH], start))
                    noise.check()
        finally:
            self._noise = None
        return moved.rms, moved.errors

    def _look(self, tensor: int, ask: bool, user_data: object) -> bool:
        return super()._look(tensor, ask, user_data) if self._noise is None else self._noise.see(tensor, ask)


class _Moved:
    """Compares rows with the clean ones as they come."""

    def __init__(self, clean: F32, ids: I32, progress: Progress) -> None:
        self._clean, self._ids, self._progress, self._n = clean, ids, progress, 0
        self.rms = np.empty(len(clean))
        self.errors = np.empty(ids.shape)

    def add(self, rows: F32) -> None:
        """Compare the next rows."""
        for row in rows:
            moved = (row - self._clean[self._n]).astype(np.float64)
            self.rms[self._n] = np.sqrt(moved @ moved / len(moved))
            self.errors[self._n] = moved[self._ids[self._n]]
            self._n += 1
        self._progress(self._n, len(self._clean))


class _Noise:
    """Adds noise in the callback; the first error is raised after the sequence."""

    def __init__(self, base: ctypes.CDLL, kernels: KernelNoise | BothNoise, generator: np.random.Generator) -> None:
        self._base, self._kernels, self._generator = base, kernels, generator
        self._pool: F32 = generator.standard_normal(POOL, np.float32)
        self._names: dict[tuple[bytes, int, bytes], str | None] = {}
        self._scratch, self._squares = (np.empty(TILE, np.float32) for _ in range(2))
        self._sums: dict[int, F32] = {}  # address of a weight -> sum of its squares by channel
        self._error: Exception | None = None

    def check(self) -> None:
        """Raise the first error of the callback."""
        if self._error is not None:
            raise EngineError(f"a node could not be perturbed: {self._error}", place="llama.cpp's graph")

    def see(self, address: int, ask: bool) -> bool:
        """Answer ggml's callback: return whether a node is wanted (``ask``), or perturb its value."""
        try:
            tensor = GgmlTensor.from_address(address)
            kernel = self._kernel(tensor)
            if ask:
                return kernel is not None and self._error is None
            if kernel is not None and self._error is None:
                self._perturb(kernel, tensor)
        except Exception as error:  # noqa: BLE001 - it would be lost in C; kept and raised by check
            self._error = self._error or error
        return not ask

    def _kernel(self, tensor: GgmlTensor) -> str | None:
        key = node_key(tensor)
        if key not in self._names:
            self._names[key] = kernel_of(key[0].decode(), self._base.ggml_op_name(key[1]).decode(), key[2].decode())
        return self._names[key]

    def _perturb(self, kernel: str, tensor: GgmlTensor) -> None:
        values = self._values(tensor)
        if kernel not in (WEIGHT, KEYS, VALUES):
            size = self._sigma(kernel, values.shape[-1])
            for part, scratch in self._tiles(values.reshape(-1, values.shape[-1], copy=False)):
                np.multiply(part, size, out=scratch)
                self._add(part, scratch)
            return
        factors, given = (self._values(GgmlTensor.from_address(tensor.src[i])) for i in (0, 1))
        size = self._sigma(kernel, given.shape[-1])
        if kernel == WEIGHT:
            self._add_product(values[0, 0], *self._scale(factors[0, 0], np.square(given[0, 0])), size)
            return
        shared = given.shape[1] // factors.shape[1]
        squares = np.square(given).reshape(factors.shape[1], shared * given.shape[2], -1)
        for head, left, right in zip(
            values.reshape(len(squares), squares.shape[1], -1, copy=False), squares, factors[0], strict=True
        ):
            self._add_product(head, left, np.square(right).T, size)

    def _sigma(self, kernel: str, length: int) -> np.float32:
        return np.float32(self._kernels.sigma(kernel, length if kernel in SUMS else 1))

    def _scale(self, weights: F32, squares: F32) -> tuple[F32, F32]:
        """Return two matrices whose product is about sum a^2 b^2 of each output, ``(rows, few)``, ``(few, channels)``.

        Args:
            weights: ``(channels, terms)``.
            squares: of the inputs, ``(rows, terms)``.
        """
        n_terms = weights.shape[1]
        largest = np.argsort(squares.sum(axis=0))[-min(LARGEST, n_terms) :]
        address = weights.ctypes.data
        if address not in self._sums:
            self._sums[address] = np.einsum("ct,ct->c", weights, weights)
        left, right = squares[:, largest], np.square(weights[:, largest].T)
        rest = np.maximum(squares.sum(axis=1) - left.sum(axis=1), 0) / max(n_terms - len(largest), 1)
        others = np.maximum(self._sums[address] - right.sum(axis=0), 0)
        return np.column_stack((left, rest)), np.vstack((right, others))

    def _add_product(self, values: F32, left: F32, right: F32, size: np.float32) -> None:
        """Perturb a product, ``(rows, channels)``; two matrices have sum a^2 b^2 of each output as their product."""
        left = left * np.float32(TERMS * size**2)
        at = 0
        for part, scratch in self._tiles(values):
            np.matmul(left, right[:, at : at + part.shape[1]], out=scratch)
            results = self._squares[: part.size].reshape(part.shape)
            np.multiply(part, part, out=results)
            results *= np.float32(RESULT * size**2)
            scratch += results
            np.sqrt(scratch, out=scratch)
            self._add(part, scratch)
            at += part.shape[1]

    def _tiles(self, values: F32) -> Iterator[tuple[F32, F32]]:
        """Yield some columns at a time, ``(rows, columns)``, and a scratch array of their shape."""
        rows, columns = values.shape
        step = max(1, TILE // rows)
        for start in range(0, columns, step):
            part = values[:, start : start + step]
            yield part, self._scratch[: part.size].reshape(part.shape)

    def _add(self, part: F32, size: F32) -> None:
        """Add noise of a size, which is overwritten."""
        at = int(self._generator.integers(POOL - size.size))
        size *= self._pool[at : at + size.size].reshape(size.shape)
        part += size

    def _values(self, tensor: GgmlTensor) -> F32:
        """Return a writable view of a tensor's values, numpy order, four dimensions."""
        is_host = self._base.ggml_backend_buffer_is_host(tensor.buffer)
        return values_of(tensor, tensor.name.decode(), is_host=is_host)


def kernel_of(name: str, op: str, source: str) -> str | None:
    """Return the kernel of a node by name, op and first source; None for a node that rounds nothing, or is no site."""
    site = sites.of_node(name, op, source)
    if site is None:
        return None
    base = sites.split(site)[0]
    if op == "MUL_MAT":
        return _INNER.get(base, WEIGHT)
    kernel = of_op(op)
    return kernel if kernel in KERNELS else None
