"""Verdicts and traces like those of a real night: real arrays, real statistics, nothing drawn by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.base.record import decode_record
from parity_lib.judge.power import power_statement, text_numbers
from parity_lib.judge.t1_known_differences import load_differences
from parity_lib.judge.t1_tokens import BytesResult, TextResult, TokenizerPair, judge_tokens
from parity_lib.judge.t3_ops import Replayed, judge_ops, kinds
from parity_lib.judge.t4_twin import judge_twin
from parity_lib.judge.t5_native import judge_native
from parity_lib.judge.t6_self import RELATIONS, judge_self
from parity_lib.judge.t7_isa import judge_isa, prove
from parity_lib.numerics.op_error import op_error
from parity_lib.pages.cell.drift import drift
from parity_lib.pages.cell.positions import Positions, positions
from parity_lib.pages.kit.figures import Gallery
from parity_lib.pages.kit.text import Words
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.hardness import Extreme, Hardness
from parity_lib.records.isa_evidence import Evidence
from parity_lib.records.measured import Cache, Instructions, Itself, Measured, Ops, ReplayedRows
from parity_lib.records.night_record import CellRecord, Night, PageRecord
from parity_lib.records.row_numbers import FirstFlip, NonFinite, PairNumbers, PairReport, Summary
from parity_lib.records.traces import PairTrace, expected_positions
from parity_lib.records.verdicts import CellId, Divergence, RungResult, Verdict
from tests.pages.made_rows import (
    LENGTHS,
    N_VOCAB,
    PROMPTS,
    made_limits,
    make_rows,
    noisy,
    pair_of,
    run_info,
    self_spread,
    swap_top,
)

CELL = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")
OVERLAY = CellId("synthetic-llama", "Q8_0", "avx512", "overlay", "f32")
N_POSITIONS = 1412
SYLLABLES = ("the", "a", "of", "discharge", "patient", "mg", "dose", "not", "was", "daily", "renal", "\n", "\t", "ß")


def rungs(t4_worst: float, t4: Outcome) -> tuple[RungResult, ...]:
    source = "oracle distance of the reference x 8, measured 2026-11-20"
    return (
        RungResult(Rung.T0, Outcome.PARITY, 9, 9, None, None, "pins"),
        RungResult(Rung.T2, Outcome.PARITY, 272, 272, 0.0, 0.0, "ULP"),
        RungResult(Rung.T4, t4, N_POSITIONS, N_POSITIONS, t4_worst, 2.0e-4, "rms/std", "prompt 3, token 17", source),
        RungResult(Rung.T5, Outcome.REPORTED, N_POSITIONS, N_POSITIONS, 0.031, None, "rms/std"),
    )


NUMBERS = PairNumbers(
    positions=850,
    top1_equal=825,
    top1_share=0.971,
    top5_set_equal=726,
    top5_set_share=0.854,
    rms=0.2,
    rms_over_std=0.031,
    rms_over_row_std=0.03,
    max_abs=1.6,
    delta=Summary(mean=0.3, p50=0.25, p95=0.7, p99=0.94, max=1.2),
    kl_ref_cand=Summary(mean=2.8e-3, p50=1e-3, p95=9e-3, p99=1.5e-2, max=5e-2),
    kl_cand_ref=Summary(mean=2.9e-3, p50=1e-3, p95=9e-3, p99=1.5e-2, max=5e-2),
    jsd=Summary(mean=7e-4, p50=1e-4, p95=1e-3, p99=3e-3, max=1e-2),
)
NATIVE = PairReport(
    all=structs.replace(NUMBERS, positions=1412),
    generated=NUMBERS,
    first_top1_flips=(FirstFlip(3, 17, 578, 791, 0.0677),),
    n_nonfinite=NonFinite(0, 0),
)


def divergences() -> tuple[Divergence, ...]:
    ours = ((578, 18.2230), (791, 18.1554), (264, 17.9), (279, 16.1), (345, 15.2))
    theirs = ((791, 18.2232), (578, 18.1553), (264, 17.9), (279, 16.1), (345, 15.2))
    common = {"limit": 2.0e-4, "top5_burn": theirs, "top5_llamacpp": ours, "delta": 0.0678, "delta_id": 791}
    return tuple(
        Divergence(Rung.T4, Kind.TOP1, prompt_idx=p, token_idx=t, ledger=LedgerClass.UNEXPLAINED, **common)
        for p, t in ((5, 2), (3, 17), (3, 44))
    )


@pytest.fixture(scope="session")
def make_verdict() -> Callable[..., Verdict]:
    def make(outcome: Outcome = Outcome.PARITY, **changes: object) -> Verdict:
        red = outcome is Outcome.DIVERGED
        verdict = Verdict(
            cell=CELL,
            outcome=outcome,
            rungs=rungs(6.8e-2, Outcome.DIVERGED) if red else rungs(4.4e-5, Outcome.PARITY),
            divergences=divergences() if red else (),
            runs={
                "reference": run_info("llama.cpp"),
                "reference-twin": run_info("llama.cpp", model_path="smollm2-135m-Q8_0.f32.gguf"),
                "candidate": run_info("burn"),
            },
            provisional=True,
            unpinned=False,
            measured=Measured(native=NATIVE),
            created_at="2026-11-23T02:10:44Z",
            seconds=96.0,
        )
        return structs.replace(verdict, **changes)

    return make


@pytest.fixture(scope="session")
def green_pair() -> PairTrace:
    return pair_of(*make_rows())


@pytest.fixture(scope="session")
def two_prompts(green_pair: PairTrace) -> PairTrace:
    """The rows of two prompts: a page of them takes a fifth of the time to draw."""
    return green_pair.take(np.flatnonzero(green_pair.reference.prompt_idx < 2))


@pytest.fixture(scope="session")
def red_pair() -> PairTrace:
    """Drift that is zero at a prompt's first position and rises, with three flips and one row that is not finite."""
    reference, candidate, places, fed = make_rows()
    within = np.arange(len(places)) - np.searchsorted(places[:, 0], places[:, 0])
    candidate += np.random.default_rng(7).normal(0, 3e-5, candidate.shape) * within[:, None]
    for prompt, token in ((2, 17), (2, 44), (5, 2)):
        swap_top(candidate, int(np.flatnonzero((places == (prompt, token)).all(axis=1))[0]))
    candidate[int(np.flatnonzero((places == (8, 30)).all(axis=1))[0]), 5] = np.nan
    return pair_of(reference, candidate, places, fed)


