"""Judging T5: a healthy candidate passes, a candidate or a reference with a fault does not, and who is accused."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.json_text import dump_line
from parity_lib.base.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.cell.derive import pin_of
from parity_lib.judge.t5_native import ACCUSED, accuse_reference, judge_native, name_site, with_site
from parity_lib.records.self_spread import DEFAULT, DEFAULT_DECODE, FLASH_F16, Displaced, SelfSpread
from parity_lib.records.self_spread_pins import SpreadPin
from parity_lib.records.verdicts import Divergence, RungResult

from .conftest import PLACE, rank


def judge(native: Any, pin: SpreadPin | None) -> tuple[RungResult, list[Divergence], dict[str, Any]]:
    return judge_native(native.pair, native.positions, native.spread, pin)


def kinds(divergences: list[Divergence]) -> set[Kind]:
    assert {d.rung for d in divergences} <= {Rung.T5}
    return {d.kind for d in divergences}


def move(native: Any, place: tuple[int, int], by: float) -> None:
    """Add to the candidate's second logit at a position."""
    native.candidate[native.row(*place), rank(native, place, 1)] += np.float32(by)


def test_an_exact_product_passes_and_says_by_how_much(native: Any, pin: SpreadPin) -> None:
    rung, divergences, measured = judge(native, pin)
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.PARITY, 240, 240)
    assert not divergences
    assert rung.unit == "of self-spread"
    assert rung.source == pin.source
    assert rung.note == ""
    assert rung.worst is not None
    assert rung.limit is not None
    # One noise against the difference of two independent ones: 1/sqrt(2).
    ratios = measured.spread.ratios
    assert ratios["rms"].ratio == pytest.approx(math.sqrt(0.5), rel=0.03)
    assert ratios["kl"].ratio == pytest.approx(0.5, rel=0.15)
    assert {m: ratios[m].ratio < ratios[m].limit for m in ratios} == dict.fromkeys(("rms", "p99", "kl"), True)
    assert measured.spread.pooled_over == (DEFAULT, FLASH_F16, DEFAULT_DECODE)
    assert measured.spread.provisional is False
    assert measured.spread.pinned.machine_class == "x86_64"
    assert set(measured.spread.variants) == {DEFAULT, FLASH_F16, DEFAULT_DECODE, "twin"}
    assert measured.native.all.positions == 240
    assert measured.native_ledger.counts["TOP1"].unexplained == 0
    json.loads(dump_line(measured))


def test_rms_is_given_in_both_units(native: Any, pin: SpreadPin) -> None:
    pooled = judge(native, pin)[2].spread.pooled
    within = math.sqrt(np.mean(native.reference.astype(np.float64).std(axis=1) ** 2))
    assert pooled.rms == pytest.approx(math.sqrt(2) * 0.1 / within, rel=0.02)
    native.reference += np.linspace(-20, 20, 240, dtype=np.float32)[:, None]
    for rows in (native.twin, native.candidate, *native.ways.values()):
        rows += np.linspace(-20, 20, 240, dtype=np.float32)[:, None]
    moved = judge(native, pin)[2].spread.pooled
    assert moved.rms == pytest.approx(pooled.rms, rel=1e-3)
    assert moved.rms_over_std_of_all < 0.8 * pooled.rms_over_std_of_all


