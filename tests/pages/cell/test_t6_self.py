from __future__ import annotations

from collections.abc import Callable

from msgspec import structs

from parity_lib.judge.t6_self import RELATIONS
from parity_lib.pages.cell.t6_self import self_table
from parity_lib.records.measured import EqualRows, Measured
from parity_lib.records.verdicts import Verdict

FullVerdict = Callable[..., Verdict]


def test_every_relation_says_how_many_rows_and_how_many_differ(full_verdict: FullVerdict) -> None:
    lines = self_table(full_verdict()).plain.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == list(RELATIONS)
    assert all(line.split()[-4:] == ["40", "40", "0", "bit-equal"] for line in lines[1:6])
    assert lines[6].startswith(
        "Teacher-forced pass over 1,025 rows, a part of them made again on each way, threads 2 and 1."
    )
    assert lines[7] == "The same relations of llama.cpp: not in this record."


def test_what_does_not_hold_comes_first_and_is_marked(full_verdict: FullVerdict) -> None:
    shown = self_table(full_verdict(red=True))
    assert shown.plain.splitlines()[1].split()[0] == "restored"
    assert shown.plain.splitlines()[1].split()[-5:] == ["40", "40", "2", "✗", "differs"]
    assert shown.html.count('class="bad"') == 1


def test_rows_that_were_not_made_are_no_equality(full_verdict: FullVerdict) -> None:
    verdict = full_verdict()
    whole = verdict.measured.itself
    counts = structs.replace(whole.relations["alone"], compared=30, equal=30)
    itself = structs.replace(whole, relations={"alone": counts})
    shown = self_table(structs.replace(verdict, measured=Measured(itself=itself)))
    assert "! not complete" in shown.plain
    assert 'class="bad"' in shown.html


def test_llama_cpps_own_relations_are_shown_beside(full_verdict: FullVerdict) -> None:
    verdict = full_verdict()
    own = {"threads, strict": EqualRows(155, 155), "defaults": EqualRows(176, 44)}
    itself = structs.replace(verdict.measured.itself, reference=own)
    lines = self_table(structs.replace(verdict, measured=Measured(itself=itself))).plain.splitlines()
    assert lines[-2].split() == ["threads,", "strict", "155", "0", "bit-equal"]
    assert lines[-1].split() == ["defaults", "176", "132", "25.0", "%", "bit-equal"]


def test_an_old_record_says_that_it_has_none(make_verdict: Callable[..., Verdict]) -> None:
    assert "not in this record" in self_table(make_verdict()).plain
