"""Numbers of the reference's own spread, and limits for the candidate out of it. The candidate is never seen here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.names import TOP_JUDGED
from parity_lib.judge.align import Aligned
from parity_lib.numerics.metrics import pair_sigma, pooled_rms_over_std, std_of_all, summary
from parity_lib.records.row_numbers import Numbers
from parity_lib.records.self_spread import SelfSpread, Variant, VariantRun
from parity_lib.records.traces import F64, Position

METRICS = ("rms", "p99", "kl")
"""The statistics that are gated: rms over the deviation within rows; 99th percentile of |delta| at delta_id, logits;
mean KL(reference || other), nats."""
SEED, RESAMPLES, QUANTILE = 20261123, 4000, 0.999
Z = 3.09  # normal quantile of QUANTILE
AT_BEST = {"rms": 1.0, "p99": 1.9, "kl": 2.0}
"""Relative standard error of the ratio of two such statistics over n independent Gaussian errors each, times sqrt(n): a
root mean square has 1/sqrt(2n), its square twice that, the 99th percentile of the size 1.34/sqrt(n)."""
_CHUNK = 250  # resamples at once: chunk x positions x 8 bytes of memory


def measured(
    name: str,
    against: str,
    seen: Aligned,
    expected: Sequence[Position],
    *,
    asked: int,
    run: VariantRun,
) -> Variant:
    """Return the record of one pair of runs of the reference.

    Args:
        name: of the variant.
        against: what its rows are compared with.
        seen: the pair, in the order of the positions that both runs delivered.
        expected: every position of the cell.
        asked: how many positions the variant was to give.
        run: proof of what ran.
    """
    row = {position: i for i, position in enumerate(expected)}
    pair, r = seen.pair, seen.pair.reference
    errors = pair.candidate_at_reference[:, :TOP_JUDGED].astype(np.float64) - r.topk_logits[:, :TOP_JUDGED]
    single = {
        "rms": pair.rms,
        "std": r.std,
        "mean": r.mean,
        "delta": seen.delta,
        "kl": pair.kl_ref_cand,
        "pair_sigma": pair_sigma(errors),
    }
    return Variant(
        name=name,
        against=against,
        asked=asked,
        same_as="",
        run=run,
        rows=np.array([row[position] for position in seen.positions], np.int32),
        top1_equal=seen.top1_equal.copy(),
        top5_equal=seen.top5_equal.copy(),
        **{key: np.asarray(values, np.float32) for key, values in single.items()},
    )


def numbers(variant: Variant) -> Numbers:
    """Return the numbers of one variant. Raises ``EngineError`` if it has no position."""
    if len(variant) == 0:
        raise EngineError("a variant of the reference gave no position", place=variant.name, expected=variant.asked)
    rms, std, mean = (getattr(variant, name).astype(np.float64) for name in ("rms", "std", "mean"))
    return Numbers(
        positions=len(variant),
        rms=pooled_rms_over_std(rms, std),
        rms_over_std_of_all=float(np.sqrt(np.mean(rms * rms))) / std_of_all(mean, std),
        p99=summary(np.abs(variant.delta.astype(np.float64))).p99,
        kl=float(variant.kl.astype(np.float64).mean()),
        top1_share=float(variant.top1_equal.mean()),
        top5_set_share=float(variant.top5_equal.mean()),
        pair_sigma=_root_mean_square(variant.pair_sigma.astype(np.float64)),
    )


def pooled(spread: SelfSpread, names: Sequence[str]) -> Numbers:
    """Return the numbers of some variants pooled: root mean square, one vote for each variant.

    KL and shares are averaged: KL already is a square of an error.

    Raises:
        EngineError: one of them was not run, or gave no position.
    """
    each = [numbers(_variant(spread, name)) for name in names]
    if not each:
        same = "each of them gives the bits of another: there is no spread" if spread.variants else "none was run"
        raise EngineError(
            "no variant of the reference to measure by", place="self-spread", expected="at least one", found=same
        )

    def of(name: str) -> F64:
        return np.array([getattr(n, name) for n in each], np.float64)

    rooted = {name: _root_mean_square(of(name)) for name in ("rms", "rms_over_std_of_all", "p99", "pair_sigma")}
    means = {name: float(of(name).mean()) for name in ("kl", "top1_share", "top5_set_share")}
    return Numbers(positions=int(of("positions").sum()), **rooted, **means)


def sigmas(spread: SelfSpread, names: Sequence[str]) -> F64:
    """Return for each position of the spread the sigma of the difference of two top logits, in logits, ``(n,)``.

    The root mean square over the variants that have the position, and at least the pooled one: two or three
    samples of a noise with heavy tails are small by chance here and there, and a flip there would pass for impossible.
    """
    total, count = np.zeros(len(spread)), np.zeros(len(spread))
    for name in names:
        variant = _variant(spread, name)
        total[variant.rows] += variant.pair_sigma.astype(np.float64) ** 2
        count[variant.rows] += 1
    with np.errstate(invalid="ignore", divide="ignore"):
        here = np.sqrt(total / count)  # NaN where no variant has the position: then the pooled one stands
    return np.fmax(here, pooled(spread, names).pair_sigma)


@dataclass(frozen=True, slots=True)
class Limit:
    """How large a statistic of an exact product may be, as a multiple of the same statistic of the self-spread."""

    metric: str  # of METRICS
    ratio: float  # of the reference's own twin: what a correct candidate shows on these prompts
    limit: float  # QUANTILE of that ratio over resampled prompts, and not below what n positions can tell


def limits(spread: SelfSpread, names: Sequence[str]) -> tuple[Limit, ...]:
    """Return the limits of the ratios, by a bootstrap over prompts (blocks), seeded: the same in every run.

    The null hypothesis: the candidate is the exact product of the dequantised weights. Its distance to the deployed
    file is then that of llama.cpp's own F32 twin, which is measured without it. How much the ratio to the
    self-spread moves with the luck of the roundings is what it does when prompts are drawn with replacement. Two or
    three prompts have nothing to draw from: so no limit is nearer to the ratio than Z standard errors (AT_BEST).

    Raises:
        EngineError: a variant is missing or empty, a spread is 0, or a number is not finite.
    """
    variants = [_variant(spread, name) for name in names]
    own, base = numbers(spread.twin), pooled(spread, names)
    prompts, prompt_of = np.unique(spread.prompt_idx, return_inverse=True)
    counts = _draws(len(prompts))
    top = _resampled(spread.twin, prompt_of, counts)
    each = [_resampled(variant, prompt_of, counts) for variant in variants]
    found = []
    for metric in METRICS:
        power = 1 if metric == "kl" else 2
        stack = np.stack([values[metric] for values in each]) ** power
        with np.errstate(invalid="ignore", divide="ignore"):
            known = np.isfinite(stack)
            bottom = (np.where(known, stack, 0.0).sum(axis=0) / known.sum(axis=0)) ** (1 / power)
            ratios = top[metric] / bottom
            ratio = np.float64(own.metric(metric)) / base.metric(metric)
        good = ratios[np.isfinite(ratios)]
        if not np.isfinite(ratio) or base.metric(metric) <= 0 or len(good) < 0.99 * len(ratios):
            raise EngineError(
                "no limit can be derived from this self-spread",
                place=metric,
                expected="finite numbers, and a spread above 0",
                found=f"spread {base.metric(metric):g}, twin {own.metric(metric):g}",
            )
        if ratio <= 0:
            raise EngineError(
                "no limit can be derived from this self-spread",
                place=metric,
                expected="a twin that differs from the file in this metric, as it does in the others",
                found="a difference of 0, which is no limit",
            )
        least = ratio * (1 + Z * AT_BEST[metric] / np.sqrt(own.positions))
        found.append(Limit(metric, float(ratio), float(max(least, np.quantile(good, QUANTILE, method="higher")))))
    return tuple(found)


def _draws(n_prompts: int) -> F64:
    """Return how often each prompt was drawn in each resample, ``(RESAMPLES, n_prompts)``."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    drawn = generator.integers(0, n_prompts, (RESAMPLES, n_prompts))
    counts = np.zeros((RESAMPLES, n_prompts))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    return counts