@pytest.fixture(scope="session")
def words() -> Words:
    texts = [f"{' ' if i % 3 else ''}{SYLLABLES[i % len(SYLLABLES)]}{i // 14 or ''}" for i in range(N_VOCAB)]
    tokens = {i: text.encode() for i, text in enumerate(texts)}
    tokens[7] = b"\xe4\xb8"
    return Words(tokens, dict(enumerate(PROMPTS)))


def cell_record(
    model: str, quant: str, outcome: Outcome = Outcome.PARITY, margin: float | None = 4.5, **changes: object
) -> CellRecord:
    cell = CellId(model, quant, "avx512", "crates-io", "f32")
    ran = outcome not in (Outcome.NOT_RUN,)
    record = CellRecord(
        key=f"{cell.key}-0a1b2c3d",
        cell=cell,
        required=ran,
        expect="parity",
        reason="",
        fault="",
        control=False,
        outcome=outcome,
        good=outcome in (Outcome.PARITY, Outcome.NOT_RUN),
        causes=(),
        lines=(),
        worst_margin=margin if ran else None,
        lowest_broken="T4" if outcome is Outcome.DIVERGED else "",
        folder=f"cells/{cell.key}-0a1b2c3d" if ran else "",
        html=f"cells/{cell.key}-0a1b2c3d/02_logits.html" if ran else "",
        verdict=f"cells/{cell.key}-0a1b2c3d/verdict.json" if ran else "",
        seconds=62.0 if ran else 0.0,
        peak_rss_bytes=812_000_000 if ran else 0,
    )
    return structs.replace(record, **changes)


