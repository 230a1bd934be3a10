"""One cell from pins to verdict, in steps that a notebook calls one by one; ``run_cell`` calls them all.

open_cell -> check_pins -> compare_tokens -> compare_weights -> capture_reference -> capture_twin -> capture_spread ->
capture_candidate -> replay_ops -> check_self -> prove_isa -> judge -> save

Each step takes and returns records. Engines are opened one after the other, each in a worker process of its own.
A step that fails with an error of the hierarchy leaves an INCOMPLETE verdict with that error as its cause, and raises.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from parity_lib import store
from parity_lib.capture import bands, cell_judge, cell_pins, consistency, folder, isa_proof
from parity_lib.capture.bf16 import capture_plain
from parity_lib.capture.cell_judge import REQUIRED, Bf16Rows, Finding, Judgement, incomplete, positions, required_rungs
from parity_lib.capture.cell_request import Cell, CellRequest, open_cell
from parity_lib.capture.logits import Rows
from parity_lib.capture.open_engines import open_burn
from parity_lib.capture.reference import Reference, generate, score, score_bf16_twin, score_twin
from parity_lib.capture.reference_self import kept_spread, measure_reference
from parity_lib.capture.replay import replay_cell
from parity_lib.capture.tokenization import compare_tokens_of
from parity_lib.capture.tokens import save_words
from parity_lib.capture.weights import compare_tensors
from parity_lib.compare.pins import PinCheck
from parity_lib.engines.worker import Worker
from parity_lib.errors import ParityError, PinError
from parity_lib.names import Compute, Rung
from parity_lib.spreads import SelfSpread
from parity_lib.verdicts import Verdict

__all__ = [
    "REQUIRED",
    "Cell",
    "CellRequest",
    "Finding",
    "Judgement",
    "Reference",
    "Weights",
    "incomplete",
    "open_cell",
    "positions",
    "required_rungs",
    "run_cell",
]

Weights = Finding
P = ParamSpec("P")
R = TypeVar("R")


def recorded(step: Callable[Concatenate[Cell, P], R]) -> Callable[Concatenate[Cell, P], R]:
    """Wrap a step: its seconds are noted, and an error of the hierarchy leaves an INCOMPLETE verdict when it raises."""

    @functools.wraps(step)
    def run(cell: Cell, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began = time.monotonic()
        try:
            return step(cell, *args, **kwargs)
        except ParityError as error:
            shutil.rmtree(cell.spools, ignore_errors=True)
            store.save_verdict(incomplete(cell, f"{step.__name__}: {error}"), cell.out_dir)
            folder.let_go(cell.out_dir)
            raise
        finally:
            cell.diary.seconds[step.__name__] = time.monotonic() - began

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
def compare_tokens(cell: Cell) -> Finding | None:
    """Compare llama.cpp's tokenizer with one that is built from the file's own metadata (T1).

    None where the file has no vocabulary, and so no text to tokenise.
    """
    if Rung.T1 not in required_rungs(cell):
        return None
    progress = cell.progress.step("tokens")
    texts = [(prompt.name, prompt.text) for prompt in cell.suite.prompts]
    settings = {"path": str(cell.model_path), "n_threads": cell.n_threads}
    with Worker("llama_vocabulary", settings, log=cell.log("llama_cpp")) as reference:
        rung, divergences, literal = compare_tokens_of(cell.model_path, cell.facts, texts, reference, progress)
    return Finding(rung, tuple(divergences), {"tokens": literal})


@recorded
def compare_weights(cell: Cell) -> Finding:
    """Compare every tensor as the candidate dequantises it with ``gguf.dequantize``, bit by bit (T2)."""
    progress = cell.progress.step("weights")
    with open_burn(cell) as burn:
        rung, divergences = compare_tensors(cell.model_path, burn, progress)
    return Finding(rung, tuple(divergences))


@recorded
def capture_reference(cell: Cell) -> Reference:
    """Let llama.cpp generate greedily from the file as it is, strict settings, or take what it did from the cache."""
    return generate(cell)


@recorded
def capture_twin(cell: Cell, reference: Reference) -> Rows:
    """Let llama.cpp score the same tokens on the F32 twin, strict settings, or take what it did from the cache."""
    return score_twin(cell, reference)


@recorded
def capture_spread(cell: Cell, reference: Reference, twin: Rows | None = None) -> SelfSpread | Bf16Rows:
    """Let llama.cpp run the file in its other ways, or take what it showed from the cache: what T5 is measured by.

    A cell in bf16 gets the rows that it is reported against instead: llama.cpp's on the BF16 twin, and burn's in f32.

    Args:
        cell: the cell.
        reference: what was fed, and the rows of strict settings.
        twin: the rows on the F32 twin; they are made again where they are not given.
    """
    if cell.id.compute == Compute.BF16:
        return Bf16Rows(score_bf16_twin(cell, reference), capture_plain(cell, reference))
    return kept_spread(cell, reference, twin)


@recorded
def capture_candidate(cell: Cell, reference: Reference) -> Rows:
    """Let burn score the same tokens on the file as it is, all prompts as rows of one pass, sampled for T7."""
    with open_burn(cell, sampled=True) as engine:
        return score(cell, engine, reference, "candidate", "burn scores")


@recorded
def replay_ops(cell: Cell, reference: Reference) -> Finding:
    """Let burn run each op of llama.cpp's graph on llama.cpp's own inputs, prefill and decode, and compare (T3)."""
    return replay_cell(cell, reference)


@recorded
def check_self(cell: Cell, reference: Reference, candidate: Rows) -> Finding:
    """Let burn make rows again on its other ways to them, and compare them bit by bit (T6).

    The same relations of llama.cpp are measured once for each reference, and reported beside.
    """
    progress = cell.progress.step("burn against itself")
    rows = Counter(position.prompt_idx for position in positions(cell, reference))
    with open_burn(cell) as burn:
        rung, divergences, literal = consistency.check(
            burn,
            reference.sequences,
            reference.prompt_lengths,
            [rows[prompt] for prompt in range(len(reference.prompts))],
            candidate,
            folder=cell.spools,
            progress=progress,
            day=cell.request.day,
            full=cell.request.full,
        )
    return Finding(rung, tuple(divergences), {"self": literal | {"reference": measure_reference(cell, reference)}})


@recorded
def prove_isa(cell: Cell, reference: Reference, candidate: Rows) -> Finding:
    """Say which instructions made the rows, and whether they are those that were asked for (T7).

    The candidate was sampled while it scored. A small model is done before enough was seen; then it scores again.
    """
    seen = isa_proof.candidate_evidence(candidate.run.isa_evidence)
    if seen.sampled is not None and not isa_proof.is_seen(seen):
        with open_burn(cell, sampled=True) as burn:
            seen = burn.call("prove_isa", reference.sequences, cell.spools)
    return isa_proof.prove_isa(cell, reference, seen)


@recorded
def judge(
    cell: Cell,
    pins: Sequence[PinCheck],
    weights: Finding,
    reference: Reference,
    twin: Rows,
    candidate: Rows,
    *,
    spread: SelfSpread | Bf16Rows | None = None,
    tokens: Finding | None = None,
    ops: Finding | None = None,
    itself: Finding | None = None,
    isa: Finding | None = None,
) -> Judgement:
    """Judge T0, T4 and T5, and conclude. Every expected position is counted, delivered or not.

    Args:
        cell: the cell.
        pins: what ``check_pins`` found.
        weights: T2, from ``compare_weights``.
        reference: the reference's tokens and rows on the file as it is.
        twin: its rows on the F32 twin.
        candidate: the candidate's rows.
        spread: what ``capture_spread`` gave, which T5 is judged by.
        tokens: T1, from ``compare_tokens``; None for a file without a vocabulary.
        ops: T3, from ``replay_ops``.
        itself: T6, from ``check_self``.
        isa: T7, from ``prove_isa``.

    A step that was not run leaves its rung out. If the cell needs that rung, it is INCOMPLETE and names it.
    """
    steps = [finding for finding in (tokens, weights, ops, itself, isa) if finding is not None]
    return cell_judge.judge(cell, pins, steps, reference, twin, candidate, spread)


@recorded
def save(cell: Cell, judgement: Judgement) -> Verdict:
    """Write verdict, greppable lines and traces into the cell's folder, each whole or not at all; return it."""
    store.save_pair(judgement.twin, cell.out_dir / "twin.npz")
    store.save_pair(judgement.native, cell.out_dir / "native.npz")
    save_words(judgement.token_text, cell.suite, cell.out_dir)
    bands.save_bands(judgement.bands, cell.out_dir)
    if judgement.spread is not None:
        store.save_spread(judgement.spread, cell.out_dir)
    store.save_verdict(judgement.verdict, cell.out_dir)
    store.save_divergences(judgement.verdict, cell.out_dir / "divergences.jsonl")
    shutil.rmtree(cell.spools, ignore_errors=True)
    folder.let_go(cell.out_dir)
    return judgement.verdict


def run_cell(request: CellRequest) -> Verdict:
    """Run all steps and return the verdict; an error on the way gives an INCOMPLETE one, which is stored too.

    Raises:
        ParityError: the request cannot even be opened, so that there is no cell to give a verdict for.
    """
    cell = open_cell(request)
    try:
        pins = check_pins(cell)
        tokens = compare_tokens(cell)
        weights = compare_weights(cell)
        reference = capture_reference(cell)
        twin = capture_twin(cell, reference)
        spread = capture_spread(cell, reference, twin)
        candidate = capture_candidate(cell, reference)
        ops = replay_ops(cell, reference)
        itself = check_self(cell, reference, candidate)
        isa = prove_isa(cell, reference, candidate)
        rows = (reference, twin, candidate)
        judgement = judge(cell, pins, weights, *rows, spread=spread, tokens=tokens, ops=ops, itself=itself, isa=isa)
        return save(cell, judgement)
    except ParityError as error:
        if not (cell.out_dir / store.VERDICT).exists():
            raise error from error.__cause__  # the disk is full: what could not be written is the thing to say
        return store.load_verdict(cell.out_dir)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
        folder.let_go(cell.out_dir)
