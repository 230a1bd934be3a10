"""One cell from pins to verdict, in steps that a notebook calls one by one; ``run_cell`` calls them all.

open_cell -> check_pins -> compare_weights -> capture_reference -> capture_twin -> capture_candidate -> judge -> save

Each step takes and returns records. Engines are opened one after the other, each in a worker process of its own.
A step that fails with an error of the hierarchy leaves an INCOMPLETE verdict with that error as its cause, and raises.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

from parity_lib import store
from parity_lib.capture import bands, cell_pins, logits, tokens
from parity_lib.capture.cell_request import Cell, CellRequest, open_cell
from parity_lib.capture.logits import Rows
from parity_lib.capture.weights import compare_tensors
from parity_lib.compare.logits import judge_twin, report_native
from parity_lib.compare.pins import PinCheck
from parity_lib.engines.llama_cpp import worker_env
from parity_lib.engines.worker import Worker
from parity_lib.errors import ParityError, PinError
from parity_lib.names import Outcome, Rung, Settings
from parity_lib.tolerances import BandSet
from parity_lib.traces import PairTrace, Position, expected_positions
from parity_lib.verdicts import Divergence, RungResult, Verdict, conclude

__all__ = ["REQUIRED", "Cell", "CellRequest", "Judgement", "Reference", "Weights", "open_cell", "run_cell"]

REQUIRED = (Rung.T0, Rung.T2, Rung.T4)  # what a cell must climb before it can be at parity

Known = Any  # the fields of a verdict, each of its own type
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Weights:
    """What T2 found."""

    rung: RungResult
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the reference generated from the deployed file, and the rows it saw while it did."""

    prompts: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    rows: Rows
    token_text: Mapping[int, bytes]  # of every id in the vocabulary; empty where the file has none

    @property
    def sequences(self) -> list[list[int]]:
        """Return what every engine is fed."""
        return logits.fed_sequences(self.prompts, self.generated)

    @property
    def prompt_lengths(self) -> list[int]:
        """Return the number of tokens of each prompt."""
        return [len(prompt) for prompt in self.prompts]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The verdict, and the two pairs of traces that it stands on."""

    verdict: Verdict
    twin: PairTrace
    native: PairTrace
    bands: BandSet
    token_text: Mapping[int, bytes]  # of the ids that the traces' top-5s and fed tokens hold


def recorded(step: Callable[Concatenate[Cell, P], R]) -> Callable[Concatenate[Cell, P], R]:
    """Wrap a step so that an error of the hierarchy leaves an INCOMPLETE verdict before it is raised."""

    @functools.wraps(step)
    def run(cell: Cell, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(cell, *args, **kwargs)
        except ParityError as error:
            shutil.rmtree(cell.spools, ignore_errors=True)
            store.save_verdict(incomplete(cell, f"{step.__name__}: {error}"), cell.out_dir)
            raise

    return run


@recorded
def check_pins(cell: Cell) -> tuple[PinCheck, ...]:
    """Check the files against their pins, before any engine is started.

    Raises:
        PinError: a file is another one. Nothing is judged.
    """
    cell.progress.step("pins")
    checks = cell_pins.file_checks(cell)
    wrong = [str(check) for check in checks if not check.ok]
    if wrong:
        raise PinError(
            "a pin does not hold, so nothing was judged",
            place="; ".join(wrong),
            next_step="parity models verify; parity doctor",
        )
    return checks


@recorded
def compare_weights(cell: Cell) -> Weights:
    """Compare every tensor as the candidate dequantises it with ``gguf.dequantize``, bit by bit (T2)."""
    progress = cell.progress.step("weights")
    with Worker("burn", _burn(cell), log=cell.log("burn")) as burn:
        rung, divergences = compare_tensors(cell.model_path, burn, progress)
    return Weights(rung, tuple(divergences))


@recorded
def capture_reference(cell: Cell) -> Reference:
    """Let llama.cpp generate greedily from the file as it is, strict settings, and keep the rows it saw."""
    progress = cell.progress.step("llama.cpp generates")
    n_tokens = [prompt.n_tokens for prompt in cell.suite.prompts]
    with _llama(cell, str(cell.model_path)) as engine:
        n_vocab = engine.call("n_vocab")
        prompts = tokens.prompt_tokens(cell.suite, cell.facts, engine)
        text = tokens.token_text(cell.facts, engine, n_vocab)
        spool = cell.spools / "reference.f32"
        generated = engine.call("generate", prompts, n_tokens, spool, progress=progress)
        run = engine.call("run_info")
    sequences = logits.fed_sequences(prompts, generated)
    lengths = [len(prompt) for prompt in prompts]
    rows = logits.delivered(run, spool, n_vocab, sequences, lengths, [len(s) for s in sequences])
    return Reference(tuple(map(tuple, prompts)), tuple(map(tuple, generated)), rows, text)


@recorded
def capture_twin(cell: Cell, reference: Reference) -> Rows:
    """Let llama.cpp score the same tokens on the F32 twin, strict settings."""
    with _llama(cell, str(cell.twin_path)) as engine:
        return _score(cell, engine, reference, "twin", "llama.cpp scores the F32 twin")


@recorded
def capture_candidate(cell: Cell, reference: Reference) -> Rows:
    """Let burn score the same tokens on the file as it is, all prompts as rows of one pass."""
    with Worker("burn", _burn(cell), log=cell.log("burn")) as engine:
        return _score(cell, engine, reference, "candidate", "burn scores")


@recorded
def judge(
    cell: Cell, pins: Sequence[PinCheck], weights: Weights, reference: Reference, twin: Rows, candidate: Rows
) -> Judgement:
    """Judge T0 and T4, report T5 literally, and conclude. Every expected position is counted, delivered or not."""
    progress = cell.progress.step("statistics")
    expected = positions(cell, reference)
    limits = cell.bands or bands.derive_for(cell, reference.sequences, reference.prompt_lengths, twin, expected)
    twin_pair = logits.pair(twin, candidate, expected)
    progress(1, 2)
    native_pair = logits.pair(reference.rows, candidate, expected)
    rung_t4, divergences, ledger = judge_twin(twin_pair, expected, limits)
    rung_t5, literal = report_native(native_pair, expected)
    rung_t0 = cell_pins.judge_all(cell, pins, reference.rows.run, twin.run, candidate.run)
    rungs = (rung_t0, weights.rung, rung_t4, rung_t5)
    outcome, causes = conclude(rungs, required=REQUIRED)
    verdict = _verdict(
        cell,
        outcome=outcome,
        rungs=rungs,
        divergences=(*weights.divergences, *divergences),
        runs={"reference": reference.rows.run, "reference-twin": twin.run, "candidate": candidate.run},
        provisional=limits.provisional,
        causes=causes,
        literal={**literal, "ledger": ledger.to_json()},
    )
    return Judgement(verdict, twin_pair, native_pair, limits, tokens.used_text(reference.token_text, twin_pair))


@recorded
def save(cell: Cell, judgement: Judgement) -> Verdict:
    """Write verdict, greppable lines and traces into the cell's folder, each whole or not at all; return it."""
    store.save_pair(judgement.twin, cell.out_dir / "twin.npz")
    store.save_pair(judgement.native, cell.out_dir / "native.npz")
    tokens.save_words(judgement.token_text, cell.suite, cell.out_dir)
    bands.save_bands(judgement.bands, cell.out_dir)
    store.save_verdict(judgement.verdict, cell.out_dir)
    store.save_divergences(judgement.verdict, cell.out_dir / "divergences.jsonl")
    shutil.rmtree(cell.spools, ignore_errors=True)
    return judgement.verdict


