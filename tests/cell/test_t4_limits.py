"""Limits of T4 for real: predicted from the baselines, kept, held to what is pinned, refused where they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import PinError
from parity_lib.base.names import Outcome, Rung
from parity_lib.cell import request as cell_request
from parity_lib.cell import rows as logits
from parity_lib.cell import steps, t4_limits
from parity_lib.cell.climbed import Failed
from parity_lib.cell.derive import tolerance_of
from parity_lib.cell.reference import COMPUTED, Reference
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t4_limits import Baselines, baselines_of, derive_limits, limits_of_rows, measure_limits
from parity_lib.records.drift_limits import FALSE_ALARM
from parity_lib.records.tolerances import ToleranceTable
from tests.shared import reference_kept_in

pytestmark = [pytest.mark.slow, pytest.mark.engine]

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cell, Reference, Rows]]:
    """A cell of a small model, what the reference generated, and its rows on the F32 twin."""
    with reference_kept_in(tmp_path_factory.mktemp("traces")):
        out = tmp_path_factory.mktemp("cell")
        cell = steps.open_cell(model="synthetic-llama", quant="Q8_0", prompts=str(PROMPTS), n_threads=1, out_dir=out)
        reference = steps.capture_reference(cell)
        yield cell, reference, steps.capture_twin(cell, reference)
        cell_request.let_go(out)


def test_every_position_has_a_limit_that_is_predicted_once(opened: tuple[Cell, Reference, Rows]) -> None:
    cell, reference, twin = opened
    found = derive_limits(cell, reference, twin)
    assert cell.diary.cache["limits"] == COMPUTED
    assert len(found.at(steps.positions(cell, reference))) == len(steps.positions(cell, reference))
    assert (found.reference, found.candidate, found.false_alarm) == ("llama.cpp-avx2", "crates-io-avx2", FALSE_ALARM)
    assert 1e-7 < np.median(found.rms) < 1e-6
    assert 5 < found.delta_limit < 20
    again = measure_limits(cell, reference, twin)
    assert cell.diary.cache["limits"] == "cached"
    assert again.delta.tobytes() == found.delta.tobytes()


def test_one_sequence_alone_has_the_limits_that_it_has_among_others(opened: tuple[Cell, Reference, Rows]) -> None:
    cell, reference, twin = opened
    whole = measure_limits(cell, reference, twin)
    n = len(reference.sequences[0])
    own = limits_of_rows(cell, reference.sequences[0], logits.trace(twin).take(np.arange(n)), twin.positions[:n])
    assert np.median(own.rms / whole.rms[:n]) == pytest.approx(1, rel=0.15)


def test_a_baseline_that_was_loosened_by_hand_is_refused(
    opened: tuple[Cell, Reference, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a pinned cell: its limits are held to the tolerance, and T4 is INCOMPLETE."""
    cell, reference, twin = opened
    limits = measure_limits(cell, reference, twin)
    pinned = tolerance_of(limits, cell.id.model, cell.id.quant, "parity bands, in a test")
    monkeypatch.setattr(t4_limits, "load_tolerances", lambda: ToleranceTable([pinned]))
    monkeypatch.setattr(Cell, "unpinned", False)
    assert derive_limits(cell, reference, twin).source == limits.source
    honest = baselines_of(cell)
    loose = Baselines(honest.reference, honest.candidate.larger(4.0))
    monkeypatch.setattr(t4_limits, "baselines_of", lambda _: loose)
    with pytest.raises(PinError, match=r"the typical limit is not the pinned one.*parity bands"):
        derive_limits(cell, reference, twin)
    monkeypatch.setattr(t4_limits, "load_tolerances", lambda: ToleranceTable([]))
    with pytest.raises(PinError, match="no tolerance is pinned"):
        derive_limits(cell, reference, twin)


def test_a_kernel_without_a_baseline_leaves_t4_incomplete(
    opened: tuple[Cell, Reference, Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, *_ = opened

    def missing(_: Cell) -> Baselines:
        raise PinError("no baseline was measured", place="llama.cpp neon")

    monkeypatch.setattr(t4_limits, "baselines_of", missing)
    climbed = steps.climb(cell)
    assert isinstance(climbed.limits, Failed)
    verdict = steps.conclude(cell, climbed).verdict
    assert verdict.outcome is Outcome.INCOMPLETE
    lost = [rung.rung for rung in verdict.rungs if rung.outcome is Outcome.INCOMPLETE]
    assert lost == [Rung.T4]
    assert "T4 twin: derive_limits: llama.cpp neon: no baseline was measured" in verdict.causes[0]
