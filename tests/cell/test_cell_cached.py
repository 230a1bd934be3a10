"""A whole cell, twice: the second run takes the reference from the cache, and trusts nothing that it finds there."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from parity_lib.base.json_text import encode
from parity_lib.base.names import Outcome, Rung
from parity_lib.cell import reference_cache, steps
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.reference import AGAIN, CACHED, COMPUTED
from parity_lib.cell.reference_cache import RECORD, ROWS, Kept, open_slot
from parity_lib.cell.steps import Cell, CellRequest, run_cell
from parity_lib.engines.worker.client import Worker
from parity_lib.records.measured import Cache
from parity_lib.records.verdicts import Verdict
from tests.shared import SoundCell, isa_outcome, link_tree

pytestmark = pytest.mark.slow

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()
PARTS = ("reference", "twin", "limits", "spread", "relations", "dispatch")


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache that the first run has left."""
    folder = tmp_path / "traces"
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: folder)
    return folder


@pytest.fixture
def filled(sound_cell: SoundCell, traces: Path) -> Path:
    """The prompts of a first run, with a copy of the cache that it left in place."""
    link_tree(sound_cell.traces, traces)
    return sound_cell.folder / "prompts.toml"


def request(folder: Path, prompts: Path, **wishes: Any) -> CellRequest:
    named = {"model": "synthetic-llama", "quant": "Q8_0", "prompts": str(prompts), "n_threads": 1, **wishes}
    return CellRequest(out_dir=folder / "cell", **named)


def run(folder: Path, prompts: Path, **wishes: Any) -> Verdict:
    return run_cell(request(folder, prompts, **wishes))


def entry(traces: Path, part: str) -> Path:
    [found] = traces.glob(f"{part}-*")
    return found


def own_rows(folder: Path) -> np.ndarray:
    """Put the rows of an entry into a file that is not shared with any other entry; return them as floats."""
    data = np.fromfile(folder / ROWS, "<f4")
    (folder / ROWS).unlink()
    return data


MEASURED = ("cache", "seconds", "isa")  # anew in each run


def plain(verdict: Verdict) -> dict[str, Any]:
    """Return what two runs of one cell must agree in: all but times and the counts of sampled instructions."""
    rungs = tuple(structs.replace(rung, note="") if rung.rung is Rung.T7 else rung for rung in verdict.rungs)
    data = encode(structs.replace(verdict, created_at="", seconds=0.0, runs={}, rungs=rungs))
    data["measured"] = {name: value for name, value in data["measured"].items() if name not in MEASURED}
    return data


def test_second_run_uses_the_cache_and_concludes_the_same(sound_cell: SoundCell, filled: Path, tmp_path: Path) -> None:
    verdict = sound_cell.verdict
    assert verdict.outcome is Outcome.PARITY
    assert verdict.measured.cache == Cache(dict.fromkeys(PARTS, COMPUTED))
    again = run(tmp_path, filled)
    assert again.measured.cache == Cache(dict.fromkeys(PARTS, CACHED))
    assert plain(again) == plain(verdict)
    for name in ("reference", "reference-twin"):  # who made the rows, and when, is told as it was
        assert encode(again.runs[name]) == encode(verdict.runs[name])


def test_fresh_run_computes_again_and_finds_the_same_bits(filled: Path, tmp_path: Path) -> None:
    verdict = run(tmp_path, filled, fresh=True)
    assert verdict.outcome is Outcome.PARITY
    cache = verdict.measured.cache
    assert [cache.parts[part] for part in PARTS] == [AGAIN, AGAIN, CACHED, CACHED, CACHED, CACHED]


def test_damaged_rows_are_found_named_and_computed_again(filled: Path, traces: Path, tmp_path: Path) -> None:
    folder = entry(traces, "twin")
    data = own_rows(folder)
    data.view(np.uint32)[12345] ^= 1
    data.tofile(folder / ROWS)
    verdict = run(tmp_path, filled)
    assert verdict.outcome is Outcome.PARITY
    assert verdict.measured.cache.parts["twin"] == COMPUTED
    (note,) = verdict.measured.cache.notes
    assert "the cached twin was refused" in note
    assert "1 of 20 rows do not have their digest" in note
    pins = verdict.rung(Rung.T0)
    assert pins is not None
    assert note in pins.note


