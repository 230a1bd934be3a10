"""Bands: exactly one for a key, each with a source, or nothing passes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError, PinError
from parity_lib.base.names import Rung
from parity_lib.records.tolerances import (
    ALL,
    FIRST,
    LATER,
    METRICS,
    Band,
    ToleranceTable,
    dump_tolerances,
    load_tolerances,
)

SHARED = "llama.cpp on the twin; 2026-11-23"
BAND = Band(
    "m", "Q8_0", Rung.T4, "delta_over_std", LATER, 2.5e-5, "delta/std", f"8 x 3e-6, 640 positions; {SHARED}", True
)


def test_the_shipped_file_loads_and_each_band_has_a_source() -> None:
    table = load_tolerances()
    assert len(table.sha256) == 64
    assert all(band.source and METRICS[band.metric] == band.unit for band in table.bands)


def test_an_empty_file_is_valid_and_every_look_up_fails(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(dump_tolerances([]))
    table = load_tolerances(tmp_path / "t.toml")
    assert table.bands == ()
    with pytest.raises(PinError, match=r"no band for T4 delta_over_std \(first\).*parity bands m Q8_0 --write"):
        table.band("m", "Q8_0", Rung.T4, "delta_over_std", FIRST)


def test_the_right_band_of_many_is_found() -> None:
    others = [
        replace(BAND, where=FIRST, limit=1.0),
        replace(BAND, quant="Q4_1", limit=2.0),
        replace(BAND, model="n", limit=3.0),
        replace(BAND, rung=Rung.T5, limit=4.0),
        replace(BAND, metric="pooled_rms_over_std", unit="rms/std", limit=5.0),
    ]
    table = ToleranceTable([*others, BAND])
    assert table.band("m", "Q8_0", Rung.T4, "delta_over_std", LATER) is BAND
    assert table.cell("m", "Q8_0", Rung.T4).band("delta_over_std", FIRST).limit == 1.0


def test_a_band_for_all_rows_stands_in_for_first_and_later_but_not_the_other_way() -> None:
    table = ToleranceTable([replace(BAND, where=ALL)])
    assert table.band("m", "Q8_0", Rung.T4, "delta_over_std", FIRST).where == ALL
    with pytest.raises(PinError):
        ToleranceTable([BAND]).band("m", "Q8_0", Rung.T4, "delta_over_std")


def test_two_bands_for_one_key_are_refused() -> None:
    with pytest.raises(FixtureError, match="two bands"):
        ToleranceTable([BAND, replace(BAND, limit=1.0)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": ""}, "no source"),
        ({"source": "  "}, "no source"),
        ({"limit": -1e-9}, "no usable limit"),
        ({"limit": 0.0}, "no usable limit"),
        ({"limit": math.nan}, "no usable limit"),
        ({"limit": math.inf}, "no usable limit"),
        ({"metric": "cosine"}, "unknown metric"),
        ({"unit": "logits"}, "unknown metric or unit"),
        ({"where": "middle"}, "unknown place"),
    ],
)
def test_a_band_that_means_nothing_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(FixtureError, match=words):
        replace(BAND, **changes)


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    bands = (
        BAND,
        replace(BAND, where=FIRST, limit=1e-7, provisional=False),
        replace(BAND, quant="Q4_1", limit=5e-324, source='a "quoted" \\ path, 你, a tab\t, a\nline, \x7f, \x00'),
        replace(BAND, model="z", limit=1e300, source="a source without a second part"),
        replace(BAND, model="z", where=FIRST, source="; begins with the joint"),
        replace(BAND, model="z", where="prompt 3 token -50", source="ends with the joint; "),
    )
    path = tmp_path / "t.toml"
    path.write_text(dump_tolerances(bands), "utf-8")
    assert set(load_tolerances(path).bands) == set(bands)
    assert dump_tolerances(reversed(bands)) == dump_tolerances(bands)
    assert dump_tolerances(load_tolerances(path).bands) == path.read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f'source = "{SHARED}"', "", "'source' is missing"),
        (f'source = "{SHARED}"', 'source = ""', "'source' is empty"),
        ('measured = "8 x 3e-6, 640 positions"', 'measured = " "', "'measured' is empty"),
        ('metric = "delta_over_std", ', "", "'metric' is missing"),
        ('metric = "delta_over_std"', 'metric = "cosine"', "unknown value"),
        ("limit = 2.5e-05", 'limit = "2.5e-05"', "wrong type"),
        ("limit = 2.5e-05", "limit = nan", "not finite"),
        ("limit = 2.5e-05", "limit = 2.5e-05, isa = 'avx2'", "unknown key 'isa'"),
        ('quant = "Q8_0"', "quant = 'Q8_0'\nisa = 'avx2'", "unknown key 'isa'"),
        ("bands = [", "band = [", "'bands' is missing"),
        ('rung = "T4"', 'rung = "T9"', "unknown value"),
        ("limit = 2.5e-05", 'limit = 2.5e-05, unit = "rms/std"', "unknown key 'unit'"),
        ("parity/tolerances/2", "parity/tolerances/1", "another version"),
    ],
)
def test_a_planted_mistake_in_the_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = dump_tolerances([BAND])
    assert old in text
    (tmp_path / "t.toml").write_text(text.replace(old, new))
    with pytest.raises(FixtureError, match=words):
        load_tolerances(tmp_path / "t.toml")


def test_a_band_is_provisional_only_where_it_says_so(tmp_path: Path) -> None:
    text = dump_tolerances([BAND]).replace("provisional = true\n", "").replace('where = "later", ', "")
    (tmp_path / "t.toml").write_text(text)
    (band,) = load_tolerances(tmp_path / "t.toml").bands
    assert (band.provisional, band.where) == (False, ALL)


def test_bands_of_a_cell_stand_under_the_source_that_they_share(tmp_path: Path) -> None:
    first = replace(BAND, where=FIRST, source=f"8 x 1e-6, 11 positions; {SHARED}")
    text = dump_tolerances([BAND, first])
    assert (text.count("[[cell]]"), text.count(SHARED), text.count("measured = ")) == (1, 1, 2)
    (tmp_path / "t.toml").write_text(text)
    assert load_tolerances(tmp_path / "t.toml").bands == (first, BAND)
    apart = dump_tolerances([BAND, replace(first, provisional=False)])
    assert apart.count("[[cell]]") == 2


def test_a_set_knows_its_sources_and_whether_it_is_provisional() -> None:
    later, first = replace(BAND, provisional=False), replace(BAND, where=FIRST, source="kernel baseline")
    other = replace(BAND, quant="Q4_1", source="elsewhere")
    bands = ToleranceTable([later, first, other]).cell("m", "Q8_0", Rung.T4)
    assert bands.provisional
    assert bands.source == f"8 x 3e-6, 640 positions; {SHARED}; kernel baseline"
    assert not ToleranceTable([later]).cell("m", "Q8_0", Rung.T4).provisional
