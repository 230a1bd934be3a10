"""T2: every bit of every value counts, and a tensor that was not compared to its end is no parity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import Kind, Outcome
from parity_lib.judge import t2_weights
from parity_lib.judge.t2_weights import TensorSpec, compare_tensor, judge_weights, ulp_distance

SPEC = TensorSpec("blk.0.ffn_down.weight", "Q8_0", 96, 32)


def values(n: int = 96) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, n).astype(np.float32)


def bits(word: int) -> np.float32:
    return np.uint32(word).view(np.float32)


def test_equal_bits_are_parity() -> None:
    rung, divergences = judge_weights([SPEC], [compare_tensor(SPEC.name, values(), values())])
    assert (rung.outcome, rung.expected, rung.compared, rung.worst) == (Outcome.PARITY, 1, 1, 0.0)
    assert (rung.note, rung.worst_where) == ("96 values in 3 blocks", "")
    assert not divergences


def test_the_first_value_that_differs_is_kept_from_both_sides() -> None:
    reference, candidate = np.array([1.0, -2.0, 3.0], np.float32), np.array([1.0, -2.0, 3.0], np.float32)
    candidate[1] = bits(0xC0000003)
    result = compare_tensor("t", reference, candidate)
    assert (result.first_index, result.first_bits, result.max_ulp) == (1, (0xC0000000, 0xC0000003), 3.0)
    assert (result.first_reference, result.first_candidate) == (-2.0, float(bits(0xC0000003)))
    (divergence,) = judge_weights([TensorSpec("t", "F32", 3, 1)], [result])[1]
    assert divergence.delta == 3.0
    assert divergence.note.endswith("llama.cpp -2.0 (0xc0000000), burn -2.0000007152557373 (0xc0000003)")


def test_the_lowest_bit_of_one_value_is_named() -> None:
    candidate = values()
    candidate[70] = np.nextafter(candidate[70], np.float32(np.inf))
    candidate[80] = 0
    rung, (divergence,) = judge_weights([SPEC], [compare_tensor(SPEC.name, values(), candidate)])
    assert rung.outcome is Outcome.DIVERGED
    assert rung.worst_where == SPEC.name
    assert (divergence.kind, divergence.where, divergence.limit) == (Kind.TENSOR, SPEC.name, 0.0)
    assert "2 of 96 values differ, the first at 70 (block 2)" in divergence.note
    assert repr(float(values()[70])) in divergence.note


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (0x3F800000, 0x3F800001, 1.0),
        (0x3F800000, 0x3F800000, 0.0),
        (0x00000000, 0x80000000, 1.0),  # +0 and -0 are equal numbers and other bits
        (0x80000001, 0x00000001, 3.0),  # the smallest negative and positive subnormal
        (0x7F800000, 0x7F7FFFFF, 1.0),  # infinity is one beyond the largest number
        (0x7FC00000, 0x7FC00000, 0.0),
        (0x7FC00000, 0x7FC00001, math.inf),
        (0x7FC00000, 0x3F800000, math.inf),
        (0xFF7FFFFF, 0x7F7FFFFF, 2.0 * 0x7F7FFFFF + 1),
    ],
)
def test_ulp_distance_by_bits(a: int, b: int, expected: float) -> None:
    left, right = np.array([bits(a)], np.float32), np.array([bits(b)], np.float32)
    assert ulp_distance(left, right).tolist() == [expected]
    assert ulp_distance(right, left).tolist() == [expected]


def test_ulp_distance_counts_steps_of_nextafter() -> None:
    start = np.array([-3e-45, 1.0, -1.0, 65504.0], np.float32)
    moved = start.copy()
    for _ in range(5):
        moved = np.nextafter(moved, np.float32(np.inf))
    # nextafter steps over one zero, the bits have two.
    assert ulp_distance(start, moved).tolist() == [6.0, 5.0, 5.0, 5.0]


def test_equal_nan_bits_are_equal_and_other_ones_are_infinitely_far() -> None:
    reference, candidate = values(), values()
    reference[5] = candidate[5] = bits(0x7FC12345)
    assert compare_tensor("t", reference, candidate).n_different == 0
    candidate[5] = np.nan
    result = compare_tensor(SPEC.name, reference, candidate)
    assert (result.n_different, result.max_ulp) == (1, math.inf)
    _, (divergence,) = judge_weights([SPEC], [result])
    assert divergence.delta == math.inf
    assert "0x7fc12345" in divergence.note


def test_a_difference_is_found_in_any_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t2_weights, "_CHUNK", 10)
    for index in (0, 9, 10, 95):
        candidate = values()
        candidate[index] += 1
        result = compare_tensor("t", values(), candidate)
        assert (result.first_index, result.n_different, result.n_compared) == (index, 1, 96)


@pytest.mark.parametrize("length", [0, 64, 95, 97, 192])
def test_another_length_is_incomplete(length: int) -> None:
    candidate = np.resize(values(), length)
    rung, divergences = judge_weights([SPEC], [compare_tensor(SPEC.name, values(), candidate)])
    assert (rung.outcome, rung.compared) == (Outcome.INCOMPLETE, 0)
    assert f"burn gave {length}" in rung.note
    assert not divergences


def test_missing_repeated_and_unexpected_tensors_are_named() -> None:
    other = TensorSpec("output.weight", "F32", 96, 1)
    done = compare_tensor(SPEC.name, values(), values())
    for results, words in (
        ([done], "output.weight was not compared"),
        ([done, done, compare_tensor(other.name, values(), values())], f"{SPEC.name} was compared twice"),
        (
            [done, compare_tensor(other.name, values(), values()), compare_tensor("x", values(), values())],
            "x is not in",
        ),
    ):
        rung, _ = judge_weights([SPEC, other], results)
        assert rung.outcome is Outcome.INCOMPLETE
        assert words in rung.note


def test_a_file_without_tensors_is_incomplete() -> None:
    rung, _ = judge_weights([], [])
    assert rung.outcome is Outcome.INCOMPLETE
    assert "no tensor" in rung.note


def test_a_divergence_is_not_hidden_by_a_missing_row() -> None:
    other = TensorSpec("output.weight", "F32", 96, 1)
    rung, divergences = judge_weights([SPEC, other], [compare_tensor(SPEC.name, values(), -values())])
    assert rung.outcome is Outcome.DIVERGED
    assert rung.compared == 1
    assert "output.weight was not compared" in rung.note
    assert len(divergences) == 1


def test_shape_and_order_in_memory_do_not_matter_but_the_type_does() -> None:
    matrix = values().reshape(8, 12)
    assert compare_tensor("t", matrix, np.asfortranarray(matrix)).n_different == 0
    with pytest.raises(TraceMismatchError, match="float64"):
        compare_tensor("t", matrix, matrix.astype(np.float64))
