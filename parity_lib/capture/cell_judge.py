"""What a cell concludes: the rungs of its rows, the numbers beside them, and the verdict over all rungs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from parity_lib.capture import bands, cell_pins, logits, tokens
from parity_lib.capture.bf16 import report_bf16
from parity_lib.capture.cell_request import Cell
from parity_lib.capture.logits import Rows
from parity_lib.capture.reference import Reference
from parity_lib.capture.reference_self import defaults_relation
from parity_lib.compare.logits import judge_twin
from parity_lib.compare.native import accuse_reference, judge_native, report_native
from parity_lib.compare.pins import PinCheck
from parity_lib.compare.power import power_statement, text_numbers
from parity_lib.engines.machine import machine_class
from parity_lib.isa_proofs import LLAMA_CPP, proofs_of
from parity_lib.names import Outcome, Rung
from parity_lib.spread_pins import load_spreads
from parity_lib.spreads import SelfSpread
from parity_lib.tolerances import BandSet
from parity_lib.traces import PairTrace, Position, RunInfo, expected_positions
from parity_lib.verdicts import Divergence, RungResult, Verdict, conclude

# Of a file with a vocabulary, in f32.
REQUIRED = (Rung.T0, Rung.T1, Rung.T2, Rung.T3, Rung.T4, Rung.T5, Rung.T6, Rung.T7)

Known = Any  # the fields of a verdict, each of its own type


@dataclass(frozen=True, slots=True, eq=False)
class Bf16Rows:
    """What a cell in bf16 is reported against, in place of a self-spread."""

    twin: Rows  # llama.cpp on the BF16 twin
    plain: Rows  # burn in f32


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step found that is a rung of its own."""

    rung: RungResult
    divergences: tuple[Divergence, ...]
    literal: Mapping[str, Any] = field(default_factory=dict)  # numbers for the verdict


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """The verdict, and the two pairs of traces that it stands on."""

    verdict: Verdict
    twin: PairTrace
    native: PairTrace
    bands: BandSet
    spread: SelfSpread | None  # that T5 was judged by
    token_text: Mapping[int, bytes]  # of the ids that the traces' top-5s and fed tokens hold


@dataclass(frozen=True, slots=True, eq=False)
class _EndToEnd:
    """T4 and T5, with what stands beside them."""

    rungs: tuple[RungResult, ...]
    divergences: tuple[Divergence, ...]
    twin: PairTrace
    native: PairTrace
    literal: Mapping[str, Any]


def required_rungs(cell: Cell) -> tuple[Rung, ...]:
    """Return what a cell must climb before it can be at parity: REQUIRED, but T1 only where there is text.

    A cell in bf16 climbs T4 and T5 too, where they only report.
    """
    silent = cell.facts.tokenizer == tokens.NO_TOKENIZER
    return tuple(rung for rung in REQUIRED if not (silent and rung is Rung.T1))


def judge(
    cell: Cell,
    pins: Sequence[PinCheck],
    steps: Sequence[Finding],
    reference: Reference,
    twin: Rows,
    candidate: Rows,
    spread: SelfSpread | Bf16Rows | None,
) -> Judgement:
    """Judge T0, T4 and T5, and conclude; see ``capture.cell.judge``.

    ``steps`` are the rungs that a step of their own has judged.
    """
    began = time.monotonic()
    expected = positions(cell, reference)
    limits = cell.bands or bands.derive_for(cell, reference.sequences, reference.prompt_lengths, twin, expected)
    if isinstance(spread, Bf16Rows):
        own, rows = None, _report(cell, reference, twin, candidate, spread)
    else:
        own, rows = spread, _judge_rows(cell, reference, twin, candidate, spread, limits)
    runs = {"reference": _observed(reference.rows.run, steps), "reference-twin": twin.run, "candidate": candidate.run}
    if isinstance(spread, Bf16Rows):
        runs["reference-bf16-twin"] = spread.twin.run
    rung_t0 = cell_pins.judge_all(cell, pins, *runs.values())
    # A cached row that was refused costs nothing but time; a reader has to know of the disk or the hand that did it.
    rung_t0 = replace(rung_t0, note="; ".join(filter(None, [rung_t0.note, *cell.diary.notes])))
    rungs = sorted((rung_t0, *rows.rungs, *(f.rung for f in steps)), key=lambda rung: rung.rung.value)
    found = [*rows.divergences, *(d for f in steps for d in f.divergences)]
    outcome, causes = conclude(rungs, required=required_rungs(cell))
    cell.diary.seconds["judge"] = time.monotonic() - began
    verdict = _verdict(
        cell,
        outcome=outcome,
        rungs=tuple(rungs),
        divergences=tuple(sorted(found, key=lambda d: d.rung.value)),
        runs=runs,
        provisional=limits.provisional or bool(rows.literal.get("spread", {}).get("provisional")),
        causes=causes,
        literal={**rows.literal, **_of_steps(steps, own), **_text(reference), **_diary(cell)},
    )
    return Judgement(verdict, rows.twin, rows.native, limits, own, tokens.used_text(reference.token_text, rows.twin))


