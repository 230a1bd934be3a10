"""One cell from pins to verdict: its steps one by one, and ``climb``, which runs them all.

open_cell -> climb -> conclude -> save; and climb is check_pins -> compare_tokens -> compare_weights ->
capture_reference -> capture_twin -> derive_limits -> capture_spread -> capture_candidate -> replay_ops -> check_self ->
prove_isa.

Each step takes and returns records, and raises what went wrong. Engines are opened one after the other, each in a
worker process of its own. In a climb a step that fails leaves its own rung INCOMPLETE and the others to be judged.
"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

from msgspec import structs

from parity_lib.base.errors import ParityError, PinError
from parity_lib.base.names import Compute, Rung
from parity_lib.cell import request as folder
from parity_lib.cell import t0_pins, t4_limits, t6_self, t7_isa
from parity_lib.cell.bf16 import capture_plain
from parity_lib.cell.climbed import Bf16Rows, Climbed, Failed, Finding, attempt
from parity_lib.cell.conclude import conclude, incomplete, positions, required_rungs
from parity_lib.cell.findings import REQUIRED, Judgement
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.prompt_tokens import save_words
from parity_lib.cell.reference import Reference, generate, score, score_bf16_twin, score_twin
from parity_lib.cell.reference_self import kept_spread, measure_reference
from parity_lib.cell.request import Cell, CellRequest, open_cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t1_tokens import compare_tokens_of
from parity_lib.cell.t2_weights import compare_tensors
from parity_lib.cell.t3_replay import replay_cell
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t0_pins import PinCheck
from parity_lib.records import runs, store
from parity_lib.records.drift_limits import DriftLimits, save_limits
from parity_lib.records.measured import Measured
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.verdicts import Verdict

__all__ = [
    "REQUIRED",
    "Cell",
    "CellRequest",
    "Climbed",
    "Failed",
    "Finding",
    "Judgement",
    "Reference",
    "conclude",
    "incomplete",
    "open_cell",
    "positions",
    "required_rungs",
    "run_cell",
]


def check_pins(cell: Cell) -> tuple[PinCheck, ...]:
    """Check the files against their pins, before any engine is started.

    Raises:
        PinError: a file is another one. Nothing is judged.
    """
    cell.progress.step("pins")
    checks = t0_pins.file_checks(cell)
    wrong = [str(check) for check in checks if not check.ok]
    if wrong:
        raise PinError(
            "a pin does not match, so no rung was judged",
            place="; ".join(wrong),
            next_step="parity models verify; parity doctor",
        )
    return checks


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
        rung, divergences, tokens = compare_tokens_of(cell.model_path, cell.facts, texts, reference, progress)
    return Finding(rung, tuple(divergences), Measured(tokens=tokens))


def compare_weights(cell: Cell) -> Finding:
    """Compare every tensor as the candidate dequantises it with ``gguf.dequantize``, bit by bit (T2)."""
    progress = cell.progress.step("weights")
    with open_burn(cell) as burn:
        rung, divergences = compare_tensors(cell.model_path, burn, progress)
    return Finding(rung, tuple(divergences))


def capture_reference(cell: Cell) -> Reference:
    """Generate greedily with llama.cpp from the deployed file, strict settings, or load the result from the cache."""
    return generate(cell)


def capture_twin(cell: Cell, reference: Reference) -> Rows:
    """Score the same tokens with llama.cpp on the F32 twin, strict settings, or load the rows from the cache."""
    return score_twin(cell, reference)


def derive_limits(cell: Cell, reference: Reference, twin: Rows) -> DriftLimits | None:
    """Predict the limits of T4 from the kernels' baselines; a cell in bf16 only reports, without any."""
    return None if cell.id.compute == Compute.BF16 else t4_limits.derive_limits(cell, reference, twin)


def capture_spread(cell: Cell, reference: Reference, twin: Rows | None = None) -> SelfSpread | Bf16Rows:
    """Measure llama.cpp's self-spread, the unit of T5: run its variants, or load the result from the cache.

    A cell in bf16 gets the rows that it is reported against instead: llama.cpp's on the BF16 twin, and burn's in f32.

    Args:
        cell: the cell.
        reference: what was fed, and the rows of strict settings.
        twin: the rows on the F32 twin; they are made again where they are not given.
    """
    if cell.id.compute == Compute.BF16:
        return Bf16Rows(score_bf16_twin(cell, reference), capture_plain(cell, reference))
    return kept_spread(cell, reference, twin)


def capture_candidate(cell: Cell, reference: Reference) -> Rows:
    """Score the same tokens with burn on the deployed file, all prompts in one pass, with sampling for T7."""
    with open_burn(cell, sampled=True) as engine:
        return score(cell, engine, reference, "candidate", "burn scores")


