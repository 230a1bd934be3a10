"""One reduced op in float64: the float64 oracle between both engines' values of it."""

from __future__ import annotations

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute
from parity_lib.engines.one_op import OneOp, Rows
from parity_lib.engines.oracle.engine import rms_norm, score_scale, swiglu
from parity_lib.engines.oracle.rope import ANGLES, WALKED, magnitude, rope
from parity_lib.numerics.ggml_activations import ACTIVATIONS, minima, product, quantise, round_bf16
from parity_lib.records.traces import F64


def value(op: OneOp) -> F64:
    """Return the op's value on its inputs, flat, every sum in float64; activations pass the reference's quantiser.

    RoPE's angles are those that the reference walks to. Raises ``EngineError`` for an op that there is none of.
    """
    kind = op.table.op
    if kind in ("CONT", "RESHAPE"):
        return op.inputs[0].values.astype(np.float64).reshape(-1)
    if kind == "MUL_MAT":
        return _inner(op) if op.table.inner else _product(op)
    if kind == "SOFT_MAX":
        return _soft_max(op)
    if kind == "ROPE":
        return _rope(op)
    first = op.inputs[0].values[0].astype(np.float64) if op.inputs else np.zeros(0)
    if kind == "GLU":
        return swiglu(op.given("ffn_gate")[0].astype(np.float64), op.given("ffn_up")[0].astype(np.float64))
    if kind == "ADD":
        second = op.inputs[1].values[0] if op.weight is None else op.weight.dequantize().reshape(-1)
        return first + second
    weight = _weight(op).dequantize().astype(np.float64)
    if kind == "GET_ROWS":
        row: F64 = weight[0]
        return row
    if kind == "MUL":
        return rms_norm(first, weight.reshape(-1), float(np.float32(op.eps)))
    raise EngineError("the float64 oracle has no such op", place=op.site, found=kind)


def _weight(op: OneOp) -> Rows:
    if op.weight is None:
        raise EngineError("an op has no weight rows", place=op.site, expected=op.table.weight)
    return op.weight


def _product(op: OneOp) -> F64:
    kept, x = _weight(op), op.inputs[0].values
    weights = kept.dequantize()
    if op.compute == Compute.GGML:
        blocks = np.frombuffer(kept.blocks, np.uint8).reshape(len(kept.rows), -1)
        found = product(weights, quantise(ACTIVATIONS[kept.type], x), minima(kept.type, blocks))
    else:
        is_bf16 = op.compute == Compute.BF16
        found = product(round_bf16(weights) if is_bf16 else weights, quantise("BF16" if is_bf16 else "F32", x))
    out = np.zeros(kept.shape[0])
    out[list(kept.rows)] = found[0]
    return out


def _inner(op: OneOp) -> F64:
    s, n_keys = op.sizes, op.position + 1
    shared = s.n_head // s.n_head_kv
    site, width = ("Kcur", s.key_length) if op.site == "kq" else ("Vcur", s.value_length)
    given = next(given for given in op.inputs if given.site == site)
    cached = np.zeros((n_keys, s.n_head_kv, width))
    cached[list(given.rows)] = given.values.reshape(len(given.rows), s.n_head_kv, width)
    if op.site == "kq":
        queries = op.given("Qcur").reshape(s.n_head, width).astype(np.float64)
        return np.concatenate([cached[:, head // shared] @ queries[head] for head in range(s.n_head)])
    weights = op.given("kq_soft_max")[:, :n_keys].astype(np.float64)
    return np.concatenate([weights[head] @ cached[:, head // shared] for head in range(s.n_head)])


def _soft_max(op: OneOp) -> F64:
    scores = op.given("kq")[:, : op.position + 1].astype(np.float64) * score_scale(op.sizes.key_length)
    raised = np.exp(scores - scores.max(1, keepdims=True))
    out: F64 = (raised / raised.sum(1, keepdims=True)).reshape(-1)
    return out


def _rope(op: OneOp) -> F64:
    divisors = np.ones(op.rope_dim // 2) if op.divisors is None else op.divisors.astype(np.float64)
    angles = ANGLES[WALKED](np.array([float(op.position)]), op.rope_base, op.rope_dim, divisors, op.rope_scaling)
    heads = op.inputs[0].values.astype(np.float64).reshape(1, -1, op.sizes.key_length)
    return rope(heads, angles, adjacent=op.arch == "llama", magnitude=magnitude(op.rope_scaling)).reshape(-1)
