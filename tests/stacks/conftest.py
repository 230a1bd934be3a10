"""A folder of builds that is empty, whatever this machine has built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parity_lib.engines import burn_build, stack_store


@pytest.fixture
def empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of builds; nothing is in it."""
    folder = tmp_path / "stacks"
    monkeypatch.setattr(stack_store, "stacks_dir", lambda: folder)
    burn_build.load.cache_clear()
    yield folder
    burn_build.load.cache_clear()
