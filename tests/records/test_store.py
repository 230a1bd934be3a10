"""Verdicts, divergences, history and traces on disk: what is read is what was written, or an error."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from parity_lib.base.errors import RecordError
from parity_lib.base.json_text import encode
from parity_lib.base.names import Kind, LedgerClass, Outcome, Rung
from parity_lib.numerics.metrics import pair_statistics, row_digests
from parity_lib.records import store
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import NonFinite, PairNumbers, PairReport, Summary
from parity_lib.records.runs import RunInfo
from parity_lib.records.traces import LOGIT_ARRAYS, PAIR_ARRAYS, LogitTrace, PairTrace
from parity_lib.records.verdicts import CellId, Divergence, PinnedFiles, RungResult, Verdict
from tests.run_info import run_info

CELL = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")


def run(engine: str) -> RunInfo:
    peak = 7_000 if engine == "burn" else 9_000
    given = {"commit": "0c1e570-dirty", "isa_requested": "avx512", "machine_class": "x86_64-4", "peak_rss_bytes": peak}
    return run_info(engine, **given, model_sha256="ab" * 32, seconds=2.5)


FLIP = Divergence(
    Rung.T4,
    Kind.TOP1,
    0.0002,
    prompt_idx=3,
    token_idx=-17,
    top5_burn=((791, 18.2231), (578, math.nan)),
    top5_llamacpp=((578, 18.2230), (791, 18.1554)),
    delta=0.0677,
    delta_id=791,
    ledger=LedgerClass.UNEXPLAINED,
    note="你好",
)
SUMMARY = Summary(2.8e-3, math.nan, 1.0, 2.0, math.inf)
NUMBERS = PairNumbers(9, 9, 1.0, 9, 1.0, 0.1, 0.1, 0.1, 0.1, SUMMARY, SUMMARY, SUMMARY, SUMMARY)
NATIVE = PairReport(NUMBERS, None, (), NonFinite(0, 0))
GREEN = RungResult(Rung.T0, Outcome.PARITY, 9, 9, None, None, "pins")
RED = RungResult(Rung.T4, Outcome.DIVERGED, 1412, 1412, 0.0677, 0.0002, "logits", "prompt 3", "measured")


def verdict(outcome: Outcome = Outcome.DIVERGED, **changes: Any) -> Verdict:
    red = outcome is Outcome.DIVERGED
    made = Verdict(
        cell=CELL,
        outcome=outcome,
        rungs=(GREEN, RED) if red else (GREEN, replace(RED, outcome=Outcome.PARITY, worst=1e-4)),
        divergences=(FLIP, replace(FLIP, kind=Kind.TOP5_SET)) if red else (),
        runs={"reference": run("llama.cpp"), "candidate": run("burn")},
        provisional=True,
        unpinned=False,
        measured=Measured(seconds={"odd": math.inf}, native=NATIVE),
        pins=PinnedFiles(prompts_sha256="ab" * 32),
        created_at="2026-11-23T02:10:44+00:00",
        seconds=96.5,
    )
    return replace(made, **changes)


# --- verdicts and lines


@pytest.mark.parametrize("outcome", [Outcome.PARITY, Outcome.DIVERGED])
def test_a_verdict_comes_back(tmp_path: Path, outcome: Outcome) -> None:
    path = store.save_verdict(verdict(outcome), tmp_path / "cell")
    assert path.name == "verdict.json"
    for place in (path, path.parent):
        assert encode(store.load_verdict(place)) == encode(verdict(outcome))
    assert "NaN" not in path.read_text()


def test_the_same_verdict_is_the_same_text(tmp_path: Path) -> None:
    first, second = (store.save_verdict(verdict(), tmp_path / name).read_bytes() for name in "ab")
    assert first == second


def test_a_verdict_that_contradicts_itself_is_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="contradicts itself"):
        store.save_verdict(replace(verdict(), outcome=Outcome.PARITY, divergences=()), tmp_path)
    assert not list(tmp_path.iterdir())
    path = store.save_verdict(verdict(), tmp_path)
    path.write_text(path.read_text().replace('"outcome": "DIVERGED"', '"outcome": "PARITY"'))
    data = json.loads(path.read_text()) | {"divergences": []}
    path.write_text(json.dumps(data | {"rungs": data["rungs"][:0]}))
    with pytest.raises(RecordError, match="PARITY without a rung"):
        store.load_verdict(tmp_path)


@pytest.mark.parametrize("key", ["outcome", "rungs", "runs", "provisional", "control", "schema"])
def test_a_verdict_without_a_field_is_refused(tmp_path: Path, key: str) -> None:
    path = store.save_verdict(verdict(), tmp_path)
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(RecordError, match=key):
        store.load_verdict(tmp_path)


def test_a_missing_or_cut_verdict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        store.load_verdict(tmp_path)
    path = store.save_verdict(verdict(), tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match="not valid JSON"):
        store.load_verdict(tmp_path)


def test_each_line_has_the_users_tuple_by_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "divergences.jsonl"
    store.append_divergences(verdict(), path)
    store.append_divergences(verdict(control=True), path)
    records = store.load_divergences(path)
    assert [record.control for record in records] == [False, False, True, True]
    tuple_ = {key: getattr(records[0], key) for key in ("model", "quant", "prompt_idx", "token_idx", "delta")}
    assert tuple_ == {"model": "smollm2-135m", "quant": "Q8_0", "prompt_idx": 3, "token_idx": -17, "delta": 0.0677}
    assert records[0].top5_llamacpp == ((578, 18.2230), (791, 18.1554))
    assert math.isnan(records[0].top5_burn[1][1])
    assert records[0].greppable == verdict().lines()[0]
    assert records[2].greppable.startswith("CONTROL model=")
    assert "你好" in path.read_text("utf-8")


def test_a_cells_own_file_is_the_same_after_saving_twice(tmp_path: Path) -> None:
    path = tmp_path / "divergences.jsonl"
    store.save_divergences(verdict(), path)
    once = path.read_bytes()
    store.save_divergences(verdict(), path)
    assert path.read_bytes() == once
    store.save_divergences(verdict(Outcome.PARITY), path)
    assert store.load_divergences(path) == []


def test_history_grows_by_a_line_a_cell_a_night(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert store.load_history(path) == []
    for night in ("20261122T0200Z-ab", "20261123T0200Z-ab"):
        store.append_history([store.history_entry(night, verdict(o)) for o in (Outcome.PARITY, Outcome.DIVERGED)], path)
    lines = store.load_history(path)
    assert [(line.run_id[:8], line.outcome) for line in lines] == [
        ("20261122", "PARITY"),
        ("20261122", "DIVERGED"),
        ("20261123", "PARITY"),
        ("20261123", "DIVERGED"),
    ]
    green, red = lines[0], lines[1]
    assert green.worst_margin == pytest.approx(2.0)
    assert green.kl_mean == 2.8e-3
    assert green.machine_class == "x86_64-4"
    assert green.peak_rss_bytes == 9_000
    assert red.flips == store.FlipCounts(1, 1)
    assert red.rungs[Rung.T4] == store.RungHistory(Outcome.DIVERGED, 0.0677, 0.0002, "logits")


def test_nights_that_end_at_once_lose_no_line_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"

    def night(number: int) -> None:
        for _ in range(10):
            store.append_history([store.history_entry(f"night-{number}", verdict()) for _ in range(3)], path)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(night, range(8)))
    names = [line.run_id for line in store.load_history(path)]
    assert {name: names.count(name) for name in names} == {f"night-{number}": 30 for number in range(8)}
    in_threes = zip(names[::3], names[1::3], names[2::3], strict=True)
    assert all(len(set(three)) == 1 for three in in_threes)  # what a night appends at once stays together


def test_history_of_a_cell_that_never_ran(tmp_path: Path) -> None:
    empty = verdict(Outcome.INCOMPLETE, rungs=(), runs={}, measured=Measured(), causes=("killed",))
    store.append_history([store.history_entry("r", empty)], tmp_path / "h.jsonl")
    (line,) = store.load_history(tmp_path / "h.jsonl")
    assert (line.worst_margin, line.kl_mean, line.rungs) == (None, None, {})


# --- traces


@pytest.fixture(scope="module")
def pair() -> PairTrace:
    rng = np.random.default_rng(3)
    reference = rng.normal(0, 7, (12, 90)).astype(np.float32)
    candidate = reference + rng.normal(0, 1e-5, reference.shape).astype(np.float32)
    candidate[4, 7] = np.nan
    both = pair_statistics(reference, candidate)

    def trace(engine: str, rows: Any, found: Any) -> LogitTrace:
        names = {name: getattr(found, name) for name in found.__slots__}
        places = {name: np.arange(12, dtype=np.int32) for name in ("prompt_idx", "token_idx", "fed_id")}
        return LogitTrace(run=run(engine), n_vocab=90, row_sha256=row_digests(rows), **places, **names)

    return PairTrace(
        trace("llama.cpp", reference, both.reference),
        trace("burn", candidate, both.candidate),
        **{name: getattr(both, name) for name in PAIR_ARRAYS},
        extra={"missing": [[1, 2]], "note": math.nan},
    )


def same(a: Any, b: Any, names: tuple[str, ...]) -> bool:
    return all(
        getattr(a, n).tobytes() == getattr(b, n).tobytes() and getattr(a, n).dtype == getattr(b, n).dtype for n in names
    )


def test_a_pair_comes_back_to_the_bit(tmp_path: Path, pair: PairTrace) -> None:
    path = store.save_pair(pair, tmp_path / "twin.npz")
    back = store.load_pair(path)
    assert same(back, pair, PAIR_ARRAYS)
    assert same(back.reference, pair.reference, LOGIT_ARRAYS)
    assert same(back.candidate, pair.candidate, LOGIT_ARRAYS)
    assert back.candidate.run == pair.candidate.run
    assert back.extra["missing"] == [[1, 2]]
    assert math.isnan(back.extra["note"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["twin.json", "twin.npz"]


def test_a_trace_comes_back_to_the_bit_and_is_no_pair(tmp_path: Path, pair: PairTrace) -> None:
    path = store.save_trace(pair.candidate, tmp_path / "burn")
    assert path.name == "burn.npz"
    assert same(store.load_trace(path), pair.candidate, LOGIT_ARRAYS)
    with pytest.raises(RecordError, match="another record"):
        store.load_pair(path)


def test_the_same_pair_is_the_same_bytes(tmp_path: Path, pair: PairTrace) -> None:
    first, second = (store.save_pair(pair, tmp_path / name / "twin.npz") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.with_suffix(".json").read_bytes() == second.with_suffix(".json").read_bytes()


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        manifest = path.with_suffix(".json")
        data = json.loads(manifest.read_text())
        change(data)
        manifest.write_text(json.dumps(data))

    return apply


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_bit, "the trace was changed"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "the trace was changed"),
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: p.with_suffix(".json").unlink(), "cannot be read"),
        (edit(lambda m: m.update(sha256="00" * 32)), "manifest was changed"),
        (edit(lambda m: m["runs"]["candidate"].update(host="elsewhere")), "manifest was changed"),
        (edit(lambda m: m.update(schema="parity/trace/2")), "of another schema; expected parity/trace/1"),
        (edit(lambda m: m.pop("n_vocab")), "n_vocab"),
        (edit(lambda m: m.update(file="other.npz")), "manifest was changed"),
    ],
)
def test_a_trace_that_was_touched_is_refused(
    tmp_path: Path, pair: PairTrace, damage: Callable[[Path], None], words: str
) -> None:
    path = store.save_pair(pair, tmp_path / "twin.npz")
    damage(path)
    with pytest.raises(RecordError, match=words):
        store.load_pair(path)


def test_a_stale_trace_under_a_new_manifest_is_refused(tmp_path: Path, pair: PairTrace) -> None:
    path = store.save_pair(pair, tmp_path / "twin.npz")
    stale = path.read_bytes()
    store.save_pair(pair.take(np.arange(11)), path)
    path.write_bytes(stale)
    with pytest.raises(RecordError, match="the trace was changed"):
        store.load_pair(path)


def test_a_renamed_trace_is_refused(tmp_path: Path, pair: PairTrace) -> None:
    path = store.save_pair(pair, tmp_path / "twin.npz")
    for suffix in (".npz", ".json"):
        path.with_suffix(suffix).rename(tmp_path / f"native{suffix}")
    with pytest.raises(RecordError, match="another record"):
        store.load_pair(tmp_path / "native.npz")


def test_rows_can_be_taken_in_any_order(pair: PairTrace) -> None:
    taken = pair.take(np.array([5, 2]))
    assert taken.reference.token_idx.tolist() == [5, 2]
    assert taken.rms.tolist() == [pair.rms[5], pair.rms[2]]
