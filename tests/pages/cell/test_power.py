from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.pages.cell.power import NO_POWER, control_words, power_words, share
from parity_lib.records.verdicts import Divergence, Verdict

MakeVerdict = Callable[..., Verdict]


def control(make_verdict: MakeVerdict, outcome: Outcome, **changes: object) -> Verdict:
    verdict = make_verdict(outcome, control=True, **changes)
    seeded = structs.replace(verdict.runs["candidate"], fault="eps_x10@blk.12")
    return structs.replace(verdict, runs={**verdict.runs, "candidate": seeded})


def test_without_its_numbers_no_power_is_claimed(make_verdict: MakeVerdict) -> None:
    assert power_words(make_verdict()) == NO_POWER


def test_small_shares_keep_their_digits() -> None:
    assert [share(rate) for rate in (0.00101, 0.0000854, 0.034, 1.0)] == ["0.10 %", "0.0085 %", "3.4 %", "100 %"]


def test_a_control_says_whether_and_where_it_was_caught(make_verdict: MakeVerdict) -> None:
    assert control_words(control(make_verdict, Outcome.DIVERGED)) == (
        "This is a red control (eps_x10@blk.12): caught, at T4."
    )
    assert "NOT caught by any numeric rung" in control_words(control(make_verdict, Outcome.PARITY))
    assert "it is no evidence" in control_words(control(make_verdict, Outcome.INCOMPLETE))


def test_the_references_own_spread_catches_no_fault(make_verdict: MakeVerdict) -> None:
    spread = Divergence(Rung.T5, Kind.SPREAD, 0.1, where="self-spread rms", delta=0.3)
    assert "NOT caught" in control_words(control(make_verdict, Outcome.DIVERGED, divergences=(spread,)))
