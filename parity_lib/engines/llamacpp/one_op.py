"""Computes one op by ggml's CPU backend: a graph of one op, with the kernels that the reference runs.

Declarations are those of ``ggml.h`` and ``ggml-cpu.h`` at the pinned commit; none is bound by the package.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import EngineError
from parity_lib.engines.llamacpp.abi import GgmlTensor, load
from parity_lib.engines.llamacpp.buffers import PLAIN, InitParams, Reordered, declare
from parity_lib.engines.one_op import OneOp, Rows
from parity_lib.engines.oracle.engine import score_scale
from parity_lib.engines.oracle.rope import BETA_FAST, BETA_SLOW
from parity_lib.engines.worker.protocol import Engine
from parity_lib.records.traces import F32

TYPES = {kind.name: int(kind) for kind in gguf.GGMLQuantizationType}
ROPE = {"llama": 0, "qwen2": 2}  # GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX
ROOM = 16 << 20  # bytes beside the values: tensors, graph, work of one row
Pointer = Any  # a ggml_tensor of ggml's own memory


class LlamaOp(Engine):
    """Computes single ops with the loaded ggml, by the kernels that the op's weight was multiplied with.

    Args:
        n_threads: of a graph; one op of one row has no use for more than 1.

    Raises:
        PinError: the library is not the pinned build.
    """

    def __init__(self, n_threads: int = 1) -> None:
        library = load()
        self._n_threads, self._base = n_threads, library.base
        name = next(name for name in library.loaded if name.startswith("libggml-cpu.so"))
        self._cpu = ctypes.CDLL(str(library.folder / name))
        self.commit = library.commit
        _declare(self._base, self._cpu)
        self._cpu.ggml_cpu_init()

    def value(self, op: OneOp) -> F32:
        """Return what the reference computes for a reduced op, flat; as ``BurnSite.value`` does for the candidate.

        Raises:
            EngineError: ggml refused, or gave other than float32.
        """
        size = ROOM + 4 * sum(given.values.nbytes for given in op.inputs)
        size += 0 if op.weight is None else 4 * len(op.weight.whole().tobytes())
        size += 0 if op.buffer in PLAIN else 8 * op.n_rows * sum(_kept(op).shape)
        context = self._base.ggml_init(InitParams(size, None, False))
        if not context:
            raise EngineError("ggml has no memory for an op", place=op.site, expected=f"{size} bytes")
        try:
            return _Graph(self._base, self._cpu, context, self._n_threads).run(op)
        finally:
            self._base.ggml_free(context)


class _Graph:
    """Builds one op in a context and computes it."""

    def __init__(self, base: ctypes.CDLL, cpu: ctypes.CDLL, context: int, n_threads: int) -> None:
        self._base, self._cpu, self._context, self._n_threads = base, cpu, context, n_threads

    def run(self, op: OneOp) -> F32:
        if op.buffer not in PLAIN:
            return self._reordered(op)
        return _spread(op, self._compute(op, self._built(op)))

    def _built(self, op: OneOp) -> Pointer:
        build = {
            "GET_ROWS": self._get_rows,
            "MUL": self._norm,
            "MUL_MAT": self._product,
            "ADD": self._add,
            "ROPE": self._rope,
            "RESHAPE": self._moved,
            "SOFT_MAX": self._soft_max,
            "CONT": self._moved,
            "GLU": self._swiglu,
        }
        return build[op.table.op](op)

    def _compute(self, op: OneOp, out: Pointer) -> F32:
        graph = self._base.ggml_new_graph(self._context)
        self._base.ggml_build_forward_expand(graph, out)
        status = self._cpu.ggml_graph_compute_with_ctx(self._context, graph, self._n_threads)
        tensor = GgmlTensor.from_address(out)
        if status != 0 or tensor.type != TYPES["F32"]:
            raise EngineError("ggml could not compute an op", place=op.site, found=f"status {status}")
        n = int(np.prod(tensor.ne))
        return np.ctypeslib.as_array(ctypes.cast(tensor.data, ctypes.POINTER(ctypes.c_float)), (n,)).copy()

    def _reordered(self, op: OneOp) -> F32:
        """Multiply by a re-ordered weight, in a pass of as many rows as the recorded op's.

        These kernels take rows four or sixteen at a time, and those that are left over by other code. The row stands
        in its place; copies of it stand in for the others. A run of several threads deals out channels in other groups
        than one thread does, so that its last bits may be others.
        """
        kept = _kept(op)
        rows = np.frombuffer(kept.blocks, np.uint8).reshape(len(kept.rows), -1)
        weight = Reordered(self._base, self._cpu, op.buffer, TYPES[kept.type], rows, kept.shape[1])
        try:
            x = self._new(np.repeat(op.inputs[0].values, op.n_rows, axis=0))
            out = self._compute(op, self._base.ggml_mul_mat(self._context, weight.tensor, x))
        finally:
            weight.free()
        return _spread(op, out.reshape(op.n_rows, -1)[op.row, : len(kept.rows)])

    def _new(self, values: npt.NDArray[Any], kind: str = "F32", shape: Sequence[int] | None = None) -> Pointer:
        """Return a tensor with these bytes; ``shape`` is numpy's."""
        dims = list(reversed(values.shape if shape is None else shape))
        dims += [1] * (4 - len(dims))
        tensor = self._base.ggml_new_tensor_4d(self._context, TYPES[kind], *dims)
        raw = np.ascontiguousarray(values)
        ctypes.memmove(GgmlTensor.from_address(tensor).data, raw.ctypes.data, raw.nbytes)
        return tensor

    def _weight(self, op: OneOp) -> Pointer:
        kept = _kept(op)
        raw = np.frombuffer(kept.blocks, np.uint8)
        shape = (len(kept.rows), kept.shape[1]) if len(kept.shape) == 2 else kept.shape
        return self._new(raw, kept.type, shape)

    def _get_rows(self, op: OneOp) -> Pointer:
        return self._base.ggml_get_rows(self._context, self._weight(op), self._new(np.array([0], np.int32), "I32"))

    def _norm(self, op: OneOp) -> Pointer:
        normed = self._base.ggml_rms_norm(self._context, self._new(op.inputs[0].values), op.eps)
        return self._base.ggml_mul(self._context, normed, self._weight(op))

    def _product(self, op: OneOp) -> Pointer:
        if not op.table.inner:
            return self._base.ggml_mul_mat(self._context, self._weight(op), self._new(op.inputs[0].values))
        s = op.sizes
        if op.site == "kq":
            keys = _by_head(op, "Kcur", s.n_head_kv, s.key_length, op.position + 1)
            queries = op.given("Qcur").reshape(s.n_head, 1, s.key_length)
            return self._base.ggml_mul_mat(self._context, self._new(keys), self._new(queries))
        values = _by_head(op, "Vcur", s.n_head_kv, s.value_length, op.n_kv).transpose(0, 2, 1)
        weights = _padded(op.given("kq_soft_max"), op.n_kv, 0.0).reshape(s.n_head, 1, op.n_kv)
        return self._base.ggml_mul_mat(self._context, self._new(values), self._new(weights))

    def _add(self, op: OneOp) -> Pointer:
        second = self._weight(op) if op.weight is not None else self._new(op.inputs[1].values)
        return self._base.ggml_add(self._context, self._new(op.inputs[0].values), second)

    def _rope(self, op: OneOp) -> Pointer:
        s = op.sizes
        heads = self._new(op.inputs[0].values.reshape(1, -1, s.key_length))
        position = self._new(np.array([op.position], np.int32), "I32")
        divisors = None if op.divisors is None else self._new(op.divisors)
        scaling = op.rope_scaling
        is_yarn = scaling.kind == "yarn"
        # YaRN's own part of the magnitude is put in by the op itself where the context has not taken it out.
        attention = scaling.attn_factor * _out_of_context(scaling.factor if is_yarn else 1.0)
        numbers = (op.rope_base, 1.0 / scaling.factor, float(is_yarn), attention, BETA_FAST, BETA_SLOW)
        n_ctx = scaling.n_ctx_orig or op.position + 1
        return self._base.ggml_rope_ext(
            self._context, heads, position, divisors, op.rope_dim, ROPE[op.arch], n_ctx, *numbers
        )

    def _soft_max(self, op: OneOp) -> Pointer:
        s = op.sizes
        kq = self._new(_padded(op.given("kq"), op.n_kv, 0.0).reshape(s.n_head, 1, op.n_kv))
        hidden = np.where(np.arange(op.n_kv) > op.position, -np.inf, 0.0).astype(np.float32)
        mask = self._new(hidden.reshape(1, op.n_kv))
        return self._base.ggml_soft_max_ext(self._context, kq, mask, score_scale(s.key_length), 0.0)

    def _moved(self, op: OneOp) -> Pointer:
        return self._base.ggml_cont(self._context, self._new(op.inputs[0].values.reshape(1, -1)))

    def _swiglu(self, op: OneOp) -> Pointer:
        gate, up = (self._new(op.given(site)) for site in ("ffn_gate", "ffn_up"))
        return self._base.ggml_swiglu_split(self._context, gate, up)


