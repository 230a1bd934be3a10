"""What waits in memory reaches the file whole and in order, however it is strided and however small the memory is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parity_lib.engines.node_file import ValueWriter

SHAPES = [(3, 4), (1,), (2, 5, 2), (7, 1), (0,), (6, 6)]


@pytest.mark.parametrize("room", [1, 13, 20, 1000], ids=lambda n: f"room_for_{n}")
def test_every_value_lies_where_add_said(room: int, tmp_path: Path) -> None:
    memory = np.full(room, np.nan, np.float32)
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(np.float32).T for shape in SHAPES]
    with (tmp_path / "values").open("wb") as file:
        writer = ValueWriter(file, memory)
        offsets = [writer.add(array) for array in arrays]
        writer.flush()
        memory[:] = np.nan  # the owner's again
        offsets.append(writer.add(arrays[0]))
        writer.flush()
        writer.flush()  # nothing waits
    written = np.fromfile(tmp_path / "values", "<f4")
    assert offsets[0] == 0
    assert written.size == sum(array.size for array in [*arrays, arrays[0]])
    for array, offset in zip([*arrays, arrays[0]], offsets, strict=True):
        assert written[offset : offset + array.size].tobytes() == np.ascontiguousarray(array).tobytes()


def test_a_copy_is_taken_at_once(tmp_path: Path) -> None:
    values = np.arange(4, dtype=np.float32)
    with (tmp_path / "values").open("wb") as file:
        writer = ValueWriter(file, np.empty(8, np.float32))
        writer.add(values)
        values[:] = -1  # a graph uses its buffers again
        writer.flush()
    assert np.fromfile(tmp_path / "values", "<f4").tolist() == [0, 1, 2, 3]
