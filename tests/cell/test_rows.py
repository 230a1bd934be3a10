"""Spools become traces: the right row at the right position, and what was not delivered is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError, TraceMismatchError
from parity_lib.cell import rows as logits
from parity_lib.numerics.metrics import pair_statistics, row_digests, top_k
from parity_lib.records.traces import F32, Position, expected_positions
from tests.run_info import run_info

N_VOCAB = 300
PROMPTS = [[5, 6, 7], [8, 9]]
GENERATED = [[1, 2], [3, 4, 0]]
SEQUENCES = [[5, 6, 7, 1], [8, 9, 3, 4]]
LENGTHS = [3, 2]
EXPECTED = expected_positions(LENGTHS, [2, 3])


def rows_of(seed: int, n: int = 8) -> F32:
    return np.random.default_rng(seed).normal(0, 3, (n, N_VOCAB)).astype(np.float32)


def spool(path: Path, data: F32, counts: list[int], engine: str = "burn") -> logits.Rows:
    data.astype("<f4").tofile(path)
    return logits.delivered(run_info(engine), path, N_VOCAB, SEQUENCES, LENGTHS, counts)


def test_fed_sequences_leave_out_the_last_generated_token() -> None:
    assert logits.fed_sequences(PROMPTS, GENERATED) == SEQUENCES


def test_positions_and_fed_tokens_of_a_whole_spool(tmp_path: Path) -> None:
    rows = spool(tmp_path / "a", rows_of(1), [4, 4])
    assert rows.positions == EXPECTED
    assert rows.fed_id.tolist() == [5, 6, 7, 1, 8, 9, 3, 4]
    assert np.array_equal(rows.open(), rows_of(1))
    assert logits.missing(rows, EXPECTED) == ()


def test_pair_is_the_statistics_of_the_rows_at_each_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "BLOCK_BYTES", 3 * 4 * N_VOCAB)  # three rows a block: the last one is shorter
    ours, theirs = rows_of(1), rows_of(1) + np.float32(1e-3) * rows_of(2)
    found = logits.pair(
        spool(tmp_path / "a", ours, [4, 4], "llama.cpp"), spool(tmp_path / "b", theirs, [4, 4]), EXPECTED
    )
    wanted = pair_statistics(ours, theirs)
    for name in ("rms", "max_abs", "max_id", "kl_ref_cand", "jsd", "candidate_at_reference"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name)), name
    assert np.array_equal(found.reference.topk_ids, top_k(ours))
    assert np.array_equal(found.candidate.row_sha256, row_digests(theirs))
    assert (found.reference.run.engine, found.candidate.run.engine) == ("llama.cpp", "burn")
    assert found.extra == {"missing_reference": [], "missing_candidate": []}


def test_rows_that_were_not_delivered_are_named_and_the_others_keep_their_place(tmp_path: Path) -> None:
    data = rows_of(1)
    whole = spool(tmp_path / "a", data, [4, 4], "llama.cpp")
    short = spool(tmp_path / "b", data[[0, 1, 2, 4, 5, 6, 7]], [3, 4])  # sequence 0 lost its last row
    found = logits.pair(whole, short, EXPECTED)
    assert found.extra["missing_candidate"] == [[0, 1]]
    assert logits.missing(short, EXPECTED) == (Position(0, 1),)
    assert len(found) == 7
    assert np.all(found.rms == 0)  # each row was paired with itself
    assert found.reference.token_idx.tolist() == [-2, -1, 0, -1, 0, 1, 2]


def test_trace_of_one_engine(tmp_path: Path) -> None:
    data = rows_of(3)
    found = logits.trace(spool(tmp_path / "a", data, [4, 4]))
    assert np.array_equal(found.topk_ids, top_k(data))
    assert np.array_equal(found.row_sha256, row_digests(data))
    assert found.std == pytest.approx(data.astype(np.float64).std(axis=1))


@pytest.mark.parametrize("n_rows", [7, 9])
def test_spool_of_another_size_than_reported_is_refused(tmp_path: Path, n_rows: int) -> None:
    with pytest.raises(EngineError, match="does not hold the rows") as caught:
        spool(tmp_path / "a", rows_of(1, n_rows), [4, 4])
    assert "8 rows" in str(caught.value)
    assert f"{n_rows} rows" in str(caught.value)


@pytest.mark.parametrize("counts", [[5, 4], [4, -1], [4], [4, 4, 1]])
def test_rows_for_tokens_that_were_not_fed_are_refused(tmp_path: Path, counts: list[int]) -> None:
    with pytest.raises(EngineError, match="was not fed"):
        spool(tmp_path / "a", rows_of(1), counts)


def test_missing_spool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not hold the rows"):
        logits.delivered(run_info("burn"), tmp_path / "none", N_VOCAB, SEQUENCES, LENGTHS, [4, 4])


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    a = spool(tmp_path / "a", rows_of(1)[:4], [4, 0])
    b = spool(tmp_path / "b", rows_of(1)[4:], [0, 4])
    with pytest.raises(TraceMismatchError, match="no position"):
        logits.pair(a, b, EXPECTED)


def test_other_vocabulary_is_refused(tmp_path: Path) -> None:
    ours = spool(tmp_path / "a", rows_of(1), [4, 4])
    np.zeros((8, 10), "<f4").tofile(tmp_path / "b")
    theirs = logits.delivered(run_info("burn"), tmp_path / "b", 10, SEQUENCES, LENGTHS, [4, 4])
    with pytest.raises(TraceMismatchError, match="vocabularies differ"):
        logits.pair(ours, theirs, EXPECTED)
