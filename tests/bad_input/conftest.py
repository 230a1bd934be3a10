"""A small sound model, and tools to spoil it at one place: every refusal below comes from the one edit it names."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.cli.app import main
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.model_file.facts import read_facts
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import load_pins

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
SMALL = Shape(n_layer=1, n_vocab=256, n_ff=256, n_ctx_train=64, rope_freqs=1)

Edit = Callable[["Spoiled"], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the fields of one tensor stand in the file."""

    name: int
    n_dims: int
    dims: int
    type: int
    offset: int


class Spoiled:
    """A copy of a sound file whose bytes an edit changes."""

    def __init__(self, source: Path) -> None:
        self.data = bytearray(source.read_bytes())
        reader = gguf.GGUFReader(source)
        self.data_start = int(reader.data_offset)
        self.values: dict[str, int] = {}  # key -> where its value begins, behind key and type
        for key, field in reader.fields.items():
            if field.types:
                self.values[key] = field.offset + 8 + len(key.encode()) + 4
        self.entries: dict[str, Entry] = {}
        for tensor in reader.tensors:
            name = int(tensor.field.offset) + 8
            n_dims = name + len(tensor.name.encode())
            kind = n_dims + 4 + 8 * len(tensor.shape)
            self.entries[tensor.name] = Entry(name, n_dims, n_dims + 4, kind, kind + 4)
        self.offsets = {t.name: int(t.data_offset) - self.data_start for t in reader.tensors}

    def put(self, form: str, at: int, *values: object) -> None:
        """Write little-endian numbers at a byte."""
        struct.pack_into(f"<{form}", self.data, at, *values)

    def set_key(self, key: str, form: str, value: object) -> None:
        """Write the value of a metadata key, of the type that it has."""
        self.put(form, self.values[key], value)

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name of the same length."""
        assert len(old) == len(new)
        at = self.entries[old].name
        self.data[at : at + len(new)] = new.encode()

    def write(self, path: Path) -> Path:
        """Write the spoiled file."""
        path.write_bytes(self.data)
        return path


@pytest.fixture(scope="session")
def target() -> str:
    """The ISA target of llama.cpp that set-up installs on this machine."""
    return str(host_target(load_pins().llama_cpp))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, target: str) -> Path:
    """A file that both readers take."""
    path = build("llama", "Q8_0", tmp_path_factory.mktemp("sound") / "sound.gguf", SMALL)
    assert read_facts(path).n_vocab == Burn(path, isa=target, n_threads=1).n_vocab() == SMALL.n_vocab
    return path


@pytest.fixture
def spoil(sound: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Return a function that applies an edit to a copy of the sound file and returns the copy's path."""

    def make(edit: Edit) -> Path:
        spoiled = Spoiled(sound)
        edit(spoiled)
        return spoiled.write(tmp_path / "spoiled.gguf")

    return make


def check_clear(text: str, place: str) -> None:
    """Assert that a refusal is one paragraph that names its place, what is right, what was found, and a next step."""
    assert place in text
    for word in ("expected ", "found ", "next: "):
        assert word in text, f"no {word!r} in {text}"
    assert "Traceback" not in text
    assert len(text.strip().splitlines()) == 1


@pytest.fixture
def clear() -> Callable[[str, str], None]:
    """Return the function that asserts that a refusal, given with its place, is clear."""
    return check_clear


@pytest.fixture
def refused(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Return a function that gives a file to the front door and to both readers, and returns what these say.

    Both readers use the same words, the front door repeats them, with status 3, and leaves an earlier record as it was.
    """

    def give(path: Path) -> str:
        out = tmp_path / f"out-{path.stem}"
        out.mkdir()
        (out / "verdict.json").write_text("the record of an earlier run")
        status = main(["run", str(path), "--prompts", str(PROMPTS), "--out", str(out), "--threads", "1"])
        said = capsys.readouterr().err
        with pytest.raises(ModelFileError) as of_python:
            read_facts(path)
        with pytest.raises(ModelFileError) as of_rust:
            Burn(path, isa=target, n_threads=1)
        for text in (said, str(of_python.value), str(of_rust.value)):
            check_clear(text, path.name)
        assert str(of_python.value) in said
        assert status == 3
        assert [file.read_text() for file in out.iterdir()] == ["the record of an earlier run"]
        assert str(of_python.value) == str(of_rust.value)
        return str(of_python.value)

    return give
