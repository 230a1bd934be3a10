"""The verdict over a file alone: what it needs, and what it says of a tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import PinError
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.cell.climbed import Finding
from parity_lib.cell.file_check import (
    check_cases,
    check_file,
    cut_prompts,
    judge_file,
    measure_tensors,
    save_file_verdict,
)
from parity_lib.cell.request import Cell, open_cell
from parity_lib.cell.t0_pins import file_checks
from parity_lib.model_file.facts import read_tensors
from parity_lib.records.store import load_verdict
from parity_lib.records.verdicts import Divergence, RungResult
from parity_lib.tokenizers import vocabulary_cases

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return open_cell(model="synthetic-llama", quant="Q4_K_M", out_dir=tmp_path_factory.mktemp("cell"))


def finding(rung: Rung, *, expected: int = 3, compared: int = 3, lines: int = 0) -> Finding:
    outcome = Outcome.DIVERGED if lines else Outcome.PARITY
    result = RungResult(rung, outcome, expected, compared, float(lines), 0.0, "texts", note="said")
    kind = Kind.TOKENS if rung is Rung.T1 else Kind.TENSOR
    return Finding(result, tuple(Divergence(rung, kind, 0.0, where=f"x{i}") for i in range(lines)))


def test_parity_needs_pins_tokens_and_weights(cell: Cell) -> None:
    pins, t1, t2 = file_checks(cell), finding(Rung.T1), finding(Rung.T2)
    verdict = save_file_verdict(cell, judge_file(cell, pins, None, t1, t2))
    assert verdict.outcome is Outcome.PARITY
    assert load_verdict(cell.out_dir) == verdict
    assert judge_file(cell, pins[:-1], None, t1, t2).outcome is Outcome.INCOMPLETE
    assert judge_file(cell, pins, None, finding(Rung.T1, compared=2), t2).outcome is Outcome.INCOMPLETE


def test_a_difference_in_the_file_s_own_tokens_is_not_hidden_by_good_cases(cell: Cell) -> None:
    own, cases = finding(Rung.T1, lines=2), finding(Rung.T1, expected=40, compared=40)
    verdict = judge_file(cell, file_checks(cell), own, cases, finding(Rung.T2))
    assert verdict.outcome is Outcome.DIVERGED
    joined = verdict.rung(Rung.T1)
    assert joined is not None
    assert (joined.expected, joined.worst) == (43, 2.0)
    assert len(verdict.divergences) == 2
    assert not verdict.contradictions()


def test_a_file_without_a_vocabulary_has_no_pieces(cell: Cell) -> None:
    assert cut_prompts(cell) == []


def test_every_tensor_is_measured(cell: Cell) -> None:
    tensors = read_tensors(Path(cell.model_path))
    found = {tensor.name: tensor for tensor in measure_tensors(cell.model_path)}
    assert list(found) == list(tensors)
    name = "blk.2.ffn_down.weight"
    values = tensors[name].dequantize().astype(np.float64)
    assert found[name].rms == pytest.approx(float(np.sqrt(np.mean(values**2))), rel=1e-12)
    assert found[name].absmax == float(np.abs(values).max())
    assert (found[name].layer, found[name].kind, found[name].n_nonfinite) == (2, "ffn_down.weight", 0)
    assert found["output_norm.weight"].layer is None


def test_a_spoiled_sdist_leaves_t1_incomplete_and_the_weights_judged(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    spoiled.write_bytes(b"not an archive")
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(vocabulary_cases, "_sdist", lambda *_: spoiled)
    with pytest.raises(PinError, match="does not hold the vocabulary"):
        check_cases(cell)
    verdict = save_file_verdict(cell, check_file(cell))
    assert load_verdict(cell.out_dir) == verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    (cause,) = verdict.causes
    assert cause.startswith("T1 tokens: check_cases: ")
    assert [rung.outcome for rung in verdict.rungs] == [Outcome.PARITY, Outcome.INCOMPLETE, Outcome.PARITY]
