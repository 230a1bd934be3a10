"""Engines that are not the ones this checkout is for: nothing is judged, and the message says what to build again.

Each test runs ``parity`` from a copy of the package in which one thing is another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity_lib.base.names import Outcome
from parity_lib.models.ensure import ensure, ensure_twin
from parity_lib.records import store
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
OTHER = "ab" * 20  # a commit that no llama.cpp has


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package and its fixtures, with a cache of its own that holds one model and its twin."""
    folder = tmp_path / "tree"
    leave = shutil.ignore_patterns("target", "__pycache__", "reports")
    for name in ("parity_lib", "fixtures", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    shutil.copyfile(ROOT / "requirements.txt", folder / "requirements.txt")
    pins, cache = load_pins(), tmp_path / "cache" / "models"
    (cache / "twins").mkdir(parents=True)
    model = ensure("synthetic-llama", "Q8_0", pins)
    twin = ensure_twin(model, pins)
    shutil.copyfile(model, cache / model.name)
    for path in twin.parent.glob(f"{twin.name}*"):
        shutil.copyfile(path, cache / "twins" / path.name)
    return folder


def parity(tree: Path, *words: str) -> tuple[int, str]:
    """Run a command from the copy; return its status and everything that it said."""
    env = os.environ | {"PYTHONPATH": str(tree), "PARITY_CACHE": str(tree.parent / "cache")}
    command = [sys.executable, "-m", "parity_lib.cli.app", *words]
    done = subprocess.run(command, env=env, cwd=tree, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert "Traceback" not in text
    return done.returncode, text


def run(tree: Path, out: str = "out") -> tuple[int, str, Path]:
    """Run the one cell."""
    folder = tree.parent / out
    words = ["run", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--threads", "1", "--out", str(folder)]
    return *parity(tree, *words), folder


def change(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of a text that has to be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_an_unchanged_copy_is_at_parity(tree: Path) -> None:
    """Else the tests below would show nothing."""
    status, text, out = run(tree)
    assert status == 0, text
    assert store.load_verdict(out).outcome is Outcome.PARITY


def test_llama_cpp_of_another_commit(tree: Path) -> None:
    """The code was written for another commit than the installed library is of."""
    commit = load_pins().llama_cpp.commit
    change(tree / "parity_lib" / "engines" / "llamacpp" / "abi.py", commit, OTHER)
    status, text, out = run(tree)
    assert status == 3
    assert "another commit of llama.cpp" in text
    assert f"expected {OTHER}" in text
    assert f"found {commit}" in text
    assert "next: build the reference again" in text
    assert not list(out.glob("**/*.part"))
    status, text = parity(tree, "doctor")
    assert status == 3
    assert re.search(rf"FAIL .*expected {OTHER}", text)


def test_llama_cpp_of_another_commit_than_the_pinned_one(tree: Path) -> None:
    """The pins name another commit: code and library agree with each other, and not with the file."""
    commit = load_pins().llama_cpp.commit
    change(tree / "fixtures" / "gguf_parity.toml", commit, OTHER)
    status, text, out = run(tree)
    assert status == 3
    assert "llama.cpp" in text
    assert OTHER[:7] in text
    assert commit[:7] in text
    assert not (out / "verdict.json").exists() or store.load_verdict(out).outcome is Outcome.INCOMPLETE


def test_extension_not_built(tree: Path) -> None:
    (tree / "burn_gguf.py").write_text("raise ImportError(\"No module named 'burn_gguf'\", name='burn_gguf')\n")
    status, text, out = run(tree)
    assert status == 3
    assert "the Rust extension is not built; expected an importable module burn_gguf" in text
    assert "next: run `make setup`" in text
    assert store.load_verdict(out).outcome is Outcome.INCOMPLETE
    status, text = parity(tree, "doctor")
    assert status == 3
    assert re.search(r"FAIL .*the Rust extension is not built", text)
    status, text = parity(tree, "faults", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--out", str(out))
    assert status == 3
    assert "is not built" in text


@pytest.mark.parametrize("name", ["src/ops.rs", "Cargo.lock"])
def test_extension_stale(tree: Path, name: str) -> None:
    """One source file, or the lock of its dependencies, was changed since the extension was built."""
    with (tree / "parity_lib" / "burn_gguf" / name).open("a") as file:
        file.write("\n# changed\n" if name.endswith("lock") else "\n// changed\n")
    status, text, out = run(tree)
    assert status == 3
    assert "the Rust extension is stale: it was built from other sources" in text
    assert re.search(r"expected [0-9a-f]{64}; found [0-9a-f]{64}", text)
    assert "next: run `make setup`" in text
    assert store.load_verdict(out).outcome is Outcome.INCOMPLETE
    if name == "src/ops.rs":
        status, text = parity(tree, "doctor")
        assert status == 3
        assert "stale" in text