def replay_ops(cell: Cell, reference: Reference) -> Finding:
    """Run each op of llama.cpp's graph with burn on llama.cpp's own inputs, prefill and decode, and compare (T3)."""
    return replay_cell(cell, reference)


def check_self(cell: Cell, reference: Reference, candidate: Rows) -> Finding:
    """Recompute rows with burn on its other paths (decode, restored state, ..) and compare them bit by bit (T6).

    The same relations of llama.cpp are measured once for each reference, and reported beside.
    """
    progress = cell.progress.step("burn against itself")
    rows = Counter(position.prompt_idx for position in positions(cell, reference))
    with open_burn(cell) as burn:
        rung, divergences, itself = t6_self.check(
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
    itself = structs.replace(itself, reference=measure_reference(cell, reference))
    return Finding(rung, tuple(divergences), Measured(itself=itself))


def prove_isa(cell: Cell, reference: Reference, candidate: Rows) -> Finding:
    """Judge from samples whether the instructions that ran are the requested ones (T7).

    The candidate was sampled while it scored. A small model is done before enough was seen; then it scores again.
    """
    seen = runs.burn(candidate.run).isa_evidence.samples
    if seen.sampled is not None and not t7_isa.is_seen(seen):
        with open_burn(cell, sampled=True) as burn:
            seen = burn.call("prove_isa", reference.sequences, cell.spools)
    return t7_isa.prove_isa(cell, reference, seen)


def climb(cell: Cell) -> Climbed:
    """Run every step of a cell, and return what each found or why it could not.

    A step is left out only where it needs the result of one that failed. A pin of a file that does not hold leaves all
    of them out: nothing is judged then.
    """
    pins = attempt(cell, check_pins)
    if isinstance(pins, Failed):
        return Climbed(pins)
    tokens, weights = attempt(cell, compare_tokens), attempt(cell, compare_weights)
    reference = attempt(cell, capture_reference)
    twin = attempt(cell, capture_twin, reference)
    limits = attempt(cell, derive_limits, reference, twin)
    given = (reference, twin) if isinstance(twin, Rows) else (reference,)
    spread = attempt(cell, capture_spread, *given)
    return climb_candidate(cell, Climbed(pins, tokens, weights, reference, twin, limits, spread))


def climb_candidate(cell: Cell, climbed: Climbed) -> Climbed:
    """Run the candidate's steps on the reference's tokens; return all steps, with the new results.

    Args:
        cell: the cell; a fault in its request is seeded into the candidate.
        climbed: what the steps of the reference found.
    """
    reference = climbed.reference
    candidate = attempt(cell, capture_candidate, reference)
    ops = attempt(cell, replay_ops, reference)
    itself = attempt(cell, check_self, reference, candidate)
    isa = attempt(cell, prove_isa, reference, candidate)
    return replace(climbed, candidate=candidate, ops=ops, itself=itself, isa=isa)


def save(cell: Cell, judgement: Judgement) -> Verdict:
    """Write verdict, greppable lines and traces into the cell's folder, each whole or not at all; return the verdict.

    If one of them cannot be written, the verdict is INCOMPLETE and names it.

    Raises:
        RecordError: the verdict cannot be written either.
    """
    try:
        _write(cell, judgement)
        verdict = judgement.verdict
    except (ParityError, OSError) as error:
        verdict = incomplete(cell, f"save: {error}")
        store.save_verdict(verdict, cell.out_dir)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
        folder.let_go(cell.out_dir)
    return verdict


def _write(cell: Cell, judgement: Judgement) -> None:
    """Write the records of the judged steps of a cell, the verdict last."""
    for name, pair in (("twin.npz", judgement.twin), ("native.npz", judgement.native)):
        if pair is not None:
            store.save_pair(pair, cell.out_dir / name)
    if judgement.twin is not None or judgement.native is not None:
        save_words(judgement.token_text, cell.suite, cell.out_dir)
    if judgement.limits is not None:
        save_limits(judgement.limits, cell.out_dir)
    if judgement.spread is not None:
        store.save_spread(judgement.spread, cell.out_dir)
    store.save_verdict(judgement.verdict, cell.out_dir)
    store.save_divergences(judgement.verdict, cell.out_dir / "divergences.jsonl")


def run_cell(request: CellRequest) -> Verdict:
    """Run all steps, store the verdict and return it.

    Raises:
        ParityError: the request cannot even be opened, so that there is no cell to give a verdict for, or no verdict
            can be written.
    """
    cell = open_cell(request)
    try:
        return save(cell, conclude(cell, climb(cell)))
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)
        folder.let_go(cell.out_dir)
