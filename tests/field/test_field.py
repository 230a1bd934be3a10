"""Values that are not finite, and sound input at the edge, as in `docs/red-controls.md`: real engines, small models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parity_lib import pages as show
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.cell import steps
from parity_lib.judge.again import open_stored, rejudge
from parity_lib.judge.blame import LLAMA_WORSE
from parity_lib.models.synthetic import Shape, build
from parity_lib.pages.kit.text import Words
from parity_lib.records.verdicts import RungResult, Verdict
from parity_lib.trace.token import trace_token
from tests.field.inputs import SMALL, block, scaled
from tests.shared import reference_kept_in

pytestmark = pytest.mark.slow

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()
ONE = PROMPTS[: PROMPTS.index("[[prompt]]", PROMPTS.index("[[prompt]]") + 1)]
ONE_TOKEN = ONE.replace("n_tokens = 6", "n_tokens = 1")
SINGLE = Shape(n_layer=1, n_embd=64, n_head=1, n_head_kv=1, key_length=64, n_ff=64, n_vocab=4, n_ctx_train=512)
# Activations of ffn_down beyond 127 * 65504: the F16 scale of their 8-bit blocks is infinite.
OVERFLOW = block(1, ffn_up=3e4, ffn_gate=3e3)
OVERFLOW_HERE_AND_THERE = block(1, ffn_up=3e4, ffn_gate=70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("field")
    with reference_kept_in(path / "traces"):
        yield path


@pytest.fixture(scope="module")
def run(folder: Path) -> Callable[..., Verdict]:
    def run(model: Path, prompts: str = PROMPTS) -> Verdict:
        file = folder / f"{model.stem}.toml"
        file.write_text(prompts)
        out = folder / f"out-{model.stem}"
        return steps.run_cell(steps.CellRequest(str(model), prompts=str(file), out_dir=out, n_threads=1))

    return run


def rung_of(verdict: Verdict, rung: Rung) -> RungResult:
    found = verdict.rung(rung)
    assert found is not None, rung
    return found


def page(folder: Path, verdict: Verdict) -> str:
    """Return what notebook 02 shows of a cell: each of its displays that reads rows or a verdict."""
    stored, words = open_stored(folder), Words()
    shown = show.judged_positions(verdict, stored.pair, stored.limits)
    parts = [
        show.verdict_box(verdict, words, {}, shown),
        show.rung_table(verdict, show.SECTIONS),
        show.drift(shown, words),
        show.heatmap(shown, words, show.anchors(shown)),
        show.position_tables(shown, verdict.divergences, words),
        show.native_section(verdict, words),
        show.text_section(verdict, words),
        show.op_kinds(verdict),
        show.self_table(verdict),
        show.lines_block(verdict.lines()),
        show.around(shown, words),
    ]
    for part in parts:
        assert part._repr_mimebundle_()
    return "\n".join(map(str, parts))


@pytest.mark.parametrize(("name", "factors"), [("all", OVERFLOW), ("some", OVERFLOW_HERE_AND_THERE)])
def test_a_reference_that_overflows_is_accused_at_t5(
    folder: Path, run: Callable[..., Verdict], name: str, factors: dict[str, float]
) -> None:
    verdict = run(scaled(folder, name, factors))
    assert verdict.outcome is Outcome.DIVERGED
    lost = [d for d in verdict.divergences if d.kind is Kind.NON_FINITE]
    assert {d.rung for d in verdict.divergences} == {Rung.T5}
    assert len(lost) == len(verdict.divergences) == len({(d.prompt_idx, d.token_idx) for d in lost})
    n_rows = rung_of(verdict, Rung.T4).expected
    assert len(lost) == n_rows if name == "all" else 0 < len(lost) < n_rows
    for divergence in lost:
        assert "llama.cpp is at fault" in divergence.note
        assert "first not finite at ffn_out-1 (MUL_MAT)" in divergence.note
    for rung in (Rung.T2, Rung.T4, Rung.T6):
        assert rung_of(verdict, rung).outcome is Outcome.PARITY, rung
    ops = rung_of(verdict, Rung.T3)
    assert (ops.outcome, ops.compared < ops.expected) == (Outcome.INCOMPLETE, True)
    out = folder / f"out-{name}"
    again = rejudge(out, out)
    assert again.outcome is Outcome.DIVERGED
    assert sum(d.kind is Kind.NON_FINITE for d in again.divergences) == len(lost)
    text = page(out, verdict)
    assert "DIVERGED" in text
    assert "llama.cpp is at fault" in text


def test_a_trace_names_where_the_reference_overflows(folder: Path) -> None:
    model = scaled(folder, "traced", OVERFLOW)
    (folder / "traced.toml").write_text(PROMPTS)
    request = steps.CellRequest(str(model), prompts=str(folder / "traced.toml"), out_dir=folder / "trace", n_threads=1)
    cell = steps.open_cell(request)
    found = show.trace_conclusion(trace_token(cell, steps.capture_reference(cell), 0, 2))
    assert found.outcome is Outcome.DIVERGED
    assert "llama.cpp's own values are not finite: first at layer 1 `ffn_down`" in found.sentence
    assert found.sentence.endswith("llama.cpp's fault.")
    assert found.blame.word == LLAMA_WORSE


def test_rows_that_are_not_finite_on_both_sides_are_no_parity(folder: Path, run: Callable[..., Verdict]) -> None:
    verdict = run(scaled(folder, "both", {"output_norm.weight": 2e38}))
    assert verdict.outcome is Outcome.DIVERGED
    for rung in (Rung.T4, Rung.T5):
        own = [d for d in verdict.divergences if d.rung is rung]
        assert {d.kind for d in own} == {Kind.NON_FINITE}
        assert len(own) == rung_of(verdict, rung).expected
        assert all("both engines, so look at the file" in d.note for d in own)
    for rung in (Rung.T3, Rung.T6):
        assert rung_of(verdict, rung).outcome is Outcome.INCOMPLETE, rung
    assert rejudge(folder / "out-both", folder / "out-both").outcome is Outcome.DIVERGED


def test_constant_logits_are_said_and_judged(folder: Path, run: Callable[..., Verdict]) -> None:
    verdict = run(scaled(folder, "constant", {"output_norm.weight": 0.0}))
    assert verdict.outcome is Outcome.PARITY, verdict.lines()
    assert "20 rows are constant" in rung_of(verdict, Rung.T4).note
    assert "PARITY" in page(folder / "out-constant", verdict)


def test_a_file_of_f32_tensors_is_its_own_twin(folder: Path, run: Callable[..., Verdict]) -> None:
    verdict = run(build("llama", "F32", folder / "f32.gguf", SMALL), ONE_TOKEN)
    assert verdict.outcome is Outcome.PARITY, verdict.lines()
    native = rung_of(verdict, Rung.T5)
    assert (native.worst, native.limit, native.unit) == (0.0, 0.0, "rows")
    assert "on which T4 judges the candidate" in native.note


def test_one_layer_one_head_four_tokens_one_prompt(folder: Path, run: Callable[..., Verdict]) -> None:
    verdict = run(build("llama", "Q8_0", folder / "single.gguf", SINGLE), ONE)
    assert verdict.outcome is Outcome.PARITY, verdict.lines()


def test_a_block_without_an_effect(folder: Path, run: Callable[..., Verdict]) -> None:
    verdict = run(scaled(folder, "empty", block(1, attn_output=0.0, ffn_down=0.0)))
    assert verdict.outcome is Outcome.PARITY, verdict.lines()