def _out_of_context(factor: float) -> float:
    """Return what llama.cpp's context leaves of YaRN's magnitude for the op (``llama-context.cpp``): 1 from 1 on."""
    return 1.0 if factor >= 1 else 1.0 / (1.0 + 0.1 * math.log(factor))


def _kept(op: OneOp) -> Rows:
    if op.weight is None:
        raise EngineError("an op has no weight rows", place=op.site, expected=op.table.weight)
    return op.weight


def _by_head(op: OneOp, site: str, n_heads: int, width: int, n_keys: int) -> F32:
    """Return cached keys or values, ``(n_heads, n_keys, width)``; slots that were not kept are zero."""
    given = next(given for given in op.inputs if given.site == site)
    out = np.zeros((n_keys, n_heads * width), np.float32)
    out[list(given.rows)] = given.values
    return np.ascontiguousarray(out.reshape(n_keys, n_heads, width).transpose(1, 0, 2))


def _padded(values: F32, width: int, fill: float) -> F32:
    out = np.full((len(values), width), fill, np.float32)
    out[:, : values.shape[1]] = values[:, :width]
    return out


def _spread(op: OneOp, values: F32) -> F32:
    """Return ggml's numbers in the places of the reduced site: rows that were left out are zero, padded keys cut."""
    if op.site in ("kq", "kq_soft_max"):
        return np.ascontiguousarray(values.reshape(op.sizes.n_head, -1)[:, : op.position + 1]).reshape(-1)
    kept = op.weight
    if op.table.op != "MUL_MAT" or kept is None:
        return values
    out = np.zeros(kept.shape[0], np.float32)
    out[list(kept.rows)] = values
    return out


