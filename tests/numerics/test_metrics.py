"""The fast statistics against a slow twin that spells each formula out, and against odd rows."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from parity_lib.base.errors import TraceMismatchError
from parity_lib.numerics import metrics
from parity_lib.numerics.metrics import (
    delta_of_tops,
    pair_sigma,
    pair_statistics,
    pooled_rms_over_std,
    row_digests,
    row_statistics,
    std_of_all,
    summary,
    top_k,
)
from parity_lib.records.traces import F32

NAN, INF = np.float32(np.nan), np.float32(np.inf)


def f32(*rows: object) -> F32:
    return np.array(rows, np.float32)


def slow_top(row: F32, k: int) -> list[int]:
    """Sort ids by (NaN last, logit descending, id ascending)."""
    return sorted(range(len(row)), key=lambda i: (math.isnan(row[i]), -row[i] if row[i] == row[i] else 0.0, i))[:k]


def slow_softmax(row: F32) -> tuple[np.ndarray, float]:
    x = [float(v) for v in row]
    top = max(x)
    lse = top + math.log(math.fsum(math.exp(v - top) for v in x))
    return np.array([math.exp(v - lse) for v in x]), lse


def slow_pair(r: F32, c: F32) -> dict[str, float]:
    """Each formula as its definition reads, with exactly rounded sums."""
    n = len(r)
    (p, lse_r), (q, lse_c) = slow_softmax(r), slow_softmax(c)
    d = [float(b) - float(a) for a, b in zip(r, c, strict=True)]
    log_p, log_q = [float(v) - lse_r for v in r], [float(v) - lse_c for v in c]
    m = (p + q) / 2
    mean, largest = math.fsum(float(v) for v in r) / n, max(abs(v) for v in d)
    return {
        "logsumexp": lse_r,
        "mean": mean,
        "std": math.sqrt(math.fsum((float(v) - mean) ** 2 for v in r) / n),
        "rms": math.sqrt(math.fsum(v * v for v in d) / n),
        "max_abs": largest,
        "max_id": min(i for i, v in enumerate(d) if abs(v) == largest),
        "kl_ref_cand": math.fsum(p[i] * (log_p[i] - log_q[i]) for i in range(n)),
        "kl_cand_ref": math.fsum(q[i] * (log_q[i] - log_p[i]) for i in range(n)),
        "jsd": 0.5
        * math.fsum(
            (p[i] * (log_p[i] - math.log(m[i])) + q[i] * (log_q[i] - math.log(m[i]))) if m[i] > 0 else 0.0
            for i in range(n)
        ),
    }


CASES = {
    "one logit": (1, 1.0, 0.5),
    "fewer than five": (3, 2.0, 0.1),
    "fewer than stored": (40, 5.0, 1e-3),
    "just stored": (64, 5.0, 1.0),
    "groups, no rest": (64 * 70, 7.5, 1e-4),
    "groups and a rest": (64 * 70 + 37, 7.5, 0.3),
    "longer than a dot product": (2 * 8192 + 5, 7.5, 1e-2),
    "far apart": (500, 300.0, 200.0),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_slow_twin(name: str) -> None:
    n_vocab, spread, noise = CASES[name]
    rng = np.random.default_rng(len(name))
    r = rng.normal(0, spread, (3, n_vocab)).astype(np.float32)
    c = (r + rng.normal(0, noise, r.shape)).astype(np.float32)
    found = pair_statistics(r, c)
    for i in range(3):
        expected = slow_pair(r[i], c[i])
        assert found.reference.topk_ids[i].tolist() == slow_top(r[i], 64)
        assert found.candidate.topk_ids[i].tolist() == slow_top(c[i], 64)
        assert found.max_id[i] == expected.pop("max_id")
        for key in ("logsumexp", "std", "mean"):
            np.testing.assert_allclose(getattr(found.reference, key)[i], expected.pop(key), rtol=1e-13, atol=1e-13)
        for key in ("rms", "max_abs"):
            np.testing.assert_allclose(getattr(found, key)[i], expected.pop(key), rtol=1e-13)
        for key, value in expected.items():
            np.testing.assert_allclose(getattr(found, key)[i], max(value, 0.0), rtol=1e-9, atol=2e-13 * spread)


def test_small_kl_is_right_to_1e_15() -> None:
    # Second order: KL = var_p(d) / 2 + O(d^3). With d of 1e-5 the cubic term is far below the tolerance.
    rng = np.random.default_rng(3)
    r = rng.normal(0, 3, (1, 4000)).astype(np.float32)
    c = (r + rng.choice([-1e-4, 1e-4], r.shape)).astype(np.float32)
    p, _ = slow_softmax(r[0])
    d = c[0].astype(np.float64) - r[0]
    half_variance = (p @ d**2 - (p @ d) ** 2) / 2
    found = pair_statistics(r, c)
    assert found.kl_ref_cand[0] == pytest.approx(half_variance, rel=1e-3, abs=2e-15)
    assert found.kl_cand_ref[0] == pytest.approx(half_variance, rel=1e-3, abs=2e-15)
    assert found.jsd[0] == pytest.approx(half_variance / 4, rel=1e-3, abs=5e-15)


def test_equal_rows_differ_by_exactly_nothing() -> None:
    r = np.random.default_rng(0).normal(0, 8, (5, 9001)).astype(np.float32)
    found = pair_statistics(r, r.copy())
    assert not found.rms.any()
    assert not found.max_abs.any()
    assert not found.max_id.any()
    assert found.kl_ref_cand.max() < 1e-14
    assert found.jsd.max() < 1e-14
    assert np.array_equal(found.candidate_at_reference, found.reference.topk_logits)


def test_a_shift_of_all_logits_is_no_divergence_of_distributions() -> None:
    r = np.random.default_rng(1).integers(-20, 20, (2, 300)).astype(np.float32)
    found = pair_statistics(r, r + np.float32(8))
    assert found.rms.tolist() == [8.0, 8.0]
    assert found.kl_ref_cand.max() < 1e-14


def test_kl_is_swapped_when_the_sides_are() -> None:
    rng = np.random.default_rng(5)
    r, c = (rng.normal(0, 2, (4, 100)).astype(np.float32) for _ in range(2))
    forth, back = pair_statistics(r, c), pair_statistics(c, r)
    np.testing.assert_allclose(forth.kl_ref_cand, back.kl_cand_ref, rtol=1e-12)
    np.testing.assert_allclose(forth.jsd, back.jsd, rtol=1e-11)
    assert (forth.jsd <= math.log(2) + 1e-12).all()


def test_permuted_vocabulary_permutes_ids_and_nothing_else() -> None:
    rng = np.random.default_rng(6)
    r, c = (rng.normal(0, 4, (2, 5000)).astype(np.float32) for _ in range(2))
    order = rng.permutation(5000)
    plain, mixed = pair_statistics(r, c), pair_statistics(r[:, order], c[:, order])
    assert np.array_equal(order[mixed.reference.topk_ids], plain.reference.topk_ids)
    assert np.array_equal(order[mixed.max_id], plain.max_id)
    np.testing.assert_allclose(mixed.kl_ref_cand, plain.kl_ref_cand, rtol=1e-12)
    np.testing.assert_allclose(mixed.reference.std, plain.reference.std, rtol=1e-13)


def test_rows_are_the_same_alone_and_in_blocks() -> None:
    rng = np.random.default_rng(7)
    r, c = (rng.normal(0, 4, (900, 700)).astype(np.float32) for _ in range(2))
    whole = pair_statistics(r, c)
    for i in (0, 93, 899):
        alone = pair_statistics(r[i : i + 1], c[i : i + 1])
        for name in ("rms", "kl_ref_cand", "kl_cand_ref", "jsd", "max_abs", "max_id", "candidate_at_reference"):
            assert np.array_equal(getattr(alone, name)[0], getattr(whole, name)[i]), name
    one_side = row_statistics(r)
    for name in one_side.__slots__:
        assert np.array_equal(getattr(one_side, name), getattr(whole.reference, name)), name


def test_ties_go_to_the_lower_id_also_across_groups() -> None:
    row = np.zeros((1, 64 * 200 + 7), np.float32)
    row[0, [12_806, 77, 9000, 5]] = 3
    assert top_k(row, 6)[0].tolist() == [5, 77, 9000, 12_806, 0, 1]
    assert top_k(f32([-0.0, 0.0, -1.0, 0.0]), 4)[0].tolist() == [0, 1, 3, 2]


def test_duplicates_of_the_64th_logit_are_all_considered() -> None:
    rng = np.random.default_rng(8)
    row = rng.integers(0, 4, (1, 64 * 150)).astype(np.float32)  # thousands of equal logits at every rank
    assert top_k(row)[0].tolist() == slow_top(row[0], 64)


def test_a_tail_longer_than_the_groups_is_not_forgotten() -> None:
    row = np.zeros((1, 64 * 70 + 63), np.float32)
    row[0, -63:] = np.arange(63) + 1
    assert top_k(row, 5)[0].tolist() == [len(row[0]) - i for i in (1, 2, 3, 4, 5)]


def test_nan_is_lowest_below_minus_infinity() -> None:
    assert top_k(f32([NAN, -INF, 1.0, NAN, INF]), 5)[0].tolist() == [4, 2, 1, 0, 3]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("count", [1, 63, 64, 65, 3000, 5110, 5120])
def test_top_of_rows_that_are_partly_not_finite(value: np.float32, count: int) -> None:
    rng = np.random.default_rng(count)
    row = rng.normal(0, 4, 64 * 80).astype(np.float32)
    row[rng.permutation(len(row))[:count]] = value
    assert top_k(row[None])[0].tolist() == slow_top(row, 64)


@pytest.mark.parametrize("n_vocab", [6, 64 * 80])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_non_finite_row_is_counted_and_has_no_statistics(n_vocab: int, value: np.float32) -> None:
    rng = np.random.default_rng(9)
    r, c = (rng.normal(0, 4, (4, n_vocab)).astype(np.float32) for _ in range(2))
    clean = pair_statistics(r, c)
    bad = c.copy()
    bad[2, [1, 4]] = value
    found = pair_statistics(r, bad)
    assert found.candidate.n_nonfinite.tolist() == [0, 0, 2, 0]
    assert found.reference.n_nonfinite.tolist() == [0, 0, 0, 0]
    for name in ("rms", "max_abs", "kl_ref_cand", "kl_cand_ref", "jsd"):
        values = getattr(found, name)
        assert np.isnan(values).tolist() == [False, False, True, False], name
        assert np.array_equal(values[[0, 1, 3]], getattr(clean, name)[[0, 1, 3]]), name
    assert found.max_id[2] == -1
    assert np.isnan(found.candidate.std[2])
    assert np.isnan(found.candidate.mean[2])
    assert np.isnan(found.candidate.logsumexp[2])
    assert np.isfinite(found.reference.std).all()
    assert found.candidate.topk_ids[2].tolist() == slow_top(bad[2], 64)


def test_a_row_of_nothing_but_nan() -> None:
    found = row_statistics(np.full((1, 100), NAN))
    assert found.n_nonfinite.tolist() == [100]
    assert np.isnan(found.topk_logits).all()
    assert found.topk_ids[0].tolist() == list(range(64))


def test_huge_logits_do_not_overflow() -> None:
    top = np.finfo(np.float32).max
    r, c = f32([top, -top, 0.0]), f32([-top, top, 0.0])
    found = pair_statistics(r, c)
    assert found.max_abs[0] == 2 * float(top)
    assert found.rms[0] == pytest.approx(2 * float(top) * math.sqrt(2 / 3), rel=1e-12)
    assert found.kl_ref_cand[0] == pytest.approx(2 * float(top), rel=1e-12)
    assert found.jsd[0] == pytest.approx(math.log(2), rel=1e-12)
    assert found.reference.n_nonfinite[0] == 0


def test_probabilities_that_underflow_count_as_zero() -> None:
    r, c = f32([0.0, -2000.0, -2000.0]), f32([0.0, -2000.0, -1999.0])
    found = pair_statistics(r, c)
    assert found.kl_ref_cand[0] == 0.0
    assert found.jsd[0] == 0.0


def test_a_constant_row_has_no_spread() -> None:
    found = row_statistics(np.full((1, 7), 3.5, np.float32))
    assert found.std[0] == 0.0
    assert found.logsumexp[0] == pytest.approx(3.5 + math.log(7), rel=1e-15)


def test_an_outlier_costs_the_deviation_few_digits() -> None:
    row = np.random.default_rng(2).normal(0, 1, (1, 50_000)).astype(np.float32)
    row[0, 123] = 1e6
    assert row_statistics(row).std[0] == pytest.approx(np.std(row[0].astype(np.float64)), rel=1e-10)


def test_no_rows_are_no_statistics() -> None:
    found = pair_statistics(np.empty((0, 100), np.float32), np.empty((0, 100), np.float32))
    assert found.reference.topk_ids.shape == (0, 64)
    assert found.rms.shape == (0,)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (np.zeros((2, 5), np.float32), np.zeros((3, 5), np.float32)),
        (np.zeros((2, 5), np.float32), np.zeros((2, 6), np.float32)),
        (np.zeros((2, 5)), np.zeros((2, 5))),
        (np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)),
        (np.zeros(5, np.float32), np.zeros(5, np.float32)),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(reference: np.ndarray, candidate: np.ndarray) -> None:
    with pytest.raises(TraceMismatchError):
        pair_statistics(reference, candidate)


def test_digests_are_of_the_little_endian_bytes() -> None:
    rows = f32([1.0, 2.0], [3.0, 4.0])
    assert row_digests(rows)[1].tobytes() == hashlib.sha256(rows[1].astype("<f4").tobytes()).digest()
    assert row_digests(np.asfortranarray(rows)).tobytes() == row_digests(rows).tobytes()


def test_percentiles_are_values_that_occurred() -> None:
    found = summary(np.arange(1.0, 101.0))
    assert (found.p50, found.p95, found.p99, found.max, found.mean) == (50.0, 95.0, 99.0, 100.0, 50.5)
    assert summary(np.array([7.0])).p95 == 7.0


def test_one_nan_makes_a_summary_nan_and_none_is_refused() -> None:
    assert math.isnan(summary(np.array([1.0, np.nan])).p50)
    with pytest.raises(TraceMismatchError):
        summary(np.array([]))


def test_pooled_rms_weighs_positions_by_their_spread() -> None:
    assert pooled_rms_over_std(np.array([3.0, 4.0]), np.array([6.0, 8.0])) == pytest.approx(0.5)
    assert pooled_rms_over_std(np.array([0.0]), np.array([0.0])) == 0.0
    assert pooled_rms_over_std(np.array([1.0]), np.array([0.0])) == math.inf
    assert pooled_rms_over_std(np.array([]), np.array([])) == math.inf
    assert math.isnan(pooled_rms_over_std(np.array([np.nan, 1.0]), np.array([1.0, 1.0])))


def test_the_deviation_of_all_logits_is_that_of_the_rows_put_together() -> None:
    rows = np.random.default_rng(3).normal(0, 3, (40, 500)) + np.random.default_rng(4).normal(0, 6, (40, 1))
    found = row_statistics(rows.astype(np.float32))
    assert std_of_all(found.mean, found.std) == pytest.approx(rows.std(), rel=1e-6)
    assert std_of_all(found.mean, found.std) > 1.5 * found.std.mean()
    assert math.isnan(std_of_all(np.array([]), np.array([])))


def test_pair_sigma_is_the_root_mean_square_of_all_differences() -> None:
    errors = np.random.default_rng(4).normal(0, 1, (3, 6))
    pairs = [(i, j) for i in range(6) for j in range(i)]
    expected = [math.sqrt(np.mean([(e[i] - e[j]) ** 2 for i, j in pairs])) for e in errors]
    np.testing.assert_allclose(pair_sigma(errors), expected, rtol=1e-13)
    assert pair_sigma(errors + 1000.0) == pytest.approx(expected, rel=1e-9)  # what all share cancels
    assert pair_sigma(errors[:, :2]) == pytest.approx(np.abs(errors[:, 0] - errors[:, 1]), rel=1e-12)
    assert pair_sigma(errors[:, :1]).tolist() == [0.0, 0.0, 0.0]


def test_delta_is_at_one_id_the_lower_of_equals() -> None:
    ids, theirs, ours = np.array([[7, 3]], np.int32), f32([2.0, 1.0]), f32([2.5, 0.5])
    delta, delta_id = delta_of_tops(ids, theirs, ours, np.array([[7, 9]], np.int32), f32([2.5, 1.5]), f32([2.0, 1.4]))
    assert (delta[0], delta_id[0]) == (-0.5, 3)


def test_delta_is_nan_where_a_top_logit_is() -> None:
    ids = np.array([[0, 1]], np.int32)
    delta, delta_id = delta_of_tops(ids, f32([2.0, 1.0]), f32([2.5, NAN]), ids, f32([2.5, NAN]), f32([2.0, 1.0]))
    assert math.isnan(delta[0])
    assert delta_id[0] == 1


def test_the_blocks_of_a_large_vocabulary_have_one_row() -> None:
    assert metrics._BLOCK // 152_064 == 0  # so that _dot may cut a row into pieces without a copy
    r = np.random.default_rng(1).normal(0, 5, (3, 70_001)).astype(np.float32)
    np.testing.assert_allclose(row_statistics(r).std, r.astype(np.float64).std(axis=1), rtol=1e-13)
