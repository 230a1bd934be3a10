"""The pages of rungs T1 and T2 of a file: what stands in them for a green and for a red record."""

from __future__ import annotations

from collections.abc import Callable

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.cell.file_check import Pieces, TensorNumbers
from parity_lib.judge.t1_known_differences import KnownDifference, KnownDifferences
from parity_lib.judge.t1_tokens import BytesResult, TextResult, TokenizerPair, judge_tokens
from parity_lib.pages.files.tensors import tensor_table, type_table, weight_figure
from parity_lib.pages.files.tokens import case_table, prompt_pieces, token_differences, token_table
from parity_lib.records.measured import Measured, Tokens
from parity_lib.records.verdicts import Divergence, RungResult, Verdict

MakeVerdict = Callable[..., Verdict]
KNOWN = KnownDifferences((KnownDifference("composed", ("qwen2",), "no-nfc", ("marks",), ("a",), "NFC <first>"),), "0")


def judged(*, broken: bool = False) -> tuple[RungResult, list[Divergence], Tokens]:
    """Judge a prompt, a vocabulary case and a listed difference."""
    texts = [
        TextResult("insulin", "prompts", (1, 2), (1, 3) if broken else (1, 2)),
        TextResult("qwen2/case/00", "cases", (5,), (5,), expected=(5,)),
        TextResult("marks/000", "marks", (7,), (8,), following={"no-nfc": (7,)}),
    ]
    facts = {"pre": "qwen2", "n_vocab": 9, "types": {"NORMAL": 9}, "bos": None, "missing_bytes": [4], "nfc": True}
    counts = {"prompts": 1, "cases": 1, "marks": 1}
    return judge_tokens(TokenizerPair("a", counts, texts, BytesResult(9, 9, ()), facts), KNOWN)


def shown(make_verdict: MakeVerdict, *, broken: bool = False) -> Verdict:
    """Return a verdict that holds that record."""
    rung, divergences, record = judged(broken=broken)
    measured = Measured(tokens=record, cases={"qwen2": record})
    outcome = Outcome.DIVERGED if broken else Outcome.PARITY
    return make_verdict(outcome, rungs=(rung,), divergences=tuple(divergences), measured=measured)


def test_texts_are_counted_by_class(make_verdict: MakeVerdict) -> None:
    found = token_table(shown(make_verdict))
    assert found.plain.startswith("3 texts tokenised by both, 0 differ without a listed reason; the bytes of 9 of 9")
    assert 'class="bad"' not in found.html
    assert "0x04" in found.html


def test_a_class_that_differs_is_red(make_verdict: MakeVerdict) -> None:
    found = token_table(shown(make_verdict, broken=True))
    assert found.html.count('class="bad"') == 2  # the class and the sum
    assert "1 differ without a listed reason" in found.plain


def test_a_file_without_a_vocabulary_says_so(make_verdict: MakeVerdict) -> None:
    assert "no vocabulary" in token_table(make_verdict(measured=Measured())).plain
    assert "were not run" in case_table(make_verdict(measured=Measured())).plain


def test_the_cases_stand_by_vocabulary(make_verdict: MakeVerdict) -> None:
    assert case_table(shown(make_verdict)).plain.splitlines()[1].split()[:4] == ["qwen2", "qwen2", "1", "1"]


def test_the_first_ids_that_differ_and_the_listed_reasons_are_shown(make_verdict: MakeVerdict) -> None:
    green, red = (token_differences(shown(make_verdict, broken=broken)) for broken in (False, True))
    assert green.plain.startswith("No difference without a listed reason.")
    assert "NFC &lt;first&gt;" in green.html
    assert "the first id that differs is number 1: llama.cpp [1 2] of 2, tokenizers [1 3] of 2" in red.plain


def test_a_prompt_is_cut_into_boxes_with_visible_whitespace() -> None:
    found = prompt_pieces([Pieces("code", ((5, b"a"), (6, b" \n<"), (7, b"\xf0")))])
    assert found.html.count('class="piece"') == 3
    assert "␣↵&lt;" in found.html
    assert "\\xf0" in found.html
    assert "code: 3 tokens" in found.html
    assert prompt_pieces([]).plain == "The file has no vocabulary."


def tensors() -> list[TensorNumbers]:
    """Return two layers of one kind, and one tensor outside."""
    blocks = [TensorNumbers(f"blk.{i}.attn_q.weight", "Q8_0", (4, 32), 136, 0.1 * (i + 1), 0.5, 0) for i in range(2)]
    return [*blocks, TensorNumbers("output_norm.weight", "F32", (32,), 128, 1.0, 2.0, 0)]


def test_tensors_are_counted_by_type_and_drawn_by_kind() -> None:
    assert type_table(tensors()).plain.splitlines()[1].split()[:3] == ["Q8_0", "2", "256"]
    (panel,) = weight_figure(tensors()).pictures
    assert panel.alt == "attn_q.weight over 2 layers: rms 0.10 to 0.20, largest 0.50"


def test_every_tensor_stands_in_its_layer_and_a_wrong_one_is_open(make_verdict: MakeVerdict) -> None:
    rung = RungResult(Rung.T2, Outcome.PARITY, 3, 3, 0.0, 0.0, "ULP")
    found = tensor_table(tensors(), make_verdict(rungs=(rung,)))
    assert "layer 1: 1 tensors" in found.html
    assert " open>" not in found.html
    wrong = Divergence(Rung.T2, Kind.TENSOR, 0.0, where="blk.1.attn_q.weight", delta=3.0)
    found = tensor_table(tensors(), make_verdict(Outcome.DIVERGED, rungs=(rung,), divergences=(wrong,)))
    assert found.html.count(" open>") == 2  # the list, and the layer
    assert found.html.count('class="bad"') == 1


def test_a_tensor_that_was_not_judged_does_not_look_equal(make_verdict: MakeVerdict) -> None:
    assert "not judged" in tensor_table(tensors(), make_verdict(rungs=())).plain
