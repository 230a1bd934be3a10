"""What holds for every test: its markers are right, and both readers give one answer for each GGUF file it leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.facts import read_facts
from tests.marks import (
    pytest_collection_modifyitems,
    pytest_ignore_collect,
    pytest_runtest_call,
    pytest_runtest_setup,
)

if TYPE_CHECKING:
    from tests.shared import SoundCell, ThreeLayers

__all__ = ["pytest_collection_modifyitems", "pytest_ignore_collect", "pytest_runtest_call", "pytest_runtest_setup"]
ROOT = Path(__file__).resolve().parents[1]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a job in the background so, and what it starts inherits it: no Ctrl-C would reach a tested command.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Reader = Callable[[Path], str]


def of_python(path: Path) -> str:
    """Return the refusal of the Python reader, or "" where it takes a file."""
    try:
        read_facts(path)
    except ModelFileError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def of_rust() -> Iterator[Reader]:
    """The candidate's reader, which answers alike; it runs in one process for all tests, from the first file on."""
    running: list[subprocess.Popen[str]] = []

    def ask(path: Path) -> str:
        if not running:
            words = [sys.executable, "-m", "tests.reader"]
            running.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        [process] = running
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(str(path)) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the candidate's reader ended on {path}"
        return str(json.loads(answer))

    yield ask
    for process in running:
        process.communicate()


@pytest.fixture(scope="session")
def sound_cell(tmp_path_factory: pytest.TempPathFactory) -> SoundCell:
    """A whole cell at parity, run once for all tests."""
    from tests.shared import climb_sound_cell

    return climb_sound_cell(tmp_path_factory.mktemp("sound-cell"))


@pytest.fixture(scope="session")
def three_layers(tmp_path_factory: pytest.TempPathFactory) -> ThreeLayers:
    """A model of three layers whose tokens are traced, each once for all tests."""
    from tests.shared import open_three_layers

    return open_three_layers(tmp_path_factory.mktemp("three-layers"))


@pytest.fixture(autouse=True)
def one_answer(request: pytest.FixtureRequest, of_rust: Reader) -> Iterator[None]:
    """Give every GGUF file in the test's own folder to both readers when the test is over."""
    folder: Path | None = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for path in sorted(folder.rglob("*.gguf")) if folder else ():
        assert of_python(path) == of_rust(path), f"two answers for {path}"
