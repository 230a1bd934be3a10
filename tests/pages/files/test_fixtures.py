from __future__ import annotations

from parity_lib.judge.t1_known_differences import KnownDifferences, load_differences
from parity_lib.pages.files.fixtures import difference_table, spread_pin_table
from parity_lib.records.self_spread_pins import SpreadTable, load_spreads


def test_every_pinned_spread_is_listed_and_this_machine_comes_first() -> None:
    spreads = load_spreads()
    pin = spreads.pins[-1]
    lines = spread_pin_table(spreads, pin.machine_class).plain.splitlines()
    assert len(lines) == 2 * len(spreads.pins) + 4  # a sentence, the pins, their sources
    assert f"of this machine class, {pin.machine_class}" in lines[0]
    assert "this one" in lines[2]
    assert "this one" not in spread_pin_table(spreads, "another").plain


def test_without_a_pinned_spread_the_page_says_what_follows() -> None:
    assert "on the fly. Next: parity spread" in spread_pin_table(SpreadTable(()), "x").plain


def test_every_listed_difference_stands_with_its_reason() -> None:
    known = load_differences()
    html = difference_table(known).html
    assert all(entry.name in html for entry in known.entries)
    assert html.count("<tr>") == len(known.entries) + 1
    assert difference_table(KnownDifferences((), "")).plain.startswith("No difference is listed")