def _declare(base: ctypes.CDLL, cpu: ctypes.CDLL) -> None:
    declare(base, cpu)
    pointer, number = ctypes.c_void_p, ctypes.c_float
    base.ggml_init.argtypes, base.ggml_init.restype = [InitParams], pointer
    base.ggml_free.argtypes = [pointer]
    base.ggml_new_tensor_4d.argtypes = [pointer, ctypes.c_int, *[ctypes.c_int64] * 4]
    for name, n_tensors, others in (
        ("ggml_get_rows", 2, []),
        ("ggml_rms_norm", 1, [number]),
        ("ggml_mul", 2, []),
        ("ggml_mul_mat", 2, []),
        ("ggml_add", 2, []),
        ("ggml_rope_ext", 3, [*[ctypes.c_int] * 3, *[number] * 6]),
        ("ggml_soft_max_ext", 2, [number, number]),
        ("ggml_cont", 1, []),
        ("ggml_swiglu_split", 2, []),
    ):
        function = getattr(base, name)
        function.argtypes, function.restype = [pointer, *[pointer] * n_tensors, *others], pointer
    base.ggml_new_tensor_4d.restype = pointer
    base.ggml_new_graph.argtypes, base.ggml_new_graph.restype = [pointer], pointer
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    cpu.ggml_graph_compute_with_ctx.restype = ctypes.c_int