def _observed(run: RunInfo, steps: Sequence[Finding]) -> RunInfo:
    """Return the reference's run with the leg that its proof has seen; it was taken beside the rows, or before."""
    proofs = [proof for finding in steps for proof in proofs_of(finding.literal)]
    seen = next((p.observed for p in proofs if p.evidence.engine == LLAMA_CPP), run.isa_observed)
    return replace(run, isa_observed=seen)


def _judge_rows(
    cell: Cell, reference: Reference, twin: Rows, candidate: Rows, spread: SelfSpread | None, limits: BandSet
) -> _EndToEnd:
    """Judge T4 by its bands and T5 by the self-spread; where that was not measured there is no T5."""
    progress = cell.progress.step("statistics")
    expected = positions(cell, reference)
    twin_pair = logits.pair(twin, candidate, expected)
    progress(1, 2)
    native_pair = logits.pair(reference.rows, candidate, expected)
    rung, divergences, ledger = judge_twin(twin_pair, expected, limits)
    literal = {"ledger": ledger.to_json()}
    if spread is None:
        return _EndToEnd((rung,), tuple(divergences), twin_pair, native_pair, literal)
    pin = load_spreads().find(cell.id.model, cell.id.quant, cell.id.isa, machine_class(), cell.suite.sha256)
    native, found, told = judge_native(native_pair, expected, spread, pin)
    native, found = accuse_reference(rung, native, found)
    return _EndToEnd((rung, native), (*divergences, *found), twin_pair, native_pair, {**literal, **told})


def _report(cell: Cell, reference: Reference, twin: Rows, candidate: Rows, bf16: Bf16Rows) -> _EndToEnd:
    """Report T4 against the BF16 twin and T5 literally: end to end no number judges the arithmetic of BF16."""
    cell.progress.step("statistics")
    expected = positions(cell, reference)
    rung, told, pair = report_bf16(bf16.twin, twin, candidate, bf16.plain, expected)
    native_pair = logits.pair(reference.rows, candidate, expected)
    native, literal = report_native(native_pair, expected)
    return _EndToEnd((rung, native), (), pair, native_pair, {**literal, "bf16": told})


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
        literal=_diary(cell),
    )


def _of_steps(steps: Sequence[Finding], spread: SelfSpread | None) -> dict[str, Any]:
    """Return the numbers of the rungs that have a step of their own; beside burn's relations those of llama.cpp."""
    literal = {key: value for finding in steps for key, value in finding.literal.items()}
    if spread is not None and "self" in literal:
        reference = {**literal["self"].get("reference", {}), **defaults_relation(spread)}
        literal["self"] = {**literal["self"], "reference": reference}
    return literal


def _text(reference: Reference) -> dict[str, Any]:
    """Return how much of the text is new, and what so many positions would have seen."""
    text = text_numbers(reference.sequences, reference.prompt_lengths)
    return {"text": text, "power": power_statement(sum(numbers["effective_positions"] for numbers in text))}


def _diary(cell: Cell) -> dict[str, Any]:
    diary = cell.diary
    return {"cache": {**diary.cache, "notes": list(diary.notes)}, "seconds": dict(diary.seconds)}


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
