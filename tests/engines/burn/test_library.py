"""Which build of the candidate is loaded: the judged one or the one with faults, current or stale, or none."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.json_text import encode
from parity_lib.engines.burn import build_info as burn_build
from parity_lib.engines.burn import engine as burn
from parity_lib.engines.burn import stacks

pytestmark = pytest.mark.engine


def test_a_library_that_is_not_the_one_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed was built with faults: it is never taken for the judged one, nor the other way round."""
    judged, build = burn.load(burn_build.CRATES_IO)
    said = {name: value for name, value in encode(build).items() if name not in ("library", "receipt")}
    said |= {"features": f"{build.features},faults"}
    with_faults = SimpleNamespace(build_info=lambda: json.dumps(said))
    monkeypatch.setattr(burn_build, "_installed", lambda: with_faults)
    with pytest.raises(PinError, match=r"other library.*expected without faults; found with faults.*make setup"):
        burn.load.__wrapped__(burn_build.CRATES_IO)
    monkeypatch.setattr(stacks, "load", lambda *_, **__: (judged, None))
    with pytest.raises(PinError, match=r"other library.*expected with faults; found without faults"):
        burn.load.__wrapped__(burn_build.CRATES_IO, faults=True)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the crate's sources."""
    for name in ("Cargo.toml", "Cargo.lock", "build.rs"):
        shutil.copy(burn_build.NATIVE / name, tmp_path / name)
    shutil.copytree(burn_build.NATIVE / "src", tmp_path / "src")
    return tmp_path


def test_a_stale_extension_is_named(sources: Path) -> None:
    _, build_info = burn.load(burn_build.CRATES_IO)
    burn_build.check_sources(build_info, sources)
    for name in ("src/quant/fast.rs", "Cargo.toml", "build.rs", "Cargo.lock"):
        path = sources / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        with pytest.raises(PinError, match=r"stale.*make setup"):
            burn_build.check_sources(build_info, sources)
        path.write_bytes(before)
    (sources / "src" / "new.rs").touch()
    with pytest.raises(PinError, match="stale"):
        burn_build.check_sources(build_info, sources)


def test_a_missing_extension_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "burn_gguf", None)
    with pytest.raises(EngineError, match=r"not built.*make setup"):
        burn.load.__wrapped__(burn_build.CRATES_IO)
