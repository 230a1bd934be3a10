"""Judges a model file without a forward pass: pins (T0), tokens (T1), weights (T2)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib.base.names import Rung
from parity_lib.cell import t0_pins
from parity_lib.cell.climbed import Failed, Finding, Found, attempt
from parity_lib.cell.conclude import incomplete, lost_rung
from parity_lib.cell.request import Cell
from parity_lib.cell.steps import check_pins, compare_tokens, compare_weights
from parity_lib.cell.t1_tokens import compare_vocabulary_cases
from parity_lib.judge.t0_pins import PinCheck, judge_pins
from parity_lib.judge.t1_tokens import join_rungs
from parity_lib.model_file.facts import NO_TOKENIZER, read_tensors
from parity_lib.records import store
from parity_lib.records.measured import Measured, joined
from parity_lib.records.verdicts import RungResult, Verdict, conclude
from parity_lib.tokenizers.build import BuiltTokenizer
from parity_lib.tokenizers.metadata import read_metadata


@dataclass(frozen=True, slots=True)
class TensorNumbers:
    """One tensor of a file: its header entry, and statistics of its values in float64."""

    name: str
    type: str
    shape: tuple[int, ...]
    n_bytes: int
    rms: float
    absmax: float
    n_nonfinite: int

    @property
    def layer(self) -> int | None:
        """Return the number of its layer; None for tensors outside of the layers, such as embedding and output."""
        first, _, rest = self.name.partition(".")
        number = rest.partition(".")[0]
        return int(number) if first == "blk" and number.isdecimal() else None

    @property
    def kind(self) -> str:
        """Return the name without layer: ``attn_q.weight``."""
        return self.name if self.layer is None else self.name.split(".", 2)[2]


@dataclass(frozen=True, slots=True)
class Pieces:
    """How one prompt is cut into tokens: ids, and the bytes of each."""

    name: str
    tokens: tuple[tuple[int, bytes], ...]


def check_file(cell: Cell) -> Verdict:
    """Return the verdict over a model file's pins, tokens and weights; a failed step costs its own rung only."""
    pins = attempt(cell, check_pins)
    if isinstance(pins, Failed):
        return incomplete(cell, str(pins))
    assert pins is not None, "a step without an input is run"
    tokens, cases = attempt(cell, compare_tokens), attempt(cell, check_cases)
    return judge_file(cell, pins, tokens, cases, attempt(cell, compare_weights))


def check_cases(cell: Cell) -> Finding:
    """Hold both tokenizers to llama.cpp's own vocabulary cases; they belong to the build, not to the cell's file."""
    cell.progress.step("vocabulary cases")
    rung, divergences, cases = compare_vocabulary_cases()
    return Finding(rung, tuple(divergences), Measured(cases=cases))


def judge_file(
    cell: Cell, pins: Sequence[PinCheck], tokens: Found[Finding], cases: Found[Finding], weights: Found[Finding]
) -> Verdict:
    """Return the verdict over T0 (files only), T1 and T2. A file without a vocabulary is held to the cases alone."""
    found = [finding for finding in (tokens, cases, weights) if isinstance(finding, Finding)]
    rungs = (
        judge_pins(pins, required=t0_pins.FILES),
        join_rungs([_rung(Rung.T1, step) for step in (tokens, cases) if step is not None]),
        _rung(Rung.T2, weights),
    )
    outcome, causes = conclude(rungs, required=(Rung.T0, Rung.T1, Rung.T2))
    return Verdict(
        cell=cell.id,
        outcome=outcome,
        rungs=rungs,
        divergences=tuple(line for finding in found for line in finding.divergences),
        runs={},
        provisional=False,
        unpinned=cell.unpinned,
        causes=causes,
        measured=joined(finding.measured for finding in found),
        pins=t0_pins.recorded_pins(cell),
        control=cell.request.control,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - cell.started,
    )


def _rung(rung: Rung, found: Found[Finding]) -> RungResult:
    """Return what a step found, or that its rung could not be judged."""
    return found.rung if isinstance(found, Finding) else lost_rung(rung, str(found))


def save_file_verdict(cell: Cell, verdict: Verdict) -> Verdict:
    """Write verdict and greppable lines into the cell's folder; return the verdict."""
    store.save_verdict(verdict, cell.out_dir)
    store.save_divergences(verdict, cell.out_dir / "divergences.jsonl")
    return verdict


def cut_prompts(cell: Cell) -> list[Pieces]:
    """Return how each prompt is cut by the tokenizer built from the file's metadata; empty without a vocabulary."""
    if cell.facts.tokenizer == NO_TOKENIZER:
        return []
    built = BuiltTokenizer(read_metadata(cell.model_path))
    words = built.token_bytes()
    return [
        Pieces(prompt.name, tuple((token, words[token]) for token in built.encode(prompt.text)))
        for prompt in cell.suite.prompts
    ]


def measure_tensors(path: Path) -> list[TensorNumbers]:
    """Return every tensor of a file with its rms and largest absolute value; one tensor at a time is in memory."""
    found = []
    for name, tensor in read_tensors(path).items():
        values = tensor.dequantize()
        finite = np.isfinite(values)
        good = values if finite.all() else values[finite]
        square = float(np.mean(np.square(good, dtype=np.float64))) if good.size else 0.0
        largest = float(np.max(np.abs(good))) if good.size else 0.0
        bad = int(values.size - np.count_nonzero(finite))
        found.append(
            TensorNumbers(name, tensor.type, tensor.shape, tensor.n_bytes, float(np.sqrt(square)), largest, bad)
        )
    return found
