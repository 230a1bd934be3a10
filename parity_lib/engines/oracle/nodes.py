"""The oracle for whole passes: each op of a capture in float64, on the inputs that the reference gave its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.oracle.engine import PANEL, linear, rms_norm, score_scale, swiglu
from parity_lib.engines.oracle.rope import ANGLES, WALKED, magnitude, rope
from parity_lib.model_file.facts import ModelFile, Tensor, facts_of
from parity_lib.numerics.kernel_noise import RESULT, TERMS
from parity_lib.records.traces import F64


class OracleNodes:
    """Float64 values of the ops of one capture.

    Args:
        nodes: a capture of ``LlamaTaps``.
        path: the file that the reference read.
    """

    def __init__(self, nodes: NodeFile, path: Path) -> None:
        self._nodes, self._file = nodes, ModelFile(path)
        self._facts = facts_of(self._file)

    def value(self, site: str, first: int, n: int) -> F64:
        """Return an op's value at positions, ``(n, width)``, or ``(n_head, n, width)`` inside of attention.

        Activations pass the reference's quantiser before they meet a weight, and RoPE turns by the angles that the
        reference walks to. Of what counts keys, the width is the sequence's length and what the mask hides is zero.

        Args:
            site: full name, ``ffn_out-17``; an op that rounds, or a sum of the residual stream.
            first: first position.
            n: how many.

        Raises:
            EngineError: the op has no rounding of its own, or the capture lacks an input.
        """
        table = sites.table(site)
        block = sites.split(site)[1]
        if table.op == "MUL_MAT":
            return self._attention(site, block or 0, first, n) if table.inner else self._product(site, first, n)
        if table.op == "SOFT_MAX":
            return self._soft_max(block or 0, first, n)
        if table.op == "ROPE":
            return self._rope(site, block or 0, first, n)
        if table.op == "GLU":
            return swiglu(*(self._summed(name, block or 0, first, n) for name in ("ffn_gate", "ffn_up")))
        if table.op == "ADD":
            first_part, second_part = self._added(site, block or 0, first, n)
            return first_part + second_part
        if table.op == "MUL":
            weight = self._tensor(site).dequantize().reshape(-1).astype(np.float64)
            return rms_norm(self._read(site, first, n), weight, float(np.float32(self._facts.rms_eps)))
        raise EngineError("an op that rounds nothing needs no float64 oracle", place=site, found=table.op)

    def scale(self, site: str, first: int, n: int, exact: F64) -> F64:
        """Return what the rounding error of each value is relative to, shaped as ``value`` gives it.

        For a product by what is summed and by the sum (``numerics.kernel_noise.TERMS``); for any other op the size of
        the value itself.
        """
        if sites.table(site).op != "MUL_MAT":
            return np.abs(exact)
        if sites.table(site).inner:
            return product_scale(self._attention(site, sites.split(site)[1] or 0, first, n, power=2), exact)
        squares, weight = np.square(self._read(site, first, n)), self._tensor(site)
        step, out = max(1, PANEL // weight.shape[1]), np.empty(exact.shape)
        for start in range(0, weight.shape[0], step):
            stop = min(start + step, weight.shape[0])
            out[:, start:stop] = squares @ np.square(weight.dequantize(start, stop).astype(np.float64)).T
        return product_scale(out, exact)

    def length(self, site: str) -> int:
        """Return how many terms each value of an op is summed of; 1 where it hardly depends on that, or is no sum."""
        if sites.table(site).op == "MUL_MAT" and not sites.table(site).inner:
            return self._tensor(site).shape[1]
        return self._facts.n_embd if sites.table(site).op == "MUL" else 1

    def weight_type(self, site: str) -> str:
        """Return ggml's name of the type of the weight that an op multiplies with; empty if there is none."""
        return self._tensor(site).type if sites.table(site).weight else ""

    def _product(self, site: str, first: int, n: int) -> F64:
        product: F64 = linear(self._tensor(site), self._read(site, first, n), rounded=True)
        return product

    def _attention(self, site: str, block: int, first: int, n: int, power: int = 1) -> F64:
        facts, n_keys = self._facts, first + n
        shared = facts.n_head // facts.n_head_kv
        if sites.split(site)[0] == "kq":
            queries = self._rows(f"Qcur-{block}", first, n).reshape(n, facts.n_head, -1)
            keys = self._rows(f"Kcur-{block}", 0, n_keys).reshape(n_keys, facts.n_head_kv, -1)
            queries, keys = queries**power, keys**power
            scores = np.stack([queries[:, head] @ keys[:, head // shared].T for head in range(facts.n_head)])
            return np.where(self._visible(first, n), scores, 0.0)
        weights = self._inner(f"kq_soft_max-{block}", first, n) ** power
        values = self._rows(f"Vcur-{block}", 0, n_keys).reshape(n_keys, facts.n_head_kv, -1) ** power
        return np.stack([weights[head] @ values[:, head // shared] for head in range(facts.n_head)])

    def _added(self, site: str, block: int, first: int, n: int) -> tuple[F64, F64]:
        """Return the two values that a sum of the residual stream adds."""
        if sites.split(site)[0] == "l_out":
            return self._summed("ffn_out", block, first, n), self._rows(f"ffn_inp-{block}", first, n)
        stream = f"l_out-{block - 1}" if block else sites.EMBD.name
        return self._summed("attn_out", block, first, n), self._rows(stream, first, n)

    def _soft_max(self, block: int, first: int, n: int) -> F64:
        scores = self._inner(f"kq-{block}", first, n) * score_scale(self._facts.key_length)
        scores[:, ~self._visible(first, n)] = -np.inf
        raised = np.exp(scores - scores.max(-1, keepdims=True))
        out: F64 = raised / raised.sum(-1, keepdims=True)
        return out

    def _rope(self, site: str, block: int, first: int, n: int) -> F64:
        facts = self._facts
        kept = self._file.tensors.get("rope_freqs.weight")
        divisors = np.ones(facts.rope_dim // 2) if kept is None else kept.dequantize().reshape(-1).astype(np.float64)
        positions = np.arange(first, first + n, dtype=np.float64)
        angles = ANGLES[WALKED](positions, facts.rope_base, facts.rope_dim, divisors, facts.rope_scaling)
        heads = self._summed(f"{site[0]}cur.MUL_MAT", block, first, n).reshape(n, -1, facts.key_length)
        scale = magnitude(facts.rope_scaling)
        return rope(heads, angles, adjacent=facts.arch == "llama", magnitude=scale).reshape(n, -1)

    def _visible(self, first: int, n: int) -> np.ndarray:
        return np.arange(first + n) <= np.arange(first, first + n)[:, np.newaxis]

    def _inner(self, site: str, first: int, n: int) -> F64:
        return self._nodes.inner(site, self._facts.n_head, first + n, first, first + n).astype(np.float64)

    def _rows(self, site: str, first: int, n: int) -> F64:
        return self._nodes.rows(site, first, first + n).astype(np.float64)

    def _summed(self, product: str, block: int, first: int, n: int) -> F64:
        return self._rows(sites.summed(product, block, self._facts.biases), first, n)

    def _read(self, site: str, first: int, n: int) -> F64:
        """Return what a norm or a product with a weight reads."""
        return self._rows(sites.producer(site, self._facts.n_layer), first, n)

    def _tensor(self, site: str) -> Tensor:
        return self._file.tensors[sites.weight_name(site, tied=self._facts.tied_output)]


def product_scale(squares: F64, exact: F64) -> F64:
    """Return sqrt(TERMS sum a^2 b^2 + RESULT S^2) of products, from their sums of squares and their values."""
    return np.asarray(np.sqrt(TERMS * squares + RESULT * np.square(exact)))
