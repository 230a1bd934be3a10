"""A cell and traces that several files of tests read: each is computed once, when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from parity_lib.base.names import Outcome
from parity_lib.cell import reference_cache, steps
from parity_lib.cell.steps import Cell, Climbed, Reference
from parity_lib.engines import targets
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import load_pins
from parity_lib.records.verdicts import Verdict
from parity_lib.trace.token import TokenTrace, trace_token

PROMPTS = Path(__file__).parent / "two_prompts.toml"


@contextmanager
def reference_kept_in(folder: Path) -> Iterator[Path]:
    """Let the cache of the reference lie in a folder of the caller's own, whatever this machine has computed before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_cache, "traces_dir", lambda: folder)
        yield folder


def link_tree(source: Path, target: Path) -> Path:
    """Return ``target`` with a hard link for every file of ``source``: a copy, as long as files are replaced whole."""
    for path in source.rglob("*"):
        if path.is_file():
            linked = target / path.relative_to(source)
            linked.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, linked)
    return target


def isa_outcome() -> Outcome:
    """Return T7's outcome of a sound cell that names no ISA target: REPORTED where one engine lacks the host's here."""
    pins = load_pins()
    both = targets.sides(pins, CRATES_IO, targets.host(pins, CRATES_IO))
    return Outcome.REPORTED if both.reference.lacks or both.candidate.lacks else Outcome.PARITY


@dataclass(frozen=True)
class SoundCell:
    """A cell at parity whose reference was computed with an empty cache, and what its steps found."""

    folder: Path  # has the prompts
    cell: Cell
    climbed: Climbed
    verdict: Verdict
    traces: Path  # the cache that it left; link it, do not change it


def climb_sound_cell(folder: Path) -> SoundCell:
    """Run every step of a cell of a synthetic model."""
    prompts = folder / "prompts.toml"
    prompts.write_text(PROMPTS.read_text())
    named = {"model": "synthetic-llama", "quant": "Q8_0", "prompts": str(prompts), "out_dir": str(folder / "cell")}
    with reference_kept_in(folder / "traces") as traces:
        cell = steps.open_cell(n_threads=1, **named)
        climbed = steps.climb(cell)
    return SoundCell(folder, cell, climbed, steps.conclude(cell, climbed).verdict, traces)


@dataclass(frozen=True)
class ThreeLayers:
    """A cell on a model of three layers, and the traces of one of its tokens."""

    cell: Cell
    reference: Reference
    traces: Path
    made: dict[str, TokenTrace] = field(default_factory=dict)

    def trace(self, fault: str = "") -> TokenTrace:
        """Return the trace of a token of the first prompt, with or without a seeded fault."""
        if fault not in self.made:
            seeded = replace(self.cell, request=replace(self.cell.request, fault=fault))
            self.made[fault] = trace_token(seeded, self.reference, "first", 3)
        return self.made[fault]


def open_three_layers(folder: Path) -> ThreeLayers:
    """Build the model and let the reference generate."""
    model = build("llama", "Q8_0", folder / "three.gguf", Shape(n_layer=3, n_vocab=512, n_ctx_train=1024))
    with reference_kept_in(folder / "traces") as traces:
        cell = steps.open_cell(model=str(model), prompts=str(PROMPTS), out_dir=str(folder / "out"), n_threads=1)
        return ThreeLayers(cell, steps.capture_reference(cell), traces)
