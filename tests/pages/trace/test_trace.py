"""What a trace shows: sentences, maps, figures and tables of two real traces, one sound and one with a seeded fault."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from parity_lib import pages as show
from parity_lib.base.names import Outcome
from parity_lib.engines.burn.self_check import Parting
from parity_lib.judge.blame import blame
from parity_lib.judge.drift_shape import CAUSES, Kind
from parity_lib.pages.cell.drift_words import profile_words
from parity_lib.pages.kit.op_names import op_words, short_name
from parity_lib.pages.kit.shape_words import shape_words
from parity_lib.pages.kit.text import Words
from parity_lib.pages.trace.conclusion import traced_positions
from parity_lib.pages.trace.figures import local_errors
from parity_lib.pages.trace.maps import _columns
from parity_lib.records.verdicts import Verdict
from parity_lib.trace.token import TokenTrace
from tests.shared import PROMPTS, ThreeLayers

pytestmark = pytest.mark.slow

MakeVerdict = Callable[..., Verdict]
WORDS = Words({}, {0: "first", 1: "second"})
FAULT = "k_head_permuted@blk.1"


@pytest.fixture
def sound(three_layers: ThreeLayers) -> TokenTrace:
    return three_layers.trace()


@pytest.fixture
def fault(three_layers: ThreeLayers) -> TokenTrace:
    return three_layers.trace(FAULT)


def test_a_sound_trace_says_so(sound: TokenTrace) -> None:
    found = show.trace_conclusion(sound, WORDS)
    assert found.outcome is Outcome.PARITY
    assert found.sentence.startswith("All 180 ops are right on llama.cpp's own inputs at token 3, nearest to its limit")
    assert found.sentence.endswith("no engine is at fault.")
    assert (found.first, found.layer, found.shape.kind) == (None, None, Kind.INSIDE)
    box = show.trace_box(sound, found, WORDS)
    assert "PARITY at prompt 0 (first), token 3: every op and layer is inside its limit" in box.plain
    assert 'class="verdict good"' in box.html


def test_a_fault_is_named_with_its_shape_and_whose_it_is(fault: TokenTrace) -> None:
    found = show.trace_conclusion(fault, WORDS)
    assert found.outcome is Outcome.DIVERGED
    assert found.first is not None
    assert (found.first.where, found.layer, found.on_twin) == ("Kcur.MUL_MAT-1", 1, False)
    assert found.shape.kind is Kind.RISING  # at position 0 there is one key, whatever its score
    words = r"First over its limit: layer 1 `attn_k`, local error \S+ against 1\.0e-11; at the logits zero at "
    assert re.match(words + r"position 0[^:.]*\. burn is .* times as far .*: burn's fault", found.sentence)
    assert "most comes from layer 1" in found.more[1]
    box = show.trace_box(fault, found, WORDS)
    assert f"seeded fault: {FAULT}" in box.plain
    assert "<code>attn_k</code>" in box.html
    assert f"Next: replay the failing op without the model: parity replay {fault.reproducer}" in box.plain


@pytest.mark.parametrize(
    ("kind", "drift"),
    [
        (Kind.FLAT, lambda place: np.full(len(place), 50.0)),
        (Kind.RISING, lambda place: 0.9 * place),
        (Kind.RISING, lambda place: np.where(place > 0, 30.0, 0)),
        (Kind.BEYOND, lambda place: np.where(place >= 5, 500.0, 0.2)),
        (Kind.ERRATIC, lambda place: np.where(place % 5 == 3, 80.0, 0.2)),
        (Kind.ERRATIC, lambda place: np.where(place == 4, 80.0, 0.2)),
    ],
)
def test_both_pages_name_the_same_kind_and_causes(
    sound: TokenTrace, kind: Kind, drift: Callable[[np.ndarray], np.ndarray]
) -> None:
    shown = traced_positions(sound)
    assert profile_words(shown) == ""
    share = drift(np.arange(len(shown)))
    total = sound.layers.floor.copy()
    total[-1] *= share
    found = show.trace_conclusion(replace(sound, layers=replace(sound.layers, total=total)), WORDS)
    assert found.shape.kind is kind
    quiet = np.zeros(len(shown))
    in_cell = profile_words(replace(shown, delta=share * shown.limit, rms_over_std=quiet))
    assert in_cell == f"Profile: {shape_words(found.shape)}. Points to {CAUSES[kind]}."
    assert profile_words(replace(shown, delta=quiet, rms_over_std=share * shown.rms_limit)) == in_cell
    assert f"{shape_words(found.shape)}: points to {CAUSES[kind]}." in found.sentence


def test_neither_page_guesses_at_a_cause_where_an_op_is_named(fault: TokenTrace, make_verdict: MakeVerdict) -> None:
    found, shown = show.trace_conclusion(fault, WORDS), traced_positions(fault)
    assert found.first is not None
    assert found.shape.kind is Kind.RISING
    assert f"at the logits {shape_words(found.shape)}. burn" in found.sentence
    red = make_verdict(Outcome.DIVERGED)
    both = structs.replace(red, divergences=(*red.divergences, found.first))
    start = "Start at what T3 named first, layer 1 attn_k"
    told = {kind: show.verdict_box(verdict, shown=shown).plain for kind, verdict in (("T4", red), ("T3", both))}
    assert re.search(rf"Profile: zero at position 0[^.]*\. {start}: the profile only shows where", told["T3"])
    assert re.search(rf"Profile: zero at position 0[^.]*\. Points to {CAUSES[Kind.RISING]}\.", told["T4"])
    for sentence in (found.sentence, told["T3"]):
        assert "oints to" not in sentence
        assert all(causes not in sentence for causes in CAUSES.values() if causes)


def test_a_worse_reference_is_said_to_be_llamas(fault: TokenTrace) -> None:
    layers = fault.layers
    blames = tuple(replace(b, burn=b.llamacpp, llamacpp=b.burn, low=1 / b.high, high=1 / b.low) for b in layers.blames)
    found = show.trace_conclusion(replace(fault, layers=replace(layers, blames=blames)), WORDS)
    assert found.sentence.endswith("times as far from the float64 oracle as burn: llama.cpp's fault.")


def test_a_wrong_layer_without_a_wrong_op_is_still_a_divergence(sound: TokenTrace) -> None:
    total = sound.layers.total.copy()
    total[1:] *= 1000
    found = show.trace_conclusion(replace(sound, layers=replace(sound.layers, total=total)), WORDS)
    assert (found.outcome, found.layer) == (Outcome.DIVERGED, 1)
    assert found.sentence.startswith("No single op is over its limit; first over its floor: layer 1")
    noise = np.full((9, 4), 1e-7)
    worse = (*sound.layers.blames[:-1], blame("logits", np.ones((9, 4)), 1 + noise, 1 + 1e4 * noise))
    found = show.trace_conclusion(replace(sound, layers=replace(sound.layers, blames=worse)), WORDS)
    assert found.outcome is Outcome.DIVERGED


def test_ops_that_were_not_replayed_leave_it_incomplete(sound: TokenTrace) -> None:
    lacking = replace(sound, native=structs.replace(sound.native, compared=179))
    found = show.trace_conclusion(lacking, WORDS)
    assert found.outcome is Outcome.INCOMPLETE
    assert found.sentence.startswith("Only 179 of 180 ops were judged.")


def test_a_decode_that_is_not_the_prefill_is_no_parity_and_names_its_op(fault: TokenTrace, sound: TokenTrace) -> None:
    assert any(
        "equals its prefill bit for bit at all 60 sites." in more for more in show.trace_conclusion(sound, WORDS).more
    )
    parted = Parting(sound.own.sites, ("attn_out-1", "result_output"), 2e-7)
    found = show.trace_conclusion(replace(sound, own=parted), WORDS)
    assert found.outcome is Outcome.DIVERGED
    said = "burn's decode of this token differs from its prefill (T6): first at layer 1 `attn_output`, by 2.0e-07"
    assert found.sentence.startswith(said)
    assert "2 of 60 sites differ. Against llama.cpp: all 180 ops are right" in found.sentence
    both = show.trace_conclusion(replace(fault, own=parted), WORDS)
    assert both.sentence == show.trace_conclusion(fault, WORDS).sentence  # what llama.cpp says comes first
    assert any(more.startswith(said) for more in both.more)


def test_what_broke_in_the_cell_and_not_here_is_no_parity(fault: TokenTrace, sound: TokenTrace) -> None:
    found = show.trace_conclusion(sound, WORDS, broken="T6, burn against itself (threads)")
    assert found.outcome is Outcome.INCOMPLETE
    assert found.sentence.startswith(
        "The cell broke T6, burn against itself (threads), which this trace does not repeat. All 180 ops are right"
    )
    assert "no engine is at fault" not in found.sentence
    assert show.trace_conclusion(fault, WORDS, broken="T6").outcome is Outcome.DIVERGED
    lacking = replace(
        sound, native=structs.replace(sound.native, compared=179), own=Parting(sound.own.sites, ("embd",), 1.0)
    )
    assert "Against llama.cpp: only 179 of 180 ops were judged." in show.trace_conclusion(lacking, WORDS).sentence
    alone = replace(sound, own=Parting((), (), 0.0))
    assert any("was not compared with its prefill" in more for more in show.trace_conclusion(alone, WORDS).more)


def test_what_is_wrong_only_later_is_told_and_accuses_nobody(fault: TokenTrace, sound: TokenTrace) -> None:
    late = [error for error in fault.ops.errors if not error.share <= 1 and error.first_position > fault.place.row]
    assert late
    kept = tuple(e for e in sound.ops.errors if e.first_position <= sound.place.row)
    mixed = replace(sound, ops=replace(sound.ops, errors=(*kept, *late)))
    found = show.trace_conclusion(mixed, WORDS)
    assert found.outcome is Outcome.PARITY
    assert found.more[-1].startswith("Over a limit only after this token: first op layer 1 `attn_k`")


def test_the_map_of_layers_marks_the_token_and_the_first_layer(fault: TokenTrace, sound: TokenTrace) -> None:
    n, n_rows = len(fault.place.sequence), 4
    picture = show.layer_map(fault, show.trace_conclusion(fault), WORDS)
    assert picture.html.count("<g><title>") == n * n_rows
    assert picture.html.count('class="line"') == 3  # with the legend's
    assert "layer 1, token 3: " in picture.html
    assert re.search(r"places over their floor, the first in layer 1\.", picture.plain)
    healthy = show.layer_map(sound, show.trace_conclusion(sound), WORDS)
    assert healthy.html.count('class="line"') == 2
    assert " 0 of " in healthy.plain


def test_columns_of_a_long_sequence_hold_every_position_once_and_the_token_alone() -> None:
    for n, row in ((300, 17), (300, 299), (300, 0), (30, 3)):
        groups = _columns(n, row, 66)
        assert np.concatenate(groups).tolist() == list(range(n))
        assert len(groups) <= 66
        assert [row] in [group.tolist() for group in groups]


def test_the_map_of_heads_shows_the_wrong_one(fault: TokenTrace) -> None:
    picture = show.head_map(fault)
    assert picture.html.count("<g><title>") == 3 * 4
    wrong = re.findall(r"<title>(layer 1, K of KV head \d): [^<]*</title><rect class=\"b5\"", picture.html)
    assert wrong == ["layer 1, K of KV head 0"]
    assert "(layer 1, head 0)" in picture.plain


def test_the_profile_has_its_largest_local_error_at_the_fault(fault: TokenTrace) -> None:
    local = local_errors(fault)
    assert local.shape == (4,)
    assert int(np.argmax(local)) == 1
    assert local[1] > 1e5 * local[[0, 2, 3]].max()
    assert "(layer 1)" in str(show.layer_profile(fault))


def test_both_waterfalls_print_their_sums(fault: TokenTrace, sound: TokenTrace) -> None:
    assert fault.by_layer is not None
    gallery = show.falls(fault, WORDS)
    assert len(gallery.pictures) == 2
    assert "the largest is layer 1 with" in gallery.pictures[0].alt
    assert "the largest is Kcur.MUL_MAT with" in gallery.pictures[1].alt
    sums = re.findall(r"sum to (\S+) of (\S+)\.", gallery.caption)
    assert len(sums) == 2
    assert all(total == delta for total, delta in sums)
    lost = show.falls(replace(sound, by_layer=None, by_op=None), WORDS)
    assert (lost.pictures, "not finite" in lost.caption) == ((), True)


def test_tables(fault: TokenTrace) -> None:
    top = show.top_table(fault, WORDS).plain.splitlines()
    assert len(top) == 7
    assert top[-1].startswith("Margin, first minus second: llama.cpp ")
    layers = show.layer_table(fault).plain.splitlines()
    assert [line.split("  ")[0] for line in layers[1:5]] == ["layer 0", "layer 1", "layer 2", "logits"]
    assert ["burn worse" in line for line in layers[1:5]] == [False, True, True, True]
    ops = show.op_table(fault)
    assert "180 of 180 ops replayed on the native path, 3 over a limit" in ops.plain
    assert ops.html.count('class="bad"') == 3
    assert ops.plain.splitlines()[2].startswith("layer 1 attn_k")


def test_products_are_split_by_kind(sound: TokenTrace) -> None:
    found = show.split_table(sound)
    lines = found.plain.splitlines()
    names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output"]
    assert [line.split("  ")[0] for line in lines[1:9]] == names
    assert "Q8_0 x 3" in lines[1]
    assert lines[1].split("  ")[-1].strip().startswith("layer ")
    assert 'class="bad"' not in found.html
    assert "At the logits, rms over their spread, 11 positions: burn's f32 policy is 0.0" in lines[-1]
    assert "weights are dequantised differently" not in found.plain
    wrong = replace(sound.split, logits=None, products=(replace(sound.split.products[0], differ=3),))
    marked = show.split_table(replace(sound, split=wrong))
    assert "3 weights are dequantised differently by burn" in marked.plain
    assert marked.plain.endswith("A logit is not finite, so the logits could not be split.")
    assert marked.html.count('class="bad"') == 1


def test_commands_lead_on(fault: TokenTrace) -> None:
    def lines(trace: TokenTrace) -> list[str]:
        return [" ".join(line.split()) for line in show.trace_commands(trace).plain.splitlines()]

    base, reproducer = f"parity trace {fault.cell.request.model}", fault.reproducer
    assert reproducer is not None
    tail = f"--fault {FAULT} --prompts {PROMPTS}"
    assert lines(fault)[1:] == [
        f"this token again {base} --prompt 0 --token 3 {tail}",
        f"the next token {base} --prompt 0 --token 4 {tail}",
        f"the token before {base} --prompt 0 --token 2 {tail}",
        f"first over its limit {base} --prompt 0 --token -4 {tail}",
        f"the whole cell parity run {fault.cell.request.model} {tail}",
        f"replay the failing op (folder reproducer) parity replay {reproducer}",
    ]
    assert not any("parity replay" in line for line in lines(replace(fault, reproducer=None)))
    lost = lines(replace(fault, reproducer=None, reproducer_lost="no room"))
    assert lost[-1] == "The failing op could not be kept in a reproducer: no room"


def test_tokens_around_are_a_table_where_nobody_sits(sound: TokenTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_NOTEBOOK", "a token of the runner")
    found = show.traced_tokens(sound, WORDS)
    assert len(found.plain.splitlines()) == 1 + len(sound.place.sequence)
    assert found.html.count('class="here"') == 1


def test_names_are_those_that_people_say() -> None:
    assert op_words("ffn_out-7") == "layer 7 `ffn_down`"
    assert op_words("kq-0") == "layer 0 `kq` (MUL_MAT)"
    assert op_words("result_output") == "`output`"
    assert [short_name(name) for name in ("layer 4", "Kcur.MUL_MAT", "Kcur", "embd")] == [
        *("4", "attn_k", "Kcur", "token_embd"),
    ]


def test_the_deployed_file_has_a_blame_of_its_own(sound: TokenTrace) -> None:
    shown = show.native_blame(sound)
    assert "On the deployed file, relative error of the logits against a float64 oracle" in shown.plain
    assert len(sound.native_layers.blames) == sound.cell.facts.n_layer + 1
    assert sound.native_layers.llamacpp[0].max() < 1e-5  # with the rounding emulated; without it, 1e-3
    assert sound.layers.llamacpp[0].max() < 1e-5
    assert "reference does: burn" in shown.html
