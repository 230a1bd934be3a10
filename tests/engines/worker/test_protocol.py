"""What every engine shares: closing, ``with``, and the refusal of what cannot be fed."""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.engines.worker.protocol import Engine, OnOneFile
from parity_lib.engines.worker.server import ENGINES


class Counting(OnOneFile):
    """An engine of 10 tokens and 8 positions that counts how often it is freed."""

    n_freed = 0

    def feed(self, sequences: list[list[int]], n_tokens: list[int] | None = None) -> list[list[int]]:
        return self._checked(sequences, 8, 10, n_tokens)

    def _free(self) -> None:
        self.n_freed += 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.mark.parametrize("kind", sorted(ENGINES))
def test_every_engine_is_one_and_has_one_way_to_close(kind: str) -> None:
    module, name = ENGINES[kind].split(":")
    found = getattr(import_module(module), name)
    assert issubclass(found, Engine)
    assert found.close is Engine.close
    parameters = inspect.signature(found).parameters
    assert "isa" not in parameters or parameters["isa"].default is inspect.Parameter.empty


def test_a_with_frees_once_and_a_closed_engine_refuses(model: Path) -> None:
    with Counting(model) as engine:
        assert engine.feed([[1, 2]]) == [[1, 2]]
    engine.close()
    assert engine.n_freed == 1
    with pytest.raises(EngineError, match=r"model\.gguf: the engine is closed"):
        engine.feed([[1]])


@pytest.mark.parametrize(
    ("sequences", "n_tokens", "words"),
    [
        ([], None, "no sequence was given"),
        ([[1], []], None, "sequence 1: a sequence does not fit"),
        ([[1] * 9], None, "expected 1 to 8 tokens; found 9"),
        ([[1] * 7], [3], "found 7 of the prompt and 2 generated"),
        ([[1, 10]], None, r"sequence 0, token 1: a token id is outside of the vocabulary; expected 0 to 9; found 10"),
        ([[-1]], None, "outside of the vocabulary"),
        ([[1]], [], "numbers of tokens"),
        ([[1]], [0], "numbers of tokens"),
    ],
)
def test_what_cannot_be_fed_is_refused(
    model: Path, sequences: list[list[int]], n_tokens: list[int] | None, words: str
) -> None:
    with Counting(model) as engine, pytest.raises(EngineError, match=words):
        engine.feed(sequences, n_tokens)


def test_the_last_position_can_be_fed(model: Path) -> None:
    with Counting(model) as engine:
        assert engine.feed([[9] * 8, [0] * 7], [1, 2]) == [[9] * 8, [0] * 7]


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the file cannot be opened"):
        Counting(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError, match="not a regular file"):
            Counting(path)
