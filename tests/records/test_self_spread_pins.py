"""Pinned self-spreads: no source, no load; unknown keys and doubles refused; what is shipped loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError
from parity_lib.base.names import Kind
from parity_lib.records.self_spread import DEFAULT, DEFAULT_DECODE, Displaced
from parity_lib.records.self_spread_pins import PINNED, SpreadPin, SpreadTable, dump_spreads, load_spreads

PIN = SpreadPin(
    model="m",
    quant="Q8_0",
    isa="avx512",
    machine_class="a-machine",
    prompts_sha256="ab" * 32,
    model_sha256="cd" * 32,
    variants=(DEFAULT, DEFAULT_DECODE),
    rms=0.065,
    rms_over_std_of_all=0.033,
    p99=0.75,
    kl=3.8e-3,
    pair_sigma=0.16,
    top1_share=0.96,
    top5_set_share=0.81,
    rms_ratio=1.03,
    rms_limit=1.11,
    p99_ratio=0.94,
    p99_limit=1.21,
    kl_ratio=0.85,
    kl_limit=0.98,
    displaced=(Displaced(10, -2007, Kind.TOP5_SET),),
    source='measured "here"',
)


def write(folder: Path, text: str) -> Path:
    path = folder / "spread.toml"
    path.write_text(text)
    return path


def test_what_is_dumped_loads_to_the_same_pins(tmp_path: Path) -> None:
    pins = (PIN, replace(PIN, quant="BF16", displaced=()))
    table = load_spreads(write(tmp_path, dump_spreads(pins)))
    assert set(table.pins) == set(pins)
    assert dump_spreads(table.pins) == dump_spreads(reversed(pins))
    assert [(PIN.limit(m), PIN.ratio(m)) for m in ("rms", "p99", "kl")] == [(1.11, 1.03), (1.21, 0.94), (0.98, 0.85)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('source = "measured \\"here\\""', 'source = " "', "empty"),
        ('source = "measured \\"here\\""', "", "missing"),
        ("rms_limit = 1.11", "rms_limit = 0.0", "not usable"),
        ("rms_limit = 1.11", "rms_limit = inf", "not finite"),
        ("kl = 0.0038", "kl = -1.0", "not usable"),
        ("kl = 0.0038", "kl = 0.0038\nkll = 1.0", "unknown key 'kll'"),
        ("10/-2007/TOP5_SET", "10/-2007/TOP6_SET", "is no flip"),
        ("10/-2007/TOP5_SET", "10", "is no flip"),
        ('"default", "default_decode"', '"defaults"', "no variant, or an unknown one"),
        ('["default", "default_decode"]', "[]", "no variant, or an unknown one"),
        ("parity/spreads/1", "parity/spreads/2", "another version"),
        ('isa = "avx512"', 'isa = "avx1024"', "unknown value"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = dump_spreads([PIN])
    assert old in text
    with pytest.raises(FixtureError, match=words):
        load_spreads(write(tmp_path, text.replace(old, new)))


def test_two_for_one_key_are_refused(tmp_path: Path) -> None:
    body = dump_spreads([PIN]).partition("[[spread]]")[2]
    with pytest.raises(FixtureError, match="two self-spreads"):
        load_spreads(write(tmp_path, dump_spreads([PIN]) + "[[spread]]" + body))
    with pytest.raises(FixtureError, match="two self-spreads"):
        SpreadTable([PIN, replace(PIN, rms=1.0)])


def test_the_pin_of_this_machine_class_comes_first(tmp_path: Path) -> None:
    other = replace(PIN, machine_class="another", rms=0.1)
    table = SpreadTable([PIN, other])
    key = ("m", "Q8_0", "avx512")
    assert table.find(*key, "another", "ab" * 32) == other
    assert table.find(*key, "a-machine", "ab" * 32) == PIN
    found = table.find(*key, "a-third", "ab" * 32)
    assert found is not None
    assert found.machine_class != "a-third"
    assert table.find(*key, "a-machine", "ef" * 32) is None  # other prompts
    assert table.find("m", "Q8_0", "avx2", "a-machine", "ab" * 32) is None  # another ISA target is never compared


def test_what_is_shipped_loads_and_has_room_above_the_twin() -> None:
    table = load_spreads()
    assert len(table.sha256) == 64
    assert table.pins
    for pin in table.pins:
        assert pin.source
        for metric in ("rms", "p99", "kl"):
            assert pin.ratio(metric) < pin.limit(metric) < 2 * pin.ratio(metric), pin.key
        assert all(getattr(pin, name) > 0 for name in PINNED)
        assert "burn" not in pin.source
        assert "candidate" not in pin.source
