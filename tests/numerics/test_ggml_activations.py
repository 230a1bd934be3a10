"""The emulated activation quantisers, and the distance of one number."""

from __future__ import annotations

import ctypes

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.engines.llamacpp.abi import load
from parity_lib.judge.one_op import CHANNEL, EXACT, POSITION, TENSOR, Limit, distance, passed_limit, worst_number
from parity_lib.numerics.ggml_activations import ACTIVATIONS, minima, product, quantise, round_bf16
from parity_lib.numerics.op_error import op_error

X = (np.random.default_rng(1).standard_normal((3, 512)) * np.exp(np.linspace(-3, 3, 512))).astype(np.float32)


def ggml(kind: str, row: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """What the loaded library makes of a row: its values, and the sums of Q8_1."""
    library = load()
    cpu = ctypes.CDLL(str(next(library.folder / name for name in library.loaded if "ggml-cpu" in name)))
    block, size = (256, 292) if kind == "Q8_K" else (32, 34 if kind == "Q8_0" else 36)
    out = np.zeros(row.size // block * size, np.uint8)
    function = getattr(cpu, f"quantize_row_{kind.lower().replace('_k', '_K')}")
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(row.ctypes.data, out.ctypes.data, row.size)
    blocks = out.reshape(-1, size)
    if kind == "Q8_K":
        d = blocks[:, :4].copy().view("<f4").astype(np.float64)
        return (d * blocks[:, 4:260].view(np.int8)).reshape(-1), None
    d = blocks[:, :2].copy().view("<f2").astype(np.float64)
    start = 2 if kind == "Q8_0" else 4
    sums = None if kind == "Q8_0" else blocks[:, 2:4].copy().view("<f2").astype(np.float64)[:, 0]
    return (d * blocks[:, start : start + 32].view(np.int8)).reshape(-1), sums


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["Q8_0", "Q8_1", "Q8_K"])
def test_quantisers_are_the_references_own_to_the_bit(kind: str) -> None:
    x = X.copy()
    x[1, 256:] = 0.0  # blocks of nothing
    found = quantise(kind, x)
    for row, values in enumerate(x):
        codes, sums = ggml(kind, values)
        assert np.array_equal(found.values[row], codes)
        assert (found.sums is None) == (sums is None)
        assert found.sums is None or np.array_equal(found.sums[row], sums)


def test_the_plain_types_round_to_nearest_even() -> None:
    assert np.array_equal(quantise("F32", X).values, X)
    assert np.array_equal(quantise("F16", X).values, X.astype(np.float16))
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1e-40], np.float32)
    assert round_bf16(ties)[:2].tolist() == [1.0, 1 + 2**-6]
    assert -1.1e-40 < round_bf16(ties)[2] < -0.9e-40  # subnormals stay


@pytest.mark.parametrize("kind", ["Q4_1", "Q5_1"])
def test_the_minimum_meets_the_rounded_sum(kind: str) -> None:
    weights = np.random.default_rng(2).standard_normal((4, 512)).astype(np.float32)
    blocks = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    real, x = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]), quantise("Q8_1", X)
    m = minima(kind, blocks)
    assert m is not None
    assert x.sums is not None
    codes = real.astype(np.float64).reshape(4, -1, 32) - m[..., None]
    parts = np.einsum("obi,nbi->no", codes, x.values.reshape(3, -1, 32)) + x.sums @ m.T
    assert np.allclose(product(real, x, m), parts, rtol=1e-12)
    assert not np.allclose(product(real, x), parts, rtol=1e-9)  # the term is not nothing
    assert minima("Q8_0", blocks) is None


def test_what_cannot_be_quantised_is_refused() -> None:
    assert set(ACTIVATIONS.values()) == {"F32", "F16", "BF16", "Q8_0", "Q8_1", "Q8_K"}
    with pytest.raises(TraceMismatchError, match="whole blocks"):
        quantise("Q8_K", X[:, :300])
    with pytest.raises(TraceMismatchError):
        quantise("Q4_0", X)


def test_the_limit_that_is_passed_by_most_is_the_one_that_is_kept() -> None:
    reference = np.random.default_rng(3).standard_normal((20, 8)).astype(np.float32)
    reference[:, 6] *= np.float32(1e-4)
    one_row, one_channel, all_rows = (reference.copy() for _ in range(3))
    one_row[4] *= 1 + 1e-5
    one_channel[:, 6] *= 1.01
    all_rows *= np.float32(1 + 1e-5)
    for candidate, kind, place in ((one_row, POSITION, (4, None)), (one_channel, CHANNEL, (None, 6))):
        error = op_error("ffn_out-0", "MUL_MAT", 0, 0, reference, candidate)
        limit = passed_limit(error, reference)
        worst = worst_number(error, reference, candidate, limit)
        assert limit.kind == kind
        assert (worst.row if place[0] is not None else worst.channel) == (place[0] or place[1])
        row = reference[worst.row], candidate[worst.row]
        assert distance(limit, *row, [worst.channel]) > limit.value
    error = op_error("ffn_out-0", "MUL_MAT", 0, 0, reference, all_rows)
    assert passed_limit(error, reference).kind == TENSOR


def test_large_numbers_may_have_large_rounding_errors_and_nan_is_far_from_all() -> None:
    limit = Limit(TENSOR, 2e-12, energy=1.0)
    assert distance(limit, [10.0, 1.0], [10.0 + 2e-6, 1.0], [0]) == pytest.approx(4e-14)
    assert distance(limit, [0.1], [0.1 + 2e-6], [0]) == pytest.approx(4e-12)
    assert distance(limit, [np.nan], [np.nan], [0]) == 0.0
    assert distance(limit, [1.0], [np.nan], [0]) == np.inf
    assert distance(limit, [np.nan], [1.0], [0]) == np.inf
    assert distance(Limit(EXACT, 0.0, 0.0), [0.0], [0.0], [0]) == 0.0
    assert distance(Limit(EXACT, 0.0, 0.0), [0.0], [1e-30], [0]) == np.inf
