from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import structs

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.judge.first_divergence import self_broken
from parity_lib.pages.cell.box import cell_links, first_divergence, verdict_box
from parity_lib.pages.kit.fragment import HEADLINE
from parity_lib.pages.kit.text import Words
from parity_lib.records.verdicts import Divergence, RungResult, Verdict
from tests.run_info import BURN_BUILD

MakeVerdict = Callable[..., Verdict]
WORDS = Words({578: b" the", 791: b" a"}, {3: "long-1"})


def test_red_box_says_what_where_how_large_and_what_next(make_verdict: MakeVerdict) -> None:
    lines = verdict_box(make_verdict(Outcome.DIVERGED), WORDS).plain.splitlines()
    assert lines[1] == "DIVERGED at rung T4 twin: 3 of 1,412 positions"
    assert lines[3] == (
        'First: prompt 3 (long-1), token 17, top-1 differs: top-1 of llama.cpp 578 "␣the", of burn 791 "␣a".'
    )
    assert lines[4] == 'Delta +0.0678 logits at 791 "␣a", limit 2.0e-04 (339x over).'
    assert "parity run smollm2-135m Q8_0 --isa avx512 --stack crates-io --compute f32" in lines[5]


def test_green_box_says_how_far_inside_and_what_was_compared(make_verdict: MakeVerdict) -> None:
    lines = verdict_box(make_verdict(), WORDS).plain.splitlines()
    assert lines[1] == "PARITY at 1,412 of 1,412 positions"
    assert "Worst 4.4e-05 rms/std, limit 2.0e-04 (4.5x inside)." in lines[3]
    assert "top-1 equal 97.1 %, top-5 set equal 85.4 %" in lines[4]
    assert lines[-1].startswith("Next: no action needed")


def test_what_restricts_a_verdict_stands_in_the_headline(make_verdict: MakeVerdict) -> None:
    verdict = make_verdict(unpinned=True)
    build = structs.replace(BURN_BUILD, library="with faults")
    faulty = structs.replace(verdict.runs["candidate"], fault="eps_x10@blk.12", build=build)
    verdict = structs.replace(verdict, runs={**verdict.runs, "candidate": faulty})
    marks = verdict_box(verdict).plain.splitlines()[2]
    assert marks == (
        "crates.io burn, not the fork · seeded fault: eps_x10@blk.12, library with faults · provisional limits · "
        "unpinned · avx512 unproven"
    )
    assert "--fault eps_x10@blk.12" in verdict_box(verdict).plain


def test_a_pin_that_does_not_hold_is_said_before_anything_else(make_verdict: MakeVerdict) -> None:
    pins = RungResult(Rung.T0, Outcome.INCOMPLETE, 9, 9, None, None, "pins", note="commit: expected a, found b")
    verdict = make_verdict(Outcome.INCOMPLETE, rungs=(pins,), causes=("T0 pins: commit: expected a, found b",))
    box = verdict_box(verdict)
    assert "no rung was judged" in box.plain.splitlines()[1]
    assert "Cause: T0 pins: commit: expected a, found b." in box.plain
    assert 'class="verdict warn"' in box.html


def test_a_verdict_without_rungs_names_its_causes(make_verdict: MakeVerdict) -> None:
    causes = tuple(f"cause {i}" for i in range(7))
    box = verdict_box(make_verdict(Outcome.INCOMPLETE, rungs=(), runs={}, causes=causes))
    assert "INCOMPLETE: the comparison could not be completed (7 causes)" in box.plain
    assert "Cause: cause 4." in box.plain
    assert "And 2 more causes" in box.plain


def test_a_pooled_number_is_no_position(make_verdict: MakeVerdict) -> None:
    note = "rms over what is predicted, root mean square over these positions, predicted sigmas"
    pooled = Divergence(Rung.T4, Kind.RMS, 2.0, where="pooled over prompt 3", delta=2.5, note=note)
    box = verdict_box(make_verdict(Outcome.DIVERGED, divergences=(pooled,)))
    assert box.plain.splitlines()[1] == "DIVERGED at rung T4 twin"
    assert "First: pooled over prompt 3, rms over its limit." in box.plain
    assert "Rms 2.50, limit 2.0 (1.2x over). Rms over what is predicted" in box.plain


def test_the_lowest_broken_rung_is_named_though_higher_ones_broke_too(make_verdict: MakeVerdict) -> None:
    red = make_verdict(Outcome.DIVERGED)
    weights = RungResult(Rung.T2, Outcome.DIVERGED, 272, 272, 3.0, 0.0, "ULP", "blk.0.ffn_down.weight")
    tensor = Divergence(Rung.T2, Kind.TENSOR, 0.0, where="blk.0.ffn_down.weight", delta=3.0)
    rungs = tuple(weights if r.rung is Rung.T2 else r for r in red.rungs)
    verdict = make_verdict(Outcome.DIVERGED, rungs=rungs, divergences=(*red.divergences, tensor))
    assert first_divergence(verdict) == tensor
    box = verdict_box(verdict)
    assert "DIVERGED at rung T2 weights: 1 of 272 tensors" in box.plain
    assert "Delta +3.00 ULP, limit 0 (over)." in box.plain


def test_a_relation_of_burn_to_itself_is_named_where_nothing_else_broke(make_verdict: MakeVerdict) -> None:
    red = make_verdict(Outcome.DIVERGED)
    rows = [Divergence(Rung.T6, Kind.BITS, 0.0, 2, t, where=where) for t, where in ((9, "threads"), (5, "restored"))]
    assert self_broken(make_verdict(Outcome.DIVERGED, divergences=tuple(rows))) == (
        "T6, burn against itself (restored)"
    )
    assert self_broken(make_verdict(Outcome.DIVERGED, divergences=(*red.divergences, *rows))) == ""
    assert self_broken(make_verdict()) == ""


@pytest.mark.parametrize("stack", ["overlay", "spine", "overlay-fixed"])
def test_the_fork_is_never_taken_for_crates_io(make_verdict: MakeVerdict, stack: str) -> None:
    verdict = make_verdict()
    verdict = structs.replace(verdict, cell=structs.replace(verdict.cell, stack=stack))
    assert f"the fork, stack {stack}" in verdict_box(verdict).plain
    assert "not the fork" not in verdict_box(verdict).plain


def test_texts_from_a_file_cannot_become_markup(make_verdict: MakeVerdict) -> None:
    box = verdict_box(make_verdict(Outcome.DIVERGED), Words({578: b"<script>"}, {3: "<img>"}))
    assert "<script>" not in box.html
    assert "<img>" not in box.html
    assert box.role == HEADLINE
    assert box.title == "DIVERGED · smollm2-135m · Q8_0"


def test_links_stand_only_in_the_folder_of_a_night(tmp_path: object) -> None:
    assert cell_links(f"{tmp_path}/cells/key")["machine and pins"] == "../../00_machine_and_pins.html"
    assert cell_links(f"{tmp_path}/scratch") == {}