def _resampled(variant: Variant, prompt_of: Any, counts: F64) -> dict[str, F64]:  # noqa: ANN401 - indices
    """Return METRICS of a variant for each resample; NaN where none of its prompts was drawn."""
    n_prompts = counts.shape[1]
    block = prompt_of[variant.rows]

    def total(values: F64) -> F64:
        return counts @ np.bincount(block, values, n_prompts)

    rms, std, kl = (getattr(variant, name).astype(np.float64) for name in ("rms", "std", "kl"))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "rms": np.sqrt(total(rms * rms) / total(std * std)),
            "kl": total(kl) / total(np.ones(len(kl))),
            "p99": _p99(np.abs(variant.delta.astype(np.float64)), block, counts),
        }


def _p99(values: F64, block: Any, counts: F64) -> F64:  # noqa: ANN401 - indices
    """Return the smallest value that 99 % of the resampled positions do not exceed, as ``metrics.summary`` does."""
    order = np.argsort(values, kind="stable")
    result = np.full(len(counts), np.nan)
    for start in range(0, len(counts), _CHUNK):
        reached = np.cumsum(counts[start : start + _CHUNK][:, block[order]], axis=1)
        everything = reached[:, -1:]
        first = (reached >= 0.99 * everything - 1e-9).argmax(axis=1)
        result[start : start + _CHUNK] = np.where(everything[:, 0] > 0, values[order][first], np.nan)
    return result


def _variant(spread: SelfSpread, name: str) -> Variant:
    variant = spread.variant(name)
    if variant is None:
        raise EngineError(
            "a variant of the reference was not run",
            place=name,
            expected=f"one of {', '.join(v.name for v in spread.variants)}",
            found=spread.absent.get(name, "no such variant"),
        )
    return variant


def _root_mean_square(values: F64) -> float:
    return float(np.sqrt(np.mean(values * values)))
