"""The cache of the reference: what comes back is what went in, or is refused by name; space and locks hold."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_lib.base.errors import UsageError
from parity_lib.cell import reference_cache
from parity_lib.cell.reference_cache import RECORD, ROWS, Kept, limit_bytes, open_slot
from parity_lib.cell.rows import Rows
from parity_lib.records.traces import Position
from tests.run_info import run_info

N_VOCAB = 100
RUN = run_info(kv_type="f32", compute="native", stack="llama.cpp")
FIELDS = {"part": "reference", "model_sha256": "1" * 64, "prompts_sha256": "2" * 64}
DATA = {"generated": [[1, 2], [3]], "token_text": {"7": "c3a9"}}


@pytest.fixture(autouse=True)
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path / "traces"
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: folder)
    monkeypatch.delenv(reference_cache.LIMIT, raising=False)
    return folder


def made(folder: Path, seed: int = 1, n_rows: int = 4) -> Kept:
    folder.mkdir(exist_ok=True, parents=True)
    values = np.random.default_rng(seed).normal(0, 3, (n_rows, N_VOCAB)).astype("<f4")
    spool = folder / f"made-{seed}.f32"
    values.tofile(spool)
    positions = tuple(Position(0, i - 1) for i in range(n_rows))
    return Kept(DATA, Rows(RUN, spool, N_VOCAB, positions, np.arange(n_rows, dtype=np.int32)))


def keep(tmp_path: Path, fields: dict[str, Any] = FIELDS, seed: int = 1) -> tuple[Path, list[str]]:
    notes: list[str] = []
    with open_slot(fields, notes) as slot:
        assert slot is not None
        slot.store(made(tmp_path / "spools", seed))
        return slot.folder, notes


def fetch(tmp_path: Path, fields: dict[str, Any] = FIELDS) -> tuple[Kept | None, list[str]]:
    notes: list[str] = []
    with open_slot(fields, notes) as slot:
        assert slot is not None
        return slot.load(tmp_path / "spools" / "back.f32"), notes


def test_what_comes_back_is_what_went_in(tmp_path: Path) -> None:
    folder, notes = keep(tmp_path)
    wanted = made(tmp_path / "wanted")
    found, more = fetch(tmp_path)
    assert found is not None
    assert found.rows is not None
    assert wanted.rows is not None
    assert wanted.differences(found) == []
    assert found.rows.run == RUN
    assert np.array_equal(found.rows.open(), wanted.rows.open())
    assert notes == more == []
    assert not (folder / ROWS).stat().st_mode & stat.S_IWUSR


def test_rows_in_use_outlive_their_entry(tmp_path: Path) -> None:
    folder, _ = keep(tmp_path)
    found, _ = fetch(tmp_path)
    assert found is not None
    assert found.rows is not None
    for path in folder.iterdir():
        path.unlink()
    assert len(found.rows.open()) == 4


def test_data_without_rows_is_kept_too(tmp_path: Path) -> None:
    with open_slot({"part": "spread"}, []) as slot:
        assert slot is not None
        slot.store(Kept({"rms": [1.5, float("nan")]}))
        found = slot.load(tmp_path / "none.f32")
    assert found is not None
    assert found.data["rms"] == [1.5, {"nonfinite": "nan"}]
    assert found.rows is None


@pytest.mark.parametrize("name", ["model_sha256", "prompts_sha256"])
def test_another_key_is_another_entry(tmp_path: Path, name: str) -> None:
    keep(tmp_path)
    assert fetch(tmp_path, {**FIELDS, name: "3" * 64}) == (None, [])


def test_flipped_bit_in_a_row_is_found_named_and_removed(tmp_path: Path) -> None:
    folder, _ = keep(tmp_path)
    (folder / ROWS).chmod(0o644)
    data = bytearray((folder / ROWS).read_bytes())
    data[2 * 4 * N_VOCAB + 17] ^= 1
    (folder / ROWS).write_bytes(data)
    found, [note] = fetch(tmp_path)
    assert found is None
    assert "the cached reference was refused" in note
    assert "1 of 4 rows do not have their digest, the first is prompt 0 token 1" in note
    assert not folder.exists()


def test_shorter_rows_and_a_changed_record_are_refused(tmp_path: Path) -> None:
    folder, _ = keep(tmp_path)
    (folder / ROWS).chmod(0o644)
    (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-4])
    assert "bytes instead of" in fetch(tmp_path)[1][0]
    folder, _ = keep(tmp_path)
    record = (folder / RECORD).read_text()
    (folder / RECORD).write_text(record.replace('"generated": [[1, 2]', '"generated": [[1, 9]'))
    assert "was changed since it was written" in fetch(tmp_path)[1][0]
    folder, _ = keep(tmp_path)
    (folder / RECORD).unlink()
    assert "refused" in fetch(tmp_path)[1][0]


def test_stale_entry_of_another_file_in_its_place_is_refused(tmp_path: Path) -> None:
    other = {**FIELDS, "model_sha256": "3" * 64}
    theirs, _ = keep(tmp_path, other)
    ours, _ = keep(tmp_path, FIELDS, seed=2)
    for name in (RECORD, ROWS):
        (ours / name).unlink()
        os.link(theirs / name, ours / name)
    found, [note] = fetch(tmp_path)
    assert found is None
    assert "it is of another model_sha256" in note


def test_rows_of_another_entry_beside_the_right_record_are_refused(tmp_path: Path) -> None:
    theirs, _ = keep(tmp_path, {**FIELDS, "model_sha256": "3" * 64}, seed=2)
    ours, _ = keep(tmp_path)
    (ours / ROWS).unlink()
    os.link(theirs / ROWS, ours / ROWS)
    assert "4 of 4 rows do not have their digest" in fetch(tmp_path)[1][0]


def test_differences_name_the_first_row_and_the_data(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a"), made(tmp_path / "b", seed=2)
    assert first.differences(second) == ["4 of 4 rows have other bits, the first at prompt 0 token -1"]
    assert first.differences(Kept({**DATA, "generated": [[1]]}, first.rows)) == ["other generated"]
    assert first.differences(made(tmp_path / "c", n_rows=3)) == ["rows of other positions or fed tokens"]


def test_contradicted_entry_leaves_its_record_aside_and_nothing_to_use(tmp_path: Path, traces: Path) -> None:
    folder, _ = keep(tmp_path)
    with open_slot(FIELDS, []) as slot:
        assert slot is not None
        slot.refute()
    assert fetch(tmp_path) == (None, [])
    assert (traces / "refuted" / f"{folder.name}.json").is_file()


def test_oldest_used_goes_first_and_the_newest_stays(
    tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [keep(tmp_path, {**FIELDS, "model_sha256": str(i) * 64}, seed=i)[0] for i in range(3)]
    for age, folder in enumerate(folders):
        os.utime(folder / RECORD, (1e9 + age, 1e9 + age))
    fetch(tmp_path, {**FIELDS, "model_sha256": "0" * 64})  # used now, so the second is the oldest
    size = sum(path.stat().st_size for path in folders[0].iterdir())
    monkeypatch.setenv(reference_cache.LIMIT, str(3.5 * size / 1e9))
    newest, _ = keep(tmp_path, {**FIELDS, "model_sha256": "9" * 64})
    kept = {path for path in traces.iterdir() if path.is_dir()}
    assert kept == {folders[0], folders[2], newest}


def test_full_disk_is_made_room_on(tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        keep(tmp_path, {**FIELDS, "model_sha256": str(i) * 64}, seed=i)
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=1 << 20)

    def usage(path: Path) -> object:
        assert path.exists()
        return nearly_full

    monkeypatch.setattr(shutil, "disk_usage", usage)
    newest, _ = keep(tmp_path, {**FIELDS, "model_sha256": "9" * 64})
    assert [path for path in traces.iterdir() if path.is_dir()] == [newest]


def test_entry_that_is_larger_than_the_limit_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reference_cache.LIMIT, "0.000001")
    folder, [note] = keep(tmp_path)
    assert not folder.exists()
    assert "larger than PARITY_TRACES_GB allows" in note


def test_limit_of_zero_keeps_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch, traces: Path) -> None:
    monkeypatch.setenv(reference_cache.LIMIT, "0")
    notes: list[str] = []
    with open_slot(FIELDS, notes) as slot:
        assert slot is None
    assert notes == ["the reference was not cached: PARITY_TRACES_GB is 0"]
    assert not traces.exists()


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_limit_that_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reference_cache.LIMIT, text)
    with pytest.raises(UsageError, match="PARITY_TRACES_GB: not a size"):
        limit_bytes()


def test_cache_that_cannot_be_written_is_said_and_nothing_else_happens(tmp_path: Path, traces: Path) -> None:
    traces.write_text("a file where the folder should be")
    notes: list[str] = []
    with open_slot(FIELDS, notes) as slot:
        assert slot is None
    assert "computed without the cache" in notes[0]


def test_full_disk_is_said_and_leaves_nothing_behind(
    tmp_path: Path, traces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    folder, [note] = keep(tmp_path)
    assert note == "the reference was not cached: No space left on device"
    assert not folder.exists()
    assert [path.name for path in traces.iterdir() if not path.name.endswith(".lock")] == []


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    started, go = threading.Event(), threading.Event()
    computed: list[str] = []

    def run(name: str) -> None:
        with open_slot(FIELDS, []) as slot:
            assert slot is not None
            if slot.load(tmp_path / f"{name}.f32") is None:
                started.set()
                go.wait(10)
                computed.append(name)
                slot.store(made(tmp_path / "spools"))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("first", "second")]
    threads[0].start()
    assert started.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(20)
    assert computed == ["first"]
    assert (tmp_path / "second.f32").exists()


def test_what_a_killed_process_left_is_removed(tmp_path: Path, traces: Path) -> None:
    folder, _ = keep(tmp_path)
    left = traces / f".{folder.name}.12345.part"
    left.mkdir()
    (left / ROWS).write_bytes(b"half")
    fetch(tmp_path)
    assert not left.exists()