@pytest.fixture(scope="session")
def night(make_verdict: Callable[..., Verdict]) -> Night:
    """A nightly run to be read in ten seconds: one divergence, two cells not run, one gap, one expected finding."""
    lines = tuple(make_verdict(Outcome.DIVERGED).lines())
    not_run = {"causes": ("the file is not staged; next: parity models stage llama-3-8b Q4_K_M FILE",)}
    died = {"causes": ("the notebook's process ended with SIGABRT", "cell 8 broke off: the kernel died")}
    control = {"control": True, "fault": "eps_x10@blk.12", "good": True}
    known = {"expect": "diverged", "reason": "the fork's exp is wrong below -87", "good": True}
    cells = (
        cell_record("smollm2-135m", "Q4_1"),
        cell_record("smollm2-135m", "Q8_0", Outcome.DIVERGED, 1 / 340, lines=lines, seconds=131.0),
        cell_record("smollm2-135m", "BF16", margin=2.2),
        cell_record("smollm2-135m-wide", "Q4_K_M", Outcome.INCOMPLETE, None, **died),
        cell_record("synthetic-llama", "Q8_0", margin=None),
        cell_record("synthetic-llama", "Q8_0", Outcome.DIVERGED, 0.001, cell=OVERLAY, **known),
        cell_record("llama-3-8b", "Q4_K_M", Outcome.NOT_RUN, **not_run),
        cell_record("llama-3-8b", "Q8_0", Outcome.NOT_RUN, **not_run),
        cell_record("synthetic-llama", "Q8_0", Outcome.DIVERGED, 1e-4, **control),
    )
    return Night(
        run_id="20261123T020000Z-5e1c0a1b",
        plan="smoke",
        title="smoke: SmolLM2-135M, real trained weights",
        headline="crates.io burn, not the fork; production did not run",
        plan_sha256="5e1c0a1b" * 8,
        started_at="2026-11-23T02:00:00+00:00",
        seconds=561.0,
        host="runner-3",
        machine_class="x86_64-GenuineIntel-6-143-0a1b2c3d",
        interrupted=False,
        cells=cells,
        pages=(PageRecord("00_machine_and_pins", "00_machine_and_pins.html", Outcome.PARITY, ()),),
    )


@pytest.fixture(scope="session")
def limits() -> DriftLimits:
    return made_limits()


@pytest.fixture(scope="session")
def green(green_pair: PairTrace, limits: DriftLimits) -> Positions:
    return positions(green_pair, limits)


@pytest.fixture(scope="session")
def red_verdict(red_pair: PairTrace, limits: DriftLimits, make_verdict: Callable[..., Verdict]) -> Verdict:
    """A verdict as the judge itself gives it for the red pair."""
    expected = expected_positions([p for p, _ in LENGTHS], [g for _, g in LENGTHS])
    rung, found, ledger = judge_twin(red_pair, expected, limits)
    rungs = tuple(rung if r.rung is Rung.T4 else r for r in make_verdict().rungs)
    numbers = Measured(native=NATIVE, ledger=ledger.record())
    return make_verdict(Outcome.DIVERGED, rungs=rungs, divergences=tuple(found), measured=numbers)


@pytest.fixture(scope="session")
def red(red_pair: PairTrace, limits: DriftLimits, red_verdict: Verdict) -> Positions:
    return positions(red_pair, limits, red_verdict.divergences)


@pytest.fixture(scope="session")
def red_gallery(red: Positions, words: Words) -> Gallery:
    """The pictures of the red pair, drawn once for all tests."""
    return drift(red, words)


# --- records with everything that a cell of today leaves, made by the judges themselves


def token_pair(*, differs: bool) -> TokenizerPair:
    texts = [TextResult(name, "prompts", (1, 2, 3), (1, 2, 3)) for name in PROMPTS]
    texts += [TextResult("digits-7", "digits", (4, 5, 6), (4, 5, 7) if differs else (4, 5, 6))]
    facts = {"pre": "smollm", "n_merges": 48900}
    return TokenizerPair("cd" * 32, {"prompts": 10, "digits": 1}, texts, BytesResult(49152, 49152, ()), facts)