def run_cell(request: CellRequest) -> Verdict:
    """Run all steps and return the verdict; an error on the way gives an INCOMPLETE one, which is stored too.

    Raises:
        ParityError: the request cannot even be opened, so that there is no cell to give a verdict for.
    """
    cell = open_cell(request)
    try:
        pins = check_pins(cell)
        weights = compare_weights(cell)
        reference = capture_reference(cell)
        twin = capture_twin(cell, reference)
        candidate = capture_candidate(cell, reference)
        return save(cell, judge(cell, pins, weights, reference, twin, candidate))
    except ParityError:
        return store.load_verdict(cell.out_dir)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)


def positions(cell: Cell, reference: Reference) -> tuple[Position, ...]:
    """Return every position that the cell must score: from the prompts and what was asked for, not what came back."""
    return expected_positions(reference.prompt_lengths, [prompt.n_tokens for prompt in cell.suite.prompts])


def incomplete(cell: Cell, cause: str) -> Verdict:
    """Return the verdict of a cell that could not be compared."""
    return _verdict(
        cell,
        outcome=Outcome.INCOMPLETE,
        rungs=(),
        divergences=(),
        runs={},
        provisional=False,
        causes=(cause,),
        literal={},
    )


def _verdict(cell: Cell, **known: Known) -> Verdict:
    return Verdict(
        cell=cell.id,
        unpinned=cell.unpinned,
        pins=cell_pins.recorded_pins(cell),
        control=cell.request.control,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - cell.started,
        **known,
    )


def _llama(cell: Cell, path: str) -> Worker:
    settings = Settings.STRICT
    kwargs = {"path": path, "settings": settings, "isa": cell.id.isa, "n_threads": cell.n_threads}
    return Worker("llama_cpp", kwargs, env=worker_env(settings), log=cell.log("llama_cpp"))


def _burn(cell: Cell) -> dict[str, Any]:
    return {
        "path": str(cell.candidate_path),
        "isa": cell.id.isa,
        "stack": cell.id.stack,
        "compute": cell.id.compute,
        "n_threads": cell.n_threads,
        "fault": cell.request.fault or None,
    }


def _score(cell: Cell, engine: Worker, reference: Reference, name: str, step: str) -> Rows:
    spool = cell.spools / f"{name}.f32"
    sequences = reference.sequences
    counts = engine.call("score", sequences, spool, progress=cell.progress.step(step))
    run, n_vocab = engine.call("run_info"), engine.call("n_vocab")
    return logits.delivered(run, spool, n_vocab, sequences, reference.prompt_lengths, counts)
