"""Tolerances: exactly one for a key, each with a source; limits that are not the pinned ones do not pass."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from parity_lib.base.errors import FixtureError, PinError
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.tolerances import Tolerance, ToleranceTable, dump_tolerances, load_tolerances
from parity_lib.records.traces import Position
from tests.drift_limits import drift_limits

SOURCE = "20 positions; 4 passes of llama.cpp with noise; 2026-12-01; parity bands m Q8_0"
ONE = Tolerance("m", "Q8_0", "llama.cpp-avx2", "crates-io-avx2", SOURCE, 1e-6, 1e-5, 4e-5)


@pytest.fixture
def limits() -> DriftLimits:
    """Return limits as they are pinned: 1e-5 in the middle, 4e-5 at the widest."""
    sigma = [1e-6] * 19 + [4e-6]
    return drift_limits([Position(0, i) for i in range(20)], sigma=sigma)  # type: ignore[arg-type] - numpy takes it


def test_the_shipped_file_loads_and_each_tolerance_has_a_source() -> None:
    table = load_tolerances()
    assert len(table.sha256) == 64
    assert all("parity bands" in one.source and one.typical <= one.worst for one in table.all)


def test_an_empty_file_is_valid_and_then_no_limit_passes(tmp_path: Path, limits: DriftLimits) -> None:
    (tmp_path / "t.toml").write_text(dump_tolerances([]))
    table = load_tolerances(tmp_path / "t.toml")
    assert table.all == ()
    with pytest.raises(PinError, match=r"m Q8_0 on llama.*no tolerance is pinned.*parity bands m Q8_0 --write"):
        table.find("m", "Q8_0", limits)


def test_the_right_one_of_many_is_found(limits: DriftLimits) -> None:
    others = [replace(ONE, quant="Q4_1"), replace(ONE, model="n"), replace(ONE, reference="llama.cpp-avx512")]
    table = ToleranceTable([*others, ONE])
    assert table.find("m", "Q8_0", limits) is ONE
    assert table.has("n", "Q8_0")
    assert not table.has("n", "Q4_1")


def test_two_for_one_key_are_refused() -> None:
    with pytest.raises(FixtureError, match="two tolerances"):
        ToleranceTable([ONE, replace(ONE, worst=1.0)])


def test_limits_as_they_were_pinned_pass(limits: DriftLimits) -> None:
    ONE.hold(limits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delta_limit": 13.0}, "the typical limit is not the pinned one"),  # a formula or a baseline loosened by hand
        ({"delta_limit": 7.0}, "the typical limit is not the pinned one"),
        ({"false_alarm": 1e-7}, "another false-alarm rate"),
    ],
)
def test_limits_that_were_changed_are_refused(limits: DriftLimits, change: dict[str, float], words: str) -> None:
    with pytest.raises(PinError, match=words):
        ONE.hold(msgspec.structs.replace(limits, **change))


def test_one_limit_that_was_widened_alone_is_refused(limits: DriftLimits) -> None:
    delta = limits.delta.copy()
    delta[3] = 1e-4
    with pytest.raises(PinError, match="the worst limit is not the pinned one"):
        ONE.hold(msgspec.structs.replace(limits, delta=delta))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "  "}, "no source"),
        ({"typical": 0.0}, "'typical' is not usable"),
        ({"worst": math.inf}, "'worst' is not usable"),
        ({"false_alarm": math.nan}, "'false_alarm' is not usable"),
    ],
)
def test_a_tolerance_that_means_nothing_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(FixtureError, match=words):
        replace(ONE, **change)  # type: ignore[arg-type] - one field of several types


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    all_ = (
        ONE,
        replace(ONE, quant="Q4_1", worst=5e-324, source='a "quoted" \\ path, 你, a tab\t, a\nline, \x7f, \x00'),
        replace(ONE, model="z", typical=1e300),
    )
    path = tmp_path / "t.toml"
    path.write_text(dump_tolerances(all_), "utf-8")
    assert set(load_tolerances(path).all) == set(all_)
    assert dump_tolerances(reversed(all_)) == dump_tolerances(all_)
    assert dump_tolerances(load_tolerances(path).all) == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f'source = "{SOURCE}"', "", "'source' is missing"),
        (f'source = "{SOURCE}"', 'source = ""', "'source' is empty"),
        ("typical = 1e-05", 'typical = "1e-05"', "wrong type"),
        ("typical = 1e-05", "typical = nan", "not finite"),
        ('quant = "Q8_0"', "quant = 'Q8_0'\nisa = 'avx2'", "unknown key 'isa'"),
        ("parity/tolerances/3", "parity/tolerances/2", "another version"),
    ],
)
def test_a_planted_mistake_in_the_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = dump_tolerances([ONE])
    assert old in text
    (tmp_path / "t.toml").write_text(text.replace(old, new))
    with pytest.raises(FixtureError, match=words):
        load_tolerances(tmp_path / "t.toml")
