"""A small sound model, and tools to spoil it at one place: every refusal below comes from the one edit it names."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import pytest

from parity_lib.capture.synthetic import Shape, build
from parity_lib.engines.burn import Burn
from parity_lib.errors import ModelFileError
from parity_lib.model_file import read_facts
from parity_lib.pins import load_pins
from parity_lib.reference_recipe import host_leg

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
SMALL = Shape(n_layer=1, n_vocab=256, n_ff=256, n_ctx_train=64, rope_freqs=1)
N_TENSORS_AT, N_KEYS_AT, FIRST_KEY_AT = 8, 16, 24  # bytes of a GGUF file: counts, then the first key's length

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
def leg() -> str:
    """The leg of llama.cpp that set-up installs on this machine."""
    return str(host_leg(load_pins().llama_cpp))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory, leg: str) -> Path:
    """A file that both readers take."""
    path = build("llama", "Q8_0", tmp_path_factory.mktemp("sound") / "sound.gguf", SMALL)
    assert read_facts(path).n_vocab == Burn(path, isa=leg, n_threads=1).n_vocab() == SMALL.n_vocab
    return path


@pytest.fixture
def spoil(sound: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Return a function that applies an edit to a copy of the sound file and returns the copy's path."""

    def make(edit: Edit) -> Path:
        spoiled = Spoiled(sound)
        edit(spoiled)
        return spoiled.write(tmp_path / "spoiled.gguf")

    return make


def refusal_of_python(path: Path) -> str:
    """Return what the Python reader says."""
    with pytest.raises(ModelFileError) as caught:
        read_facts(path)
    return str(caught.value)


def refusal_of_rust(path: Path, leg: str) -> str:
    """Return what the Rust reader says."""
    with pytest.raises(ModelFileError) as caught:
        Burn(path, isa=leg, n_threads=1)
    return str(caught.value)
