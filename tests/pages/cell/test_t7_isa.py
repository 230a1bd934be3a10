from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.names import Outcome, Rung
from parity_lib.base.record import decode_record
from parity_lib.judge.t7_isa import judge_isa, prove
from parity_lib.pages.cell.box import _marks
from parity_lib.pages.cell.ladder import SECTIONS
from parity_lib.pages.cell.t7_isa import isa_table
from parity_lib.pages.night.sure import _instructions
from parity_lib.records.isa_evidence import Evidence
from parity_lib.records.measured import Instructions, Measured
from parity_lib.records.verdicts import Verdict

RECORDED = Path(__file__).parents[2] / "fixtures" / "polyfill.json"
MakeVerdict = Callable[..., Verdict]


@pytest.fixture(scope="module")
def recorded() -> list[Evidence]:
    """Real evidence of a machine without AMX; each claims to be AMX."""
    return [decode_record(entry, Evidence, RECORDED) for entry in json.loads(RECORDED.read_text())["evidence"]]


def verdict_of(make_verdict: MakeVerdict, evidence: list[Evidence], target: str) -> Verdict:
    proofs = [prove(replace(e, requested=target)) for e in evidence]
    rung, divergences = judge_isa(proofs, expected=len(proofs), required=False)
    verdict = make_verdict()
    isa = Instructions(tuple(proofs), required=False, deployed=proofs[-1])
    found, lines = (*verdict.rungs, rung), (*verdict.divergences, *divergences)
    return replace(verdict, rungs=found, divergences=lines, measured=Measured(isa=isa))


def test_proofs_name_kernels_with_shares_and_buffers_with_bytes(
    make_verdict: MakeVerdict, recorded: list[Evidence]
) -> None:
    text = isa_table(verdict_of(make_verdict, recorded, "avx512")).plain
    assert "burn, teacher-forced pass" in text
    assert text.count("proven") >= 3
    assert "kernel_target_avx512 (_mm512_fmadd_ps)" in text
    assert "vfmadd231ps, 512 bits" in text
    assert "CPU_REPACK" in text
    assert "182 q4_K" in text
    assert "75.4 MB" in text
    assert "%" in text
    assert "not judged" in text


def test_a_polyfill_is_marked_as_refused_and_stands_first(make_verdict: MakeVerdict, recorded: list[Evidence]) -> None:
    verdict = verdict_of(make_verdict, recorded, "amx")
    shown = isa_table(verdict)
    assert shown.plain.count("✗ other instructions") == 3
    assert shown.html.count('class="bad"') == 3
    assert "asked for amx, saw avx512" in shown.plain
    assert verdict.rung(Rung.T7) is not None
    assert _instructions(verdict).startswith("avx512 refused: ")


def test_a_side_that_cannot_run_the_target_is_no_red_row_and_stands_in_the_headline(
    make_verdict: MakeVerdict, recorded: list[Evidence]
) -> None:
    """As on AMX: llama.cpp ran what was asked for, and burn the widest that it has."""
    why = "amx is not possible for burn here, which ran avx512: it has no kernel of tiles"
    burn, *_, llama = recorded
    verdict = verdict_of(make_verdict, [replace(burn, impossible=why), llama], "avx512")
    rung = verdict.rung(Rung.T7)
    assert rung is not None
    assert rung.outcome is Outcome.REPORTED
    shown = isa_table(verdict)
    assert shown.plain.count("· not possible here") == 1
    assert "✓ proven" in shown.plain
    assert why in shown.plain
    assert 'class="bad"' not in shown.html
    assert _instructions(verdict).startswith(f"avx512 not on both sides: {why}")
    assert ("avx512 not on both sides", f"requested; {rung.note}") in _marks(verdict)


def test_a_record_without_proofs_says_so(make_verdict: MakeVerdict) -> None:
    assert "not in this record" in isa_table(make_verdict()).plain


def test_the_rung_leads_to_the_table_and_the_night_says_what_was_seen(
    make_verdict: MakeVerdict, recorded: list[Evidence]
) -> None:
    assert SECTIONS[Rung.T7] == "#isa"
    good = verdict_of(make_verdict, recorded, "avx512")
    assert _instructions(good) == "avx512, proven"
    rungs = tuple(
        replace(r, outcome=Outcome.NOT_RUN, note="unproven: x") if r.rung is Rung.T7 else r for r in good.rungs
    )
    assert _instructions(replace(good, rungs=rungs)) == "avx512 unproven: unproven: x"