def replayed_ops(factor: float) -> Replayed:
    """Return three ops as a replay gives them, the first wrong by ``factor``."""
    reference = np.random.default_rng(3).standard_normal((20, 64)).astype(np.float32)
    errors = [
        op_error("attn_norm-1", "MUL", 0, 0, reference, reference * np.float32(factor)),
        op_error("ffn_out-0", "MUL_MAT", 0, 0, reference, reference),
        op_error("l_out-0", "ADD", 1, 20, reference[:1], reference[:1]),
    ]
    return Replayed(0, 5, "strict", (20, 1), 3, tuple(errors), {"CPU_Mapped": 7})


def recorded_evidence() -> list[Evidence]:
    """Return what real runs showed on a machine with AVX-512; each claims to be AMX."""
    path = Path(__file__).parents[1] / "fixtures" / "polyfill.json"
    return [decode_record(entry, Evidence, path) for entry in json.loads(path.read_text())["evidence"]]


HARD = Hardness(
    rows=128,
    score=Extreme(14.5, "kq-0", 3, 17, 5),
    depth=Extreme(-24.6, "kq-7", 0, -2, 11),
    residual=Extreme(127.0, "l_out-3", 3, 4),
    biases={},
)
OPS_TOLD = ReplayedRows(0, "strict", (20, 1), {"CPU_Mapped": 7})


@pytest.fixture(scope="session")
def full_verdict(make_verdict: Callable[..., Verdict]) -> Callable[..., Verdict]:
    """Return a function that gives a verdict with every key of today; ``red``: T1, T3, T5 and T6 diverge."""
    expected = expected_positions([p for p, _ in LENGTHS], [g for _, g in LENGTHS])
    rows = {position: bytes([position.prompt_idx]) * 32 for position in expected}

    @cache
    def make(*, red: bool = False) -> Verdict:
        wanted = dict.fromkeys(RELATIONS, expected[:40])
        again = {name: {p: rows[p] for p in positions} for name, positions in wanted.items()}
        if red:
            again["restored"] = {**again["restored"], expected[3]: b"x" * 32, expected[4]: b"y" * 32}
        t1 = judge_tokens(token_pair(differs=red), load_differences())
        t5 = judge_native(noisy(5, 0.09 if red else 0.02), expected, self_spread(), None)
        t6 = judge_self(rows, wanted, again)
        ops = replayed_ops(1.001 if red else 1.0)
        proofs = [prove(structs.replace(evidence, requested="avx512")) for evidence in recorded_evidence()[1:]]
        sequences = [list(range(prompt + generated - 1)) for prompt, generated in LENGTHS]
        sequences[2] = [n % 40 for n in sequences[2]]
        text = text_numbers(sequences, [prompt for prompt, _ in LENGTHS])
        numbers = structs.replace(
            t5[2],
            tokens=t1[2],
            itself=Itself(t6[2], full=False, threads="2 and 1", rows=len(rows)),
            text=text,
            isa=Instructions(tuple(proofs), required=False, deployed=proofs[-1]),
            ops=Ops((OPS_TOLD,), kinds([ops])),
            hardness=HARD,
            power=power_statement(sum(numbers.effective_positions for numbers in text)),
            cache=Cache({"reference": "computed again, bit-equal", "twin": "cached"}, ("the disk is full",)),
            seconds={"check_pins": 0.4, "compare_tokens": 2.0, "capture_reference": 21.0, "judge": 3.0},
        )
        base = make_verdict()
        found = [r for r in base.rungs if r.rung is not Rung.T5]
        t7 = judge_isa(proofs, expected=2, required=False)[0]
        own = tuple(sorted((*found, t1[0], judge_ops([ops])[0], t5[0], t6[0], t7), key=lambda r: r.rung.value))
        return structs.replace(
            base,
            outcome=Outcome.DIVERGED if red else Outcome.PARITY,
            rungs=own,
            divergences=(*t1[1], *judge_ops([ops])[1], *t5[1], *t6[1]),
            measured=numbers,
        )

    return make