def test_stale_rows_of_another_prompt_in_their_place_are_refused(filled: Path, traces: Path, tmp_path: Path) -> None:
    others = tmp_path / "others.toml"
    others.write_text(PROMPTS.replace("The capital of France is", "The capital of Norway is"))
    ours = {part: entry(traces, part) for part in ("reference", "twin")}
    other = steps.open_cell(request(tmp_path, others))
    assert len(steps.capture_twin(other, steps.capture_reference(other)).positions) == 20
    for part, folder in ours.items():
        [theirs] = [path for path in traces.glob(f"{part}-*") if path != folder]
        for name in (RECORD, ROWS):
            (folder / name).unlink()
            os.link(theirs / name, folder / name)
    verdict = run(tmp_path, filled)
    assert verdict.outcome is Outcome.PARITY
    notes = verdict.measured.cache.notes
    assert "it is of another prompts_sha256" in notes[0]
    assert "it is of another prompts_sha256" in notes[1]


def test_fresh_rows_that_contradict_the_cache_are_named_and_neither_is_kept(
    filled: Path, traces: Path, tmp_path: Path
) -> None:
    folder = entry(traces, "twin")
    fields = json.loads((folder / RECORD).read_text())["fields"]
    with open_slot({name: value for name, value in fields.items() if name != "schema"}, []) as slot:
        assert slot is not None
        assert slot.folder == folder
        kept = slot.load(tmp_path / "other.f32")
        assert kept is not None
        assert kept.rows is not None
        data = np.array(kept.rows.open())
        data[3, 7] = np.nextafter(data[3, 7], np.float32(1e9))
        kept.rows.spool.unlink()
        data.tofile(kept.rows.spool)
        slot.store(Kept(kept.data, replace(kept.rows)))  # with digests that fit: only a second computation can tell
    verdict = run(tmp_path, filled, fresh=True)
    assert verdict.outcome is Outcome.INCOMPLETE
    [cause] = verdict.causes
    assert cause.startswith(
        "T4 twin: capture_twin: twin of the reference: the reference, computed again, is not bit-eq"
    )
    others = dict.fromkeys(map(str, (Rung.T2, Rung.T3, Rung.T5, Rung.T6)), Outcome.PARITY) | {"T7": isa_outcome()}
    assert {str(rung.rung): rung.outcome for rung in verdict.rungs}.items() >= others.items()
    assert "1 of 20 rows have other bits, the first at prompt 0 token -2" in cause
    assert not folder.exists()
    assert (traces / "refuted" / f"{folder.name}.json").exists()
    cell = steps.open_cell(request(tmp_path, filled))
    steps.capture_twin(cell, steps.capture_reference(cell))
    assert cell.diary.cache["twin"] == COMPUTED


def test_cache_that_cannot_be_used_changes_nothing_but_a_note(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(reference_cache.LIMIT, "0")
    verdict = run(tmp_path, filled)
    assert verdict.outcome is Outcome.PARITY
    assert [verdict.measured.cache.parts[part] for part in PARTS] == [COMPUTED] * len(PARTS)
    assert len(verdict.measured.cache.notes) == len(PARTS)


def test_candidate_that_contradicts_itself_diverges_at_t6_and_nowhere_below(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_engine(cell: Cell, **named: object) -> Worker:
        return open_burn(cell, "tests.cell.inconsistent_burn:Restored", **named)

    monkeypatch.setattr(steps, "open_burn", other_engine)
    verdict = run(tmp_path, filled)
    assert verdict.outcome is Outcome.DIVERGED
    assert verdict.lowest_broken is not None
    assert verdict.lowest_broken.rung is Rung.T6
    assert all("rung=T6" in line and "where=restored kind=BITS" in line for line in verdict.lines())


def test_fault_that_depends_on_the_place_in_a_pass_is_named_by_t6_too(filled: Path, tmp_path: Path) -> None:
    verdict = run(tmp_path, filled, fault="token_off=3")
    assert verdict.outcome is Outcome.DIVERGED
    assert {Rung.T4, Rung.T6} <= {divergence.rung for divergence in verdict.divergences}
