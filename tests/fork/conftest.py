"""A folder of builds that is empty, whatever this machine has built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_lib.engines.burn import build_info, stacks


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of builds; nothing is in it."""
    folder = tmp_path / "stacks"
    monkeypatch.setattr(stacks, "stacks_dir", lambda: folder)
    build_info.load.cache_clear()
    yield folder
    build_info.load.cache_clear()