def test_a_candidate_with_twice_the_noise_fails(native: Any, pin: SpreadPin) -> None:
    native.candidate = native.reference + 2 * (native.twin - native.reference)
    rung, divergences, _ = judge(native, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert {Kind.RMS, Kind.P99, Kind.KL} <= kinds(divergences)
    rms = next(d for d in divergences if d.kind is Kind.RMS)
    assert rms.delta is not None
    assert rms.delta > rms.limit > 0
    assert "of the self-spread" in rms.note
    assert rung.worst is not None
    assert rung.limit is not None
    assert rung.worst > rung.limit


def test_a_few_positions_far_off_fail_on_p99_where_rms_is_inside(native: Any, pin: SpreadPin) -> None:
    for prompt in range(6):  # 6 of 240 positions, one logit of 300 each
        native.candidate[native.row(prompt, 3), rank(native, (prompt, 3), 0)] += np.float32(0.6)
    _, divergences, measured = judge(native, pin)
    assert Kind.P99 in kinds(divergences)
    assert Kind.RMS not in kinds(divergences)
    assert measured.spread.ratios["rms"].ratio < measured.spread.ratios["rms"].limit


def test_one_position_far_off_is_an_unexplained_flip(native: Any, pin: SpreadPin) -> None:
    move(native, PLACE, 1.5)  # the second passes the first, whose margin is 1 logit, ten times the noise
    rung, divergences, measured = judge(native, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert [(d.kind, d.prompt_idx, d.token_idx, d.ledger) for d in divergences] == [
        (Kind.TOP1, *PLACE, LedgerClass.UNEXPLAINED)
    ]
    assert divergences[0].delta == pytest.approx(1.5, abs=0.5)
    assert divergences[0].top5_burn
    assert divergences[0].top5_llamacpp
    assert measured.native_ledger.counts["TOP1"].unexplained == 1


def test_a_flip_inside_of_the_spread_is_a_near_tie_and_passes(native: Any, pin: SpreadPin) -> None:
    row, first, second = native.row(*PLACE), rank(native, PLACE, 0), rank(native, PLACE, 1)
    native.reference[row, second] = native.reference[row, first] - np.float32(0.05)
    native.candidate[row, second] = native.candidate[row, first] + np.float32(0.05)
    rung, divergences, measured = judge(native, pin)
    assert (rung.outcome, divergences) == (Outcome.PARITY, [])
    assert measured.native_ledger.counts["TOP1"].ties == 1


def test_more_near_ties_than_margins_predict_are_not_explained(native: Any, pin: SpreadPin) -> None:
    for place in native.positions:  # each margin is about 2.5 sigma: one in a hundred flips, and every one does
        row, first, second = native.row(*place), rank(native, place, 0), rank(native, place, 1)
        for rows in (native.reference, *native.ways.values(), native.twin):
            rows[row, second] = rows[row, first] - np.float32(0.5)
        native.candidate[row, [first, second]] = native.reference[row, [second, first]]
    spread = native.spread
    rung, divergences, _ = judge_native(native.pair, native.positions, structs.replace(spread, displaced=()), None)
    assert rung.outcome is Outcome.DIVERGED
    top1 = [d for d in divergences if d.kind is Kind.TOP1]
    assert len(top1) == 240


def test_a_displaced_flip_that_is_pinned_passes_and_a_new_one_does_not(native: Any) -> None:
    # All settings of the reference share an error here, and its own twin shows it.
    row, first, second = native.row(*PLACE), rank(native, PLACE, 0), rank(native, PLACE, 1)
    for rows in (native.reference, *native.ways.values()):
        rows[row, [first, second]] += np.float32([3, -3])
    native.twin[row, second] += np.float32(2)
    native.candidate[row, second] += np.float32(2)
    spread = native.spread
    assert [(d.prompt_idx, d.token_idx) for d in spread.displaced] == [PLACE]
    known = pin_of(spread, "m", "Q8_0", "a test")
    rung, divergences, measured = judge(native, known)
    assert (rung.outcome, divergences) == (Outcome.PARITY, [])
    assert measured.native_ledger.known == (Displaced(*PLACE, Kind.TOP1),)
    rung, divergences, _ = judge(native, replace(known, displaced=()))
    assert rung.outcome is Outcome.DIVERGED
    assert [(d.prompt_idx, d.token_idx) for d in divergences] == [PLACE]


# --- the reference is sick


def test_an_activation_path_that_broke_in_every_way_to_run_is_caught(native: Any, pin: SpreadPin) -> None:
    # What all settings share cancels in the self-spread, but not in the distance to the exact product.
    broken = np.random.default_rng(5).normal(0, 0.15, native.reference.shape)
    for rows in (native.reference, *native.ways.values()):
        rows += broken.astype(np.float32)
    rung, divergences, _ = judge(native, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert Kind.RMS in kinds(divergences)
    assert Kind.SPREAD not in kinds(divergences)


@pytest.mark.parametrize(("factor", "outcome"), [(1.05, Outcome.PARITY), (1.15, Outcome.DIVERGED)])
def test_a_noise_that_grew_in_every_way_alike_moves_no_ratio_but_leaves_its_pin(
    native: Any, pin: SpreadPin, factor: float, outcome: Outcome
) -> None:
    def grown(rows: Any) -> Any:
        return np.asarray(native.twin + factor * (rows.astype(np.float64) - native.twin), np.float32)

    native.reference = grown(native.reference)
    native.ways = {name: grown(rows) for name, rows in native.ways.items()}
    rung, divergences, _ = judge(native, pin)
    assert rung.outcome is outcome
    assert {d.kind for d in divergences} <= {Kind.SPREAD}


def test_a_strict_path_whose_error_grew_is_caught_by_the_pin_of_the_spread(native: Any, pin: SpreadPin) -> None:
    native.reference = native.twin + 2 * (native.reference - native.twin)
    rung, divergences, _ = judge(native, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert Kind.SPREAD in kinds(divergences)


@pytest.mark.parametrize(("factor", "caught"), [(1.3, True), (1.2, False), (0.83, False), (0.7, True)])
def test_the_spread_has_to_be_within_a_quarter_of_its_pin(
    native: Any, pin: SpreadPin, factor: float, caught: bool
) -> None:
    moved = replace(pin, rms=pin.rms / factor)
    rung, divergences, measured = judge(native, moved)
    assert (rung.outcome is Outcome.DIVERGED) == caught
    assert [(d.kind, d.where) for d in divergences] == ([(Kind.SPREAD, "self-spread rms")] if caught else [])
    if caught:
        assert divergences[0].delta == pytest.approx(measured.spread.pooled.rms - moved.rms)
        assert "the reference's own spread has changed" in divergences[0].note


def test_a_spread_of_zero_is_no_limit(native: Any, pin: SpreadPin) -> None:
    native.ways = {name: native.reference.copy() for name in native.ways}
    native.candidate = native.reference.copy()
    for each in (pin, None):
        rung, _, _ = judge(native, each)
        assert rung.outcome is not Outcome.PARITY
        assert rung.outcome is not Outcome.REPORTED


def test_the_accused_is_named_only_where_the_twin_is_green(native: Any, pin: SpreadPin) -> None:
    native.candidate = native.reference + 2 * (native.twin - native.reference)
    native_rung, divergences, _ = judge(native, pin)
    green = RungResult(Rung.T4, Outcome.PARITY, 240, 240, 1e-6, 1e-5, "rms/std")
    rung, told = accuse_reference(green, native_rung, divergences)
    assert rung.note.startswith(ACCUSED)
    assert all(d.note.startswith(ACCUSED) for d in told)
    assert len(told) == len(divergences)
    red = structs.replace(green, outcome=Outcome.DIVERGED)
    assert accuse_reference(red, native_rung, divergences) == (native_rung, divergences)


# --- missing rows


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_non_finite_value_diverges_whichever_side_has_it(native: Any, pin: SpreadPin, side: str) -> None:
    spread = native.spread
    getattr(native, side)[native.row(*PLACE), 250] = np.nan
    rung, divergences, measured = judge_native(native.pair, native.positions, spread, pin)
    assert rung.outcome is Outcome.DIVERGED
    assert [(d.prompt_idx, d.token_idx) for d in divergences if d.kind is Kind.NON_FINITE] == [PLACE]
    assert {Kind.RMS, Kind.KL} <= kinds(divergences)
    assert getattr(measured.native.n_nonfinite, side) == 1
    dump_line(measured)


def test_a_spread_that_is_not_finite_cannot_pass(native: Any, pin: SpreadPin) -> None:
    native.ways[DEFAULT][native.row(*PLACE), 250] = np.nan
    for each in (pin, None):
        rung, divergences, _ = judge(native, each)
        assert rung.outcome in (Outcome.DIVERGED, Outcome.INCOMPLETE)
    rung, divergences, _ = judge(native, pin)
    assert Kind.SPREAD in kinds(divergences)


def test_a_reference_that_is_not_finite_diverges_without_a_limit(native: Any) -> None:
    native.reference[native.row(*PLACE), 250] = np.nan
    rung, divergences, _ = judge(native, None)
    assert (rung.outcome, rung.expected, rung.compared) == (Outcome.DIVERGED, 240, 1)
    [lost] = divergences
    assert (lost.kind, lost.prompt_idx, lost.token_idx) == (Kind.NON_FINITE, *PLACE)
    assert "burn's are finite, so llama.cpp is at fault" in lost.note
    assert "no limit can be derived" in rung.note
    words = "llama.cpp's values are first not finite at ffn_out-1"
    assert with_site(lost, words).note.endswith(words)
    assert words in name_site(rung, words, divergences).note
    assert with_site(structs.replace(lost, kind=Kind.RMS), words).note == lost.note


def test_a_way_to_run_the_reference_that_is_not_finite_diverges(native: Any, pin: SpreadPin) -> None:
    native.ways[FLASH_F16][native.row(*PLACE), 250] = np.inf
    for each in (pin, None):
        rung, divergences, _ = judge(native, each)
        assert rung.outcome is Outcome.DIVERGED
        [lost] = [d for d in divergences if d.kind is Kind.NON_FINITE]
        assert lost.where == "self-spread flash_f16"
        assert "1 rows of llama.cpp itself are not finite, the first at prompt 2 token 1" in lost.note


def test_a_file_that_is_its_own_twin_has_no_limit_and_no_row_off(native: Any) -> None:
    native.twin = native.reference.copy()
    native.candidate = native.reference + np.float32(1e-5)
    rung, divergences, _ = judge(native, None)
    assert (rung.outcome, rung.worst, rung.limit, rung.unit) == (Outcome.PARITY, 0.0, 0.0, "rows")
    assert not divergences
    native.candidate[native.row(*PLACE), 3] = np.nan
    rung, [lost], _ = judge(native, None)
    assert (rung.outcome, lost.kind) == (Outcome.DIVERGED, Kind.NON_FINITE)
    native.candidate = native.twin.copy()
    native.twin[0, 0] = np.nextafter(native.twin[0, 0], np.float32(9))
    assert judge(native, None)[0].outcome is not Outcome.PARITY  # one step off: the file is not its own twin


def test_a_missing_position_is_incomplete_by_name(native: Any, pin: SpreadPin) -> None:
    rows = [i for i in range(240) if i != native.row(*PLACE)]
    rung, divergences, _ = judge_native(native.keep(rows), native.positions, native.spread, pin)
    assert (rung.outcome, rung.compared) == (Outcome.INCOMPLETE, 239)
    assert "missing: prompt 2 token 1" in rung.note
    assert not divergences


def test_nothing_compared_is_incomplete(native: Any, pin: SpreadPin) -> None:
    rung, _, measured = judge_native(native.keep([]), native.positions, native.spread, pin)
    assert rung.outcome is not Outcome.PARITY
    assert measured.native.all is None


def test_a_variant_with_a_missing_row_is_incomplete(native: Any, pin: SpreadPin) -> None:
    spread = native.spread
    short = structs.replace(spread.variants[1], asked=241)
    spread = structs.replace(spread, variants=(spread.variants[0], short, spread.variants[2]))
    rung, _, _ = judge_native(native.pair, native.positions, spread, pin)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "flash_f16: 240 of 241 positions" in rung.note


def test_a_pinned_variant_that_was_not_run_is_incomplete(native: Any, pin: SpreadPin) -> None:
    spread = structs.replace(
        native.spread, variants=native.spread.variants[:2], absent={DEFAULT_DECODE: "no short prompt"}
    )
    rung, _, _ = judge_native(native.pair, native.positions, spread, pin)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "no short prompt" in rung.note


@pytest.mark.parametrize("name", ["model_sha256", "isa", "machine_class"])
def test_a_spread_of_something_else_is_incomplete(native: Any, pin: SpreadPin, name: str) -> None:
    rung, _, _ = judge_native(native.pair, native.positions, structs.replace(native.spread, **{name: "other"}), pin)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "other instead of" in rung.note


def test_a_spread_of_other_positions_is_incomplete(native: Any, pin: SpreadPin) -> None:
    move(native, PLACE, 1.5)  # a flip for which there is no sigma: nothing can be said of it
    spread = native.spread
    rung, divergences, _ = judge_native(
        native.pair, native.positions, structs.replace(spread, token_idx=spread.token_idx + 1), pin
    )
    assert (rung.outcome, rung.compared, divergences) == (Outcome.INCOMPLETE, 0, [])
    assert "not those that the cell expects" in rung.note


# --- without a pin of this machine class


def test_without_a_pin_the_verdict_is_provisional(native: Any) -> None:
    rung, _, measured = judge(native, None)
    assert rung.outcome is Outcome.PARITY
    assert "provisional" in rung.note
    assert "derived from the reference's own twin" in rung.source
    assert measured.spread.provisional is True
    assert measured.spread.pinned is None


def test_another_machine_class_gives_its_limits_but_not_its_spread(native: Any, pin: SpreadPin) -> None:
    elsewhere = replace(pin, machine_class="another", rms=10 * pin.rms)
    rung, _, measured = judge(native, elsewhere)
    assert rung.outcome is Outcome.PARITY
    assert "provisional" in rung.note
    assert measured.spread.provisional is True
    assert measured.spread.ratios["rms"].limit == pin.rms_limit
    broken = np.random.default_rng(5).normal(0, 0.15, native.reference.shape).astype(np.float32)
    for rows in (native.reference, *native.ways.values()):
        rows += broken
    assert judge(native, elsewhere)[0].outcome is Outcome.DIVERGED


def test_without_a_pin_a_broken_candidate_still_fails(native: Any) -> None:
    native.candidate = native.reference + 2 * (native.twin - native.reference)
    assert judge(native, None)[0].outcome is Outcome.DIVERGED


def test_what_limits_are_made_of_holds_no_candidate() -> None:
    names = set(SelfSpread.__struct_fields__) | {f.name for f in fields(SpreadPin)}
    assert not {name for name in names if "candidate" in name or "burn" in name}
