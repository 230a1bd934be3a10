"""Rows of logits of both engines, and what the real statistics make of them: traces, pairs, a self-spread."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from msgspec import structs

from parity_lib.judge.align import align
from parity_lib.judge.self_spread import measured
from parity_lib.numerics.metrics import RowStatistics, pair_statistics, row_digests
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.runs import RunInfo
from parity_lib.records.self_spread import (
    AGAINST,
    DEFAULT,
    DEFAULT_DECODE,
    FLASH_F16,
    TWIN,
    SelfSpread,
    with_copies_marked,
)
from parity_lib.records.traces import F32, LogitTrace, PairTrace, expected_positions
from tests.drift_limits import drift_limits
from tests.run_info import run_info as made_run
from tests.run_info import variant_run

N_VOCAB = 600
PROMPTS = ("fact-1", "fact-2", "long-1", "long-2", "code-1", "code-2", "german-1", "mandarin-1", "reason-1", "reason-2")
LENGTHS = ((9, 50), (12, 50), (31, 200), (27, 200), (22, 50), (24, 50), (18, 50), (16, 50), (35, 50), (41, 50))


def run_info(engine: str, **changes: object) -> RunInfo:
    llama = engine == "llama.cpp"
    info = made_run(
        engine,
        version="0.3.36" if llama else "0.1.0",
        commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f" if llama else "5e1c" * 16,
        model_path="smollm2-135m-Q8_0.gguf",
        model_sha256="7b46609d11703c058397e5cfe4cc6e4b2508cb1eb4c80ddc472a5d421fbdb508",
        isa_requested="avx512",
        n_threads=2,
        stack="llama-cpp-python" if llama else "crates-io",
        lock_sha256="" if llama else "ab" * 32,
        machine_class="x86-64 avx512 2 cores",
        host="runner-3",
        started_at="2026-11-23T02:09:11Z",
        seconds=48.2 if llama else 21.7,
        peak_rss_bytes=812_000_000,
    )
    return structs.replace(info, **changes)


def made_limits(lengths: Sequence[tuple[int, int]] = LENGTHS) -> DriftLimits:
    """Return limits of 2e-5 of a row's deviation; for the first row of a prompt four times as much."""
    places = expected_positions([p for p, _ in lengths], [g for _, g in lengths])
    first = [i == 0 or places[i - 1].prompt_idx != place.prompt_idx for i, place in enumerate(places)]
    return drift_limits(places, sigma=np.where(first, 8e-6, 2e-6), pair=6e-6)


def trace(run: RunInfo, rows: F32, statistics: RowStatistics, places: np.ndarray, fed: np.ndarray) -> LogitTrace:
    return LogitTrace(
        run=run,
        n_vocab=rows.shape[1],
        prompt_idx=places[:, 0].copy(),
        token_idx=places[:, 1].copy(),
        fed_id=fed,
        row_sha256=row_digests(rows),
        **{name: getattr(statistics, name) for name in statistics.__slots__},
    )


def pair_of(reference: F32, candidate: F32, places: np.ndarray, fed: np.ndarray) -> PairTrace:
    both = pair_statistics(reference, candidate)
    rest = {name: getattr(both, name) for name in both.__slots__ if name not in ("reference", "candidate")}
    return PairTrace(
        trace(run_info("llama.cpp"), reference, both.reference, places, fed),
        trace(run_info("burn"), candidate, both.candidate, places, fed),
        **rest,
    )


def make_rows(lengths: Sequence[tuple[int, int]] = LENGTHS) -> tuple[F32, F32, np.ndarray, np.ndarray]:
    """Logit rows of both engines at parity (error 1e-6 of std), with their places and fed tokens."""
    rng = np.random.default_rng(20261123)
    places = np.array(expected_positions([p for p, _ in lengths], [g for _, g in lengths]), dtype=np.int32)
    reference = rng.normal(0, 7.6, (len(places), N_VOCAB)).astype(np.float32)
    noise = rng.normal(0, 7.6e-6, reference.shape)
    first = np.concatenate([[True], places[1:, 0] != places[:-1, 0]])
    candidate = (reference + noise * np.where(first, 5, 1)[:, None]).astype(np.float32)
    return reference, candidate, places, rng.integers(0, N_VOCAB, len(places), dtype=np.int32)


def swap_top(rows: F32, place: int) -> None:
    """Make the second of a row its first, by the smallest change that does."""
    first, second = np.argsort(-rows[place], kind="stable")[:2]
    rows[place, [first, second]] = rows[place, [second, first]]


@cache
def noisy(seed: int, size: float, lengths: Sequence[tuple[int, int]] = LENGTHS) -> PairTrace:
    """The deployed file against another way to compute it: noise of ``size`` of the rows' std."""
    reference, _, places, fed = make_rows(lengths)
    noise = np.random.default_rng(seed).normal(0, 7.6 * size, reference.shape)
    return pair_of(reference, (reference + noise).astype(np.float32), places, fed)


@cache
def self_spread(size: float = 0.03) -> SelfSpread:
    expected = expected_positions([p for p, _ in LENGTHS], [g for _, g in LENGTHS])

    def variant(name: str, seed: int) -> object:
        seen = align(noisy(seed, size), expected)
        return measured(name, AGAINST.get(name, "strict"), seen, expected, asked=len(expected), run=variant_run(name))

    names = (DEFAULT, FLASH_F16, DEFAULT_DECODE)
    variants = tuple(variant(name, seed) for seed, name in enumerate(names, start=11))
    info = run_info("llama.cpp")
    return SelfSpread(
        model_sha256=info.model_sha256,
        prompts_sha256="ab" * 32,
        isa="avx512",
        machine_class=info.machine_class,
        commit=info.commit,
        prompt_idx=np.array([p.prompt_idx for p in expected], np.int32),
        token_idx=np.array([p.token_idx for p in expected], np.int32),
        variants=with_copies_marked(variants, {name: name.encode() for name in names}),
        absent={"other_build": "no other build is there"},
        twin=variant(TWIN, 21),
    )
