"""The bf16 policy end to end, both engines real: three distances to llama.cpp on the BF16 twin, and no gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.json_text import dump_line
from parity_lib.base.names import Compute, Outcome, Rung
from parity_lib.cell import steps
from parity_lib.cell.bf16 import BAND, CANDIDATE, PLAIN, capture_plain, report_bf16
from parity_lib.cell.reference import capture_bf16_twin
from parity_lib.cell.rows import Rows
from parity_lib.cell.steps import Cell, Reference
from parity_lib.records.traces import Position
from tests.shared import SoundCell

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
Captured = tuple[Cell, tuple[Rows, Rows, Rows, Rows], tuple[Position, ...]]


@pytest.fixture(scope="module")
def captured(sound_cell: SoundCell, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("bf16")
    cell = steps.open_cell(
        model="synthetic-llama",
        quant="Q8_0",
        compute=str(Compute.BF16),
        prompts=str(PROMPTS),
        n_threads=1,
        out_dir=folder,
    )
    reference, twin = sound_cell.climbed.reference, sound_cell.climbed.twin  # they do not depend on the policy
    assert isinstance(reference, Reference)
    assert isinstance(twin, Rows)
    candidate = steps.capture_candidate(cell, reference)
    rows = (capture_bf16_twin(cell, reference), twin, candidate, capture_plain(cell, reference))
    return cell, rows, steps.positions(cell, reference)


def test_each_engine_ran_what_the_report_says(captured: Captured) -> None:
    _, (bf16_twin, twin, candidate, plain), _ = captured
    assert bf16_twin.run.model_sha256 != twin.run.model_sha256
    assert (candidate.run.compute, plain.run.compute) == ("bf16", "f32")
    assert candidate.run.model_sha256 == plain.run.model_sha256
    assert not np.array_equal(candidate.open(), plain.open())


def test_the_numbers_are_reported_and_not_gated(captured: Captured) -> None:
    _, rows, expected = captured
    rung, told, pair = report_bf16(*rows, expected)
    assert (rung.rung, rung.outcome, rung.expected, rung.compared) == (Rung.T4, Outcome.REPORTED, 20, 20)
    assert rung.limit is None
    assert len(pair) == 20
    of = {name: getattr(told, name).all.rms_over_row_std for name in (BAND, CANDIDATE, PLAIN)}
    assert rung.worst == of[CANDIDATE]
    # 2^-9 of each operand is lost; an engine that computed something else would be at 1.
    assert all(1e-4 < rms < 0.03 for rms in of.values())
    assert of[PLAIN] == pytest.approx(of[BAND], rel=1e-2)  # burn in f32 is llama.cpp's F32 twin
    assert told.candidate.all.positions == 20
    assert 0 < told.candidate.all.kl_ref_cand.mean < 1e-2
    dump_line(told)


def test_a_missing_row_or_a_nan_is_incomplete(captured: Captured, tmp_path: Path) -> None:
    _, (bf16_twin, twin, candidate, plain), expected = captured
    short = replace(plain, positions=plain.positions[:-1], fed_id=plain.fed_id[:-1])
    rung, _, _ = report_bf16(bf16_twin, twin, candidate, short, expected)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "plain_f32: 1 positions missing" in rung.note
    sick = candidate.open().copy()
    sick[3, 3] = np.nan
    sick.tofile(tmp_path / "sick.f32")
    rung, told, _ = report_bf16(bf16_twin, twin, replace(candidate, spool=tmp_path / "sick.f32"), plain, expected)
    assert rung.outcome is Outcome.INCOMPLETE
    assert "candidate: 1 positions are not finite" in rung.note
    assert rung.worst is None
    dump_line(told)
