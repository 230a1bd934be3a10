from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from parity_lib.base.names import Rung
from parity_lib.pages.cell.t5_native import native_section
from parity_lib.pages.kit.text import Words
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import PinnedNumbers
from parity_lib.records.verdicts import Verdict

from ..conftest import NATIVE

FullVerdict = Callable[..., Verdict]


def section(plain: str, title: str) -> list[str]:
    """Return the lines of one table, its header first."""
    lines = plain.splitlines()
    return lines[lines.index(title) + 1 :]


def test_the_gate_shows_distance_spread_ratio_limit_and_the_twins_own_ratio(full_verdict: FullVerdict) -> None:
    verdict = full_verdict()
    head, *rows = section(native_section(verdict).plain, "Gate: distance over llama.cpp's self-spread")[:4]
    assert head.split()[:3] == ["metric", "burn", "to"]
    assert [row.split()[0] for row in rows] == ["rms", "99th", "KL"]
    assert all(" inside" in row for row in rows)
    assert f"{verdict.measured.spread.ratios['rms'].limit:.2f}" in rows[0]
    assert 'class="bad"' not in native_section(verdict).html


def test_each_variant_is_listed_with_what_it_stands_against_and_why_one_is_absent(full_verdict: FullVerdict) -> None:
    rows = section(native_section(full_verdict()).plain, "llama.cpp against itself")
    assert rows[1].startswith("the pool: root mean square")
    assert rows[2].startswith("defaults of this build")
    assert "the defaults" in rows[4]
    assert rows[5].startswith("the F32 twin")
    assert rows[6] == "Not run: another CPU build: no other build is there."
    assert [row.rstrip().endswith("in the pool") for row in rows[2:6]] == [True, True, True, False]


def test_a_machine_class_without_a_pin_is_said(full_verdict: FullVerdict) -> None:
    assert "No self-spread is pinned for x86-64 avx512 2 cores" in native_section(full_verdict()).plain


def test_tonights_spread_stands_beside_the_pinned_one_and_what_is_off_is_marked(full_verdict: FullVerdict) -> None:
    verdict = full_verdict()
    spread = verdict.measured.spread
    pooled = spread.pooled
    pinned = PinnedNumbers("x", rms=pooled.rms, p99=pooled.p99, kl=pooled.kl * 2, pair_sigma=pooled.pair_sigma)
    for provisional, n_bad in ((False, 1), (True, 0)):
        changed = structs.replace(spread, pinned=pinned, provisional=provisional)
        shown = native_section(structs.replace(verdict, measured=Measured(native=NATIVE, spread=changed)))
        rows = section(shown.plain, "Has llama.cpp's own variation changed since it was pinned?")
        assert rows[1].split()[-1] == "+0.0%"
        assert rows[3].split()[-1] == "-50.0%"
        assert shown.html.count('class="bad"') == n_bad
        assert ("the verdict is provisional" in rows[5]) is provisional


def test_a_red_gate_marks_its_rows_and_names_its_divergences(full_verdict: FullVerdict, words: Words) -> None:
    verdict = full_verdict(red=True)
    shown = native_section(verdict, words)
    own = [d for d in verdict.divergences if d.rung is Rung.T5]
    assert f"Divergences of the deployed file: {len(own)}" in shown.plain
    assert " over" in section(shown.plain, "Gate: distance over llama.cpp's self-spread")[1]
    assert "of the self-spread, limit" in shown.html
    assert shown.html.count('<tr class="bad">') >= 4


def test_both_ledgers_stand_side_by_side_and_flips_are_folded(
    full_verdict: FullVerdict, red_verdict: Verdict, words: Words
) -> None:
    verdict = full_verdict()
    both = structs.replace(verdict, measured=structs.replace(verdict.measured, ledger=red_verdict.measured.ledger))
    rows = section(native_section(both, words).plain, "Ledger of flips")
    assert [row.split()[0] for row in rows[1:5]] == ["T4", "T4", "T5", "T5"]
    n_flips = len(verdict.measured.native_ledger.flips)
    assert f"<details><summary>20 of {n_flips} flips on the deployed file, the widest margins first" in (
        native_section(both, words).html
    )


def test_an_old_record_says_what_it_lacks_and_shows_what_it_has(make_verdict: Callable[..., Verdict]) -> None:
    plain = native_section(make_verdict()).plain
    assert "top-1 equal" in plain
    assert "How far llama.cpp is from itself on this file, and the gate that follows: not in this record." in plain
    assert "The ledger of flips: not in this record." in plain
