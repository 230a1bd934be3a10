"""Limits are arithmetic on the reference's distance to the oracle; a table of them is replaced key by key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Rung
from parity_lib.cell import rows as logits
from parity_lib.cell import t4_bands
from parity_lib.cell.derive import write_bands
from parity_lib.records.tolerances import FIRST, LATER, METRICS, Band, ToleranceTable, load_tolerances
from parity_lib.records.traces import F32, PairTrace, Position, expected_positions
from tests.run_info import run_info

N_VOCAB = 200
EXPECTED = expected_positions([3, 2], [2, 3])


def pair_of(folder: Path, reference: F32, oracle: F32) -> PairTrace:
    run = run_info()
    sides = []
    for name, data in (("a", reference), ("b", oracle)):
        data.astype("<f4").tofile(folder / name)
        sides.append(logits.delivered(run, folder / name, N_VOCAB, [[1, 2, 3, 4], [5, 6, 7, 8]], [3, 2], [4, 4]))
    return logits.pair(sides[0], sides[1], EXPECTED)


@pytest.fixture
def rows() -> F32:
    return np.random.default_rng(7).normal(0, 5, (8, N_VOCAB)).astype(np.float32)


def test_a_sensitive_position_gets_limits_of_its_own_and_loosens_no_other(tmp_path: Path, rows: F32) -> None:
    error = np.random.default_rng(8).normal(0, 1e-4, rows.shape).astype(np.float32)
    plain = {b.key: b.limit for b in t4_bands.derive(pair_of(tmp_path, rows, rows + error), EXPECTED, "m", "q", "src")}
    error[6] *= 50  # prompt 1, the row after its last prompt token and one more
    found = t4_bands.derive(pair_of(tmp_path, rows, rows + error), EXPECTED, "m", "q", "src")
    own = {b.metric: b.limit for b in found if b.where == "prompt 1 token 1"}
    assert set(own) == {"position_rms_over_std", "delta_over_std", "pair_sigma_over_std"}
    limits = {b.key: b.limit for b in found if b.where in (FIRST, LATER)}
    assert set(limits) == set(plain)
    assert all(limits[key] <= plain[key] * 1.3 for key in plain)
    band_set = ToleranceTable(found).cell("m", "q", Rung.T4)
    assert band_set.sensitive == {Position(1, 1)}
    places = [Position(1, 1), Position(1, 2), Position(0, -2)]
    at = band_set.at("position_rms_over_std", places, [False, False, True])
    assert at[0] == own["position_rms_over_std"] > 20 * at[1]
    assert at[2] == band_set.band("position_rms_over_std", FIRST).limit


def test_a_position_that_an_f16_cache_moves_far_is_sensitive_although_its_own_error_is_small(
    tmp_path: Path, rows: F32
) -> None:
    error = np.random.default_rng(8).normal(0, 1e-4, rows.shape).astype(np.float32)
    pair = pair_of(tmp_path, rows, rows + error)
    moved = np.random.default_rng(9).normal(0, 1e-2, rows.shape).astype(np.float32)
    moved[6] *= 60
    rough = pair_of(tmp_path, rows, rows + moved)
    found = {(b.metric, b.where): b.limit for b in t4_bands.derive(pair, EXPECTED, "m", "q", "src", rough=rough)}
    usual = found["position_rms_over_std", LATER]
    assert 20 * usual < found["position_rms_over_std", "prompt 1 token 1"] < 200 * usual
    assert {where for _, where in found} == {FIRST, LATER, "prompt 1 token 1"}


def test_limits_are_the_factor_times_what_is_measured(tmp_path: Path, rows: F32) -> None:
    error = np.random.default_rng(8).normal(0, 1e-4, rows.shape).astype(np.float32)
    error[0] *= 10  # the first row of a prompt has a limit of its own
    oracle = rows + error
    found = {
        (b.metric, b.where): b for b in t4_bands.derive(pair_of(tmp_path, rows, oracle), EXPECTED, "m", "q", "src")
    }
    assert set(found) == {(metric, where) for metric in METRICS for where in (FIRST, LATER)}
    difference = oracle.astype(np.float64) - rows
    rms, std = np.sqrt((difference**2).mean(axis=1)), rows.astype(np.float64).std(axis=1)
    first = np.array([0, 4])
    later = np.array([1, 2, 3, 5, 6, 7])
    for where, index in ((FIRST, first), (LATER, later)):
        pooled = np.sqrt((rms[index] ** 2).sum() / (std[index] ** 2).sum())
        assert found["pooled_rms_over_std", where].limit == pytest.approx(
            t4_bands.FACTORS["pooled_rms_over_std"] * pooled
        )
        worst = (rms[index] / std[index]).max()
        assert found["position_rms_over_std", where].limit == pytest.approx(
            t4_bands.FACTORS["position_rms_over_std"] * worst
        )
        top = np.argsort(-rows[index], axis=1)[:, :5]
        errors = np.take_along_axis(difference[index], top, axis=1)
        sigma = np.sqrt(2 * errors.var(axis=1, ddof=1)) / std[index]
        pair_sigma = found["pair_sigma_over_std", where].limit
        assert pair_sigma == pytest.approx(
            t4_bands.FACTORS["pair_sigma_over_std"] * np.sqrt((sigma**2).mean()), rel=1e-6
        )
    assert found["delta_over_std", FIRST].limit > found["delta_over_std", LATER].limit
    for band in found.values():
        assert band.provisional
        assert "src" in band.source
        assert f"{t4_bands.FACTORS[band.metric]:g} x" in band.source


def test_missing_position_or_nan_derives_nothing(tmp_path: Path, rows: F32) -> None:
    pair = pair_of(tmp_path, rows, rows)
    with pytest.raises(EngineError, match="cannot be derived"):
        t4_bands.derive(pair, [*EXPECTED, Position(2, 0)], "m", "q", "src")
    broken = rows.copy()
    broken[3, 3] = np.nan
    with pytest.raises(EngineError, match="1 positions with non-finite"):
        t4_bands.derive(pair_of(tmp_path, rows, broken), EXPECTED, "m", "q", "src")


def test_rows_of_one_value_and_of_no_error_have_limits_above_zero(tmp_path: Path, rows: F32) -> None:
    rows[:] = np.float32(7.0)
    rows[4:] = 0.0
    pair = pair_of(tmp_path, rows, rows)
    t4_bands.refuse_unsound(pair, "m")
    found = t4_bands.derive(pair, EXPECTED, "m", "q", "src", rough=pair)
    assert {band.where for band in found} == {FIRST, LATER}
    for band in found:
        assert band.limit == pytest.approx(np.spacing(np.float32(7)) / 7)
        assert "one float32 step" in band.source


def test_few_first_rows_that_happen_to_be_exact_do_not_tighten(tmp_path: Path, rows: F32) -> None:
    error = np.random.default_rng(8).normal(0, 1e-4, rows.shape).astype(np.float32)
    error[[0, 4]] = 0.0
    found = t4_bands.derive(pair_of(tmp_path, rows, rows + error), EXPECTED, "m", "q", "src")
    limits = {(band.metric, band.where): band.limit for band in found}
    assert all(limits[metric, FIRST] == limits[metric, LATER] for metric in METRICS)


def test_prompts_of_one_token_have_first_rows_alone(tmp_path: Path, rows: F32) -> None:
    expected = expected_positions([1, 1], [1, 1])
    pair = pair_of(tmp_path, rows, rows + np.float32(1e-4)).take(np.array([0, 4]))
    for trace in (pair.reference, pair.candidate):
        trace.token_idx.setflags(write=True)
        trace.token_idx[:] = 0
    limits = {(band.metric, band.where): band.limit for band in t4_bands.derive(pair, expected, "m", "q", "src")}
    assert all(limits[metric, FIRST] == limits[metric, LATER] > 0 for metric in METRICS)


def test_rows_of_the_reference_that_are_not_finite_are_left_out(tmp_path: Path, rows: F32) -> None:
    broken = rows.copy()
    broken[3, 3] = np.inf
    kept, expected = t4_bands.finite_rows(pair_of(tmp_path, broken, rows), EXPECTED)
    assert expected == EXPECTED[:3] + EXPECTED[4:]
    assert len(kept) == 7
    assert t4_bands.derive(kept, expected, "m", "q", "src")


def test_writing_replaces_only_its_own_model(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.toml"
    path.write_text('schema = "parity/tolerances/2"\n')
    one = Band("m", "q", Rung.T4, "delta_over_std", FIRST, 1e-5, "delta/std", "first time", True)
    other = replace(one, model="n", source="another")
    write_bands([one, other], path)
    write_bands([replace(one, limit=2e-5, source="second time")], path)
    found = {band.model: band for band in load_tolerances(path).bands}
    assert found == {"m": replace(one, limit=2e-5, source="second time"), "n": other}
    assert [p.name for p in tmp_path.iterdir()] == ["tolerances.toml"]
