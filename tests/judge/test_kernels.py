"""Kernels are pooled by op and type of weight; what few rows cannot say is left out; a limit that is broken shows."""

from __future__ import annotations

import numpy as np
import pytest

from parity_lib.judge.kernels import EXACT, Worst, kernels, limits
from parity_lib.numerics.op_error import FEW_ROWS, KernelErrors, OpError, op_error
from parity_lib.records.traces import F32

RANDOM = np.random.default_rng(3)


def error(site: str, op: str, n_rows: int, off: float) -> OpError:
    reference = RANDOM.standard_normal((n_rows, 64)).astype(np.float32)
    candidate: F32 = (reference.astype(np.float64) * (1 + off)).astype(np.float32)
    return op_error(site, op, 0, 0, reference, candidate)


def errors(site: str, op: str, kind: str, n_rows: int, off: float, buffer: str = "CPU") -> KernelErrors:
    found = error(site, op, n_rows, off)
    return KernelErrors(kind, buffer, found, found, found)


def test_ops_are_pooled_by_kernel_in_the_order_of_a_pass() -> None:
    found = kernels(
        [
            errors("attn_norm-0", "MUL", "F32", FEW_ROWS, 0),
            errors("attn_out-0", "MUL_MAT", "Q8_0", FEW_ROWS, 1e-6),
            errors("kq-0", "MUL_MAT", "", FEW_ROWS, 0),
            errors("kqv-0", "MUL_MAT", "", FEW_ROWS, 0),
            errors("ffn_out-0", "MUL_MAT", "Q6_K", FEW_ROWS, 0),
            errors("attn_out-1", "MUL_MAT", "Q8_0", FEW_ROWS, 1e-3),
            errors("ffn_swiglu-1", "GLU", "", FEW_ROWS, 0),
            errors("attn_out-2", "MUL_MAT", "Q8_0", FEW_ROWS, 0, "CPU_REPACK"),
            errors("l_out-1", "ADD", "", FEW_ROWS, 0),
            errors("embd", "GET_ROWS", "", FEW_ROWS, 0),
        ],
        {"CPU"},
    )
    names = ["RMS_NORM, MUL", "MUL_MAT Q8_0", "MUL_MAT keys", "MUL_MAT values", "MUL_MAT Q6_K", "GLU swiglu"]
    assert [kernel.name for kernel in found] == [*names, "MUL_MAT Q8_0 CPU_REPACK", EXACT]
    assert [kernel.n_ops for kernel in found] == [1, 2, 1, 1, 1, 1, 1, 2]
    product = found[1]
    assert product.between.tensor == pytest.approx(1e-6, rel=1e-3)
    assert product.share == pytest.approx(product.between.tensor / limits().tensor)
    assert product.share > 1 > found[2].share


def test_a_decode_counts_for_its_position_alone() -> None:
    [found] = kernels(
        [errors("kq-0", "MUL_MAT", "", FEW_ROWS, 1e-5), errors("kq-0", "MUL_MAT", "", FEW_ROWS - 1, 1e-2)], {"CPU"}
    )
    assert found.between.position == pytest.approx(1e-4, rel=1e-3)
    assert found.between.tensor == pytest.approx(1e-10, rel=1e-1)
    assert found.between.channel < 1e-9


def test_what_was_not_measured_is_not_a_number() -> None:
    few = errors("kq-0", "MUL_MAT", "", FEW_ROWS - 1, 1e-5)
    [found] = kernels([few], {"CPU"})
    assert (found.between.tensor, found.between.channel) == (None, None)
    assert found.between.position is not None
    [moved] = kernels([KernelErrors("", "", None, None, error("l_out-0", "ADD", FEW_ROWS, 1e-6))], {"CPU"})
    assert moved.reference == moved.candidate == Worst(None, None, None)
    assert moved.share == float("inf")
