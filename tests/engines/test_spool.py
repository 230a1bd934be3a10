"""The spool: rows as they are, whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines.spool import SpoolWriter, new_spool, spool_writer


def silent(done: int, total: int) -> None:
    assert 0 < done <= total


def test_rows_arrive_in_order_bit_by_bit(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float32).reshape(5, 12)
    rows[0, 0], rows[1, 1] = np.nan, np.inf
    path = tmp_path / "deep" / "spool"
    with spool_writer(path, 5, 12, silent) as out:
        out.write(rows[:2])
        assert not path.exists()
        out.write(rows[2:])
    assert path.read_bytes() == rows.astype("<f4").tobytes()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("n_rows", [1, 3])
def test_another_number_of_rows_is_an_error_and_leaves_the_older_file(n_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "spool"
    path.write_bytes(b"older")
    with pytest.raises(EngineError, match="another number of rows"), spool_writer(path, 2, 4, lambda *_: None) as out:
        out.write(np.zeros((n_rows, 4), np.float32))
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_spool_leaves_nothing(tmp_path: Path) -> None:
    def write_half_and_stop() -> None:
        with spool_writer(tmp_path / "spool", 2, 4, silent) as out:
            out.write(np.zeros((1, 4), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half_and_stop()
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    spool = spool_writer(tmp_path / "file" / "spool", 2, 4, silent)
    with pytest.raises(EngineError, match="cannot be written") as caught, spool:
        pass
    assert caught.value.expected == "32 bytes of room"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def write_to_a_full_disk() -> None:
        with new_spool(tmp_path / "spool") as part:
            part.symlink_to("/dev/full")
            with part.open("wb", buffering=0) as file:
                SpoolWriter(file, 2, 4, silent).write(np.zeros((1, 4), np.float32))

    with pytest.raises(EngineError, match="No space left"):
        write_to_a_full_disk()
    assert not list(tmp_path.iterdir())
