"""Numbers of a self-spread and the limits derived from it: formulas, determinism, and what cannot be derived."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from parity_lib.base.errors import EngineError
from parity_lib.judge import self_spread as module
from parity_lib.judge.self_spread import METRICS, QUANTILE, limits, numbers, pooled, sigmas
from parity_lib.numerics.metrics import pair_sigma, summary
from parity_lib.records.self_spread import DEFAULT, DEFAULT_DECODE, FLASH_F16, SelfSpread, Variant

ALL = (DEFAULT, FLASH_F16, DEFAULT_DECODE)


def sparse(variant: Variant, rows: list[int]) -> Variant:
    """Return a variant that has only some of its rows, as if it had been asked for no more."""
    names = ("rows", "rms", "std", "mean", "delta", "kl", "pair_sigma", "top1_equal", "top5_equal")
    return replace(variant, asked=len(rows), **{name: getattr(variant, name)[rows].copy() for name in names})


def test_numbers_are_those_of_the_rows(native: Any) -> None:
    found = numbers(native.spread.variants[0])
    r, c = native.reference.astype(np.float64), native.ways[DEFAULT].astype(np.float64)
    error, within = c - r, r.std(axis=1)
    assert found.positions == 240
    assert found.rms == pytest.approx(math.sqrt((error**2).mean() / (within**2).mean()), rel=1e-5)
    assert found.rms_over_std_of_all == pytest.approx(math.sqrt((error**2).mean()) / r.std(), rel=1e-5)
    p, q = (np.exp(x - x.max(axis=1, keepdims=True)) for x in (r, c))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-5)
    top = np.argsort(-r, axis=1)[:, :5]
    sigma = pair_sigma(np.take_along_axis(error, top, axis=1))
    assert found.pair_sigma == pytest.approx(math.sqrt((sigma**2).mean()), rel=1e-5)
    assert found.pair_sigma == pytest.approx(0.1 * math.sqrt(2) * math.sqrt(2), rel=0.1)  # two noises, two logits
    assert found.top1_share == 1.0


def test_decode_is_compared_with_the_defaults_in_batches(native: Any) -> None:
    variant = native.spread.variant(DEFAULT_DECODE)
    assert variant.against == DEFAULT
    error = native.ways[DEFAULT_DECODE].astype(np.float64) - native.ways[DEFAULT]
    assert np.allclose(variant.rms, np.sqrt((error**2).mean(axis=1)), rtol=1e-5)


def test_pooling_is_root_mean_square_over_variants(native: Any) -> None:
    each = [numbers(v) for v in native.spread.variants]
    found = pooled(native.spread, ALL)
    for name in ("rms", "p99", "pair_sigma"):
        values = [getattr(n, name) for n in each]
        assert getattr(found, name) == pytest.approx(math.sqrt(sum(v * v for v in values) / 3))
        assert min(values) < getattr(found, name) < max(values)
    assert found.kl == pytest.approx(sum(n.kl for n in each) / 3)  # a square already
    assert found.positions == 720


def test_sigma_at_a_position_is_its_own_and_at_least_the_pooled_one(native: Any) -> None:
    i = 17
    for rows in native.ways.values():
        rows[i] = native.reference[i] + 20 * (rows[i] - native.reference[i])
    spread = native.spread
    found, base = sigmas(spread, ALL), pooled(spread, ALL).pair_sigma
    assert found.shape == (240,)
    assert found.min() == pytest.approx(base)
    own = math.sqrt(np.mean([v.pair_sigma[i].astype(np.float64) ** 2 for v in spread.variants]))
    assert found[i] == pytest.approx(own)
    assert found[i] > 3 * base


def test_sigma_where_only_some_variants_have_the_position(native: Any) -> None:
    spread = native.spread
    decode = sparse(spread.variants[2], list(range(20)))
    some = replace(spread, variants=(spread.variants[0], decode))
    found = sigmas(some, (DEFAULT, DEFAULT_DECODE))
    assert np.isfinite(found).all()
    base = pooled(some, (DEFAULT, DEFAULT_DECODE)).pair_sigma
    assert found[30] == pytest.approx(max(base, float(spread.variants[0].pair_sigma[30])))


def test_limits_are_the_same_twice_and_above_the_twin_s_ratio(native: Any) -> None:
    first, second = limits(native.spread, ALL), limits(native.spread, ALL)
    assert first == second
    assert [limit.metric for limit in first] == list(METRICS)
    own, base = numbers(native.spread.twin), pooled(native.spread, ALL)
    for limit in first:
        assert limit.ratio == pytest.approx(own.metric(limit.metric) / base.metric(limit.metric))
        assert limit.ratio < limit.limit < 1.6 * limit.ratio


def test_the_bootstrap_is_the_quantile_of_ratios_of_resampled_prompts(native: Any) -> None:
    # One resample computed by hand: the prompts that were drawn, one after the other.
    spread = native.spread
    rng = np.random.Generator(np.random.PCG64(module.SEED))
    drawn = rng.integers(0, 12, (module.RESAMPLES, 12))
    rows = [np.concatenate([np.flatnonzero(spread.prompt_idx == p) for p in draw]) for draw in drawn[:300]]

    def statistic(v: Variant, at: Any) -> tuple[float, float, float]:
        rms, std = v.rms[at].astype(np.float64), v.std[at].astype(np.float64)
        p99 = summary(np.abs(v.delta[at].astype(np.float64))).p99
        return math.sqrt((rms**2).sum() / (std**2).sum()), p99, float(v.kl[at].astype(np.float64).mean())

    counts = module._draws(12)
    _, prompt_of = np.unique(spread.prompt_idx, return_inverse=True)
    for variant in (*spread.variants, spread.twin):
        found = module._resampled(variant, prompt_of, counts)
        by_hand = np.array([statistic(variant, at) for at in rows])
        for column, metric in enumerate(METRICS):
            assert np.allclose(found[metric][:300], by_hand[:, column], rtol=1e-9)


def test_prompts_that_differ_widen_the_limit(native: Any) -> None:
    even = {limit.metric: limit.limit / limit.ratio for limit in limits(native.spread, ALL)}
    rows = native.positions.index((3, 0)) + np.arange(-10, 10)
    native.twin[rows] = native.reference[rows] + 4 * (native.twin[rows] - native.reference[rows])
    uneven = {limit.metric: limit.limit / limit.ratio for limit in limits(native.spread, ALL)}
    assert uneven["rms"] > even["rms"]
    assert uneven["kl"] > even["kl"]


def test_one_prompt_has_nothing_to_draw_from_and_keeps_room_for_its_positions(native: Any) -> None:
    spread = native.spread
    one = replace(spread, prompt_idx=np.zeros(240, np.int32))
    for limit in limits(one, ALL):
        room = 1 + module.Z * module.AT_BEST[limit.metric] / math.sqrt(240)
        assert limit.limit == pytest.approx(room * limit.ratio)


def test_the_room_at_best_is_what_gaussian_errors_show() -> None:
    rng = np.random.default_rng(3)
    n = 2000
    pairs = np.abs(rng.normal(0, 1, (2, 400, n)))
    square = (pairs**2).mean(axis=2)
    p99 = np.quantile(pairs, 0.99, axis=2)
    found = {"rms": np.sqrt(square[0] / square[1]), "kl": square[0] / square[1], "p99": p99[0] / p99[1]}
    for metric, ratios in found.items():
        assert ratios.std() * math.sqrt(n) == pytest.approx(module.AT_BEST[metric], rel=0.12)
    z = rng.normal(0, 1, 200_000)
    assert (z < module.Z).mean() == pytest.approx(QUANTILE, abs=3e-4)


@pytest.mark.slow
def test_healthy_reruns_stay_inside_999_times_of_1000(native: Any) -> None:
    # Other roundings of the same engines: fresh noise on every way and on the reference. The limits are the old ones.
    found = {limit.metric: limit.limit for limit in limits(native.spread, ALL)}
    rng = np.random.default_rng(77)
    exact = native.twin.astype(np.float64)
    over = 0
    for _ in range(40):
        native.reference = np.asarray(exact + rng.normal(0, 0.1, exact.shape), np.float32)
        native.ways = {name: np.asarray(exact + rng.normal(0, 0.1, exact.shape), np.float32) for name in ALL}
        spread = native.undisplaced
        own, base = numbers(spread.twin), pooled(spread, ALL)
        over += any(own.metric(m) > found[m] * base.metric(m) for m in METRICS)
    assert over <= 1


@pytest.mark.parametrize("broken", ["nothing", "missing", "zero", "nan"])
def test_what_cannot_be_derived_is_refused(native: Any, broken: str) -> None:
    if broken == "zero":
        native.ways = {name: native.reference.copy() for name in ALL}
    if broken == "nan":
        native.ways[DEFAULT][5, 5] = np.nan
    spread = native.spread
    names = {"nothing": (), "missing": (DEFAULT, "other_build")}.get(broken, ALL)
    with pytest.raises(EngineError):
        limits(spread, names)


def test_a_variant_without_a_row_is_refused(native: Any) -> None:
    with pytest.raises(EngineError, match="gave no position"):
        numbers(sparse(native.spread.twin, []))


def test_no_function_that_makes_a_limit_takes_a_candidate() -> None:
    for function in (limits, pooled, sigmas, numbers):
        taken = inspect.signature(function).parameters
        assert not {name for name in taken if name in ("candidate", "pair", "seen")}, function.__name__
    assert next(iter(inspect.signature(limits).parameters.values())).annotation == SelfSpread.__name__
