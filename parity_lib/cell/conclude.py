"""What a cell concludes: the rungs of its rows, the numbers beside them, and the verdict over all rungs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from parity_lib.base.names import Compute, Outcome, Rung
from parity_lib.cell import prompt_tokens, t0_pins
from parity_lib.cell import rows as logits
from parity_lib.cell.bf16 import report_bf16
from parity_lib.cell.climbed import Bf16Rows, Climbed, Failed, Finding, Found, attempt
from parity_lib.cell.findings import REQUIRED, Judgement
from parity_lib.cell.reference import Reference
from parity_lib.cell.reference_self import defaults_relation
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.engines.machine import machine_class
from parity_lib.judge.power import power_statement, text_numbers
from parity_lib.judge.t0_pins import PinCheck
from parity_lib.judge.t4_twin import judge_twin
from parity_lib.judge.t5_native import accuse_reference, judge_native, name_site, report_native, with_site
from parity_lib.model_file.facts import NO_TOKENIZER
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP
from parity_lib.records.measured import Cache, Measured, joined
from parity_lib.records.runs import RunInfo
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.self_spread_pins import load_spreads
from parity_lib.records.traces import PairTrace, Position, expected_positions
from parity_lib.records.verdicts import RungResult, Verdict
from parity_lib.records.verdicts import conclude as concluded

Known = Any  # the fields of a verdict, each of its own type


@dataclass(frozen=True, slots=True, eq=False)
class _Paired:
    """A rung that is judged on two engines' rows, and these rows."""

    finding: Finding
    pair: PairTrace


def required_rungs(cell: Cell) -> tuple[Rung, ...]:
    """Return what a cell must climb before it can be at parity: REQUIRED, but T1 only where there is text.

    A cell in bf16 climbs T4 and T5 too, where they only report.
    """
    silent = cell.facts.tokenizer == NO_TOKENIZER
    return tuple(rung for rung in REQUIRED if not (silent and rung is Rung.T1))


def conclude(cell: Cell, climbed: Climbed) -> Judgement:
    """Judge T0, T4 and T5, and conclude over all rungs. Every expected position is counted, delivered or not.

    A rung whose step failed is INCOMPLETE with the reason; one whose step was not run is left out. If the cell needs a
    rung that is left out, it is INCOMPLETE and names it.
    """
    if isinstance(climbed.pins, Failed):
        return Judgement(incomplete(cell, str(climbed.pins)))
    twin, native = _judge_rows(cell, climbed)
    runs = _runs(climbed)
    judged = {
        Rung.T0: attempt(cell, judge_engines, climbed.pins, runs),
        Rung.T1: climbed.tokens,
        Rung.T2: climbed.weights,
        Rung.T3: climbed.ops,
        Rung.T4: twin.finding if isinstance(twin, _Paired) else twin,
        Rung.T5: native.finding if isinstance(native, _Paired) else native,
        Rung.T6: climbed.itself,
        Rung.T7: climbed.isa,
    }
    findings = [found for found in judged.values() if isinstance(found, Finding)]
    rungs = _rungs(cell, climbed, judged)
    outcome, causes = concluded(rungs, required=required_rungs(cell))
    measured = _measured(cell, climbed, findings)
    verdict = _verdict(
        cell,
        outcome=outcome,
        rungs=rungs,
        divergences=tuple(d for found in findings for d in found.divergences),
        runs=runs,
        provisional=measured.provisional,
        causes=causes,
        measured=measured,
    )
    return _judgement(verdict, climbed, twin, native)


def _judgement(verdict: Verdict, climbed: Climbed, twin: Found[_Paired], native: Found[_Paired]) -> Judgement:
    """Return the verdict with its traces and limits, and with the text of the token ids that they name."""
    ours = twin.pair if isinstance(twin, _Paired) else None
    theirs = native.pair if isinstance(native, _Paired) else None
    text = climbed.reference.token_text if isinstance(climbed.reference, Reference) else {}
    seen = theirs if ours is None else ours
    return Judgement(
        verdict,
        twin=ours,
        native=theirs,
        limits=climbed.limits if isinstance(climbed.limits, DriftLimits) else None,
        spread=climbed.spread if isinstance(climbed.spread, SelfSpread) else None,
        token_text={} if seen is None else prompt_tokens.used_text(text, seen),
    )


def _rungs(cell: Cell, climbed: Climbed, judged: Mapping[Rung, Found[Finding]]) -> tuple[RungResult, ...]:
    """Return each rung that was judged or failed; a failure that hits several rungs is explained at the lowest."""
    rungs: list[RungResult] = []
    told: dict[Failed, Rung] = {}
    for rung, found in judged.items():
        if isinstance(found, Finding):
            rungs.append(found.rung)
        elif found is not None:
            first = told.setdefault(found, rung)
            note = str(found) if first is rung else f"not run: it needs {found.step}, which failed, see {first}"
            rungs.append(lost_rung(rung, note, _n_expected(cell, climbed, rung)))
    return tuple(rungs)


def lost_rung(rung: Rung, note: str, expected: int = 0) -> RungResult:
    """Return the result of a rung that could not be judged."""
    return RungResult(rung, Outcome.INCOMPLETE, expected, 0, worst=None, limit=None, unit="", note=note)


def _n_expected(cell: Cell, climbed: Climbed, rung: Rung) -> int:
    """Return how many positions a rung had to compare, or 0 if unknown."""
    if rung in (Rung.T4, Rung.T5) and isinstance(climbed.reference, Reference):
        return len(positions(cell, climbed.reference))
    return 0


def _runs(climbed: Climbed) -> dict[str, RunInfo]:
    """Return the run info of each side that delivered rows."""
    runs = {}
    if isinstance(climbed.reference, Reference):
        runs["reference"] = _observed(climbed.reference.rows.run, climbed.isa, LLAMA_CPP)
    if isinstance(climbed.twin, Rows):
        runs["reference-twin"] = climbed.twin.run
    if isinstance(climbed.candidate, Rows):
        runs["candidate"] = _observed(climbed.candidate.run, climbed.isa, BURN)
    if isinstance(climbed.spread, Bf16Rows):
        runs["reference-bf16-twin"] = climbed.spread.twin.run
    return runs


def _observed(run: RunInfo, isa: Found[Finding], engine: str) -> RunInfo:
    """Return an engine's run with the ISA target that the first proof of this engine has seen (T7)."""
    proofs = isa.measured.proofs if isinstance(isa, Finding) else ()
    seen = next((p.observed for p in proofs if p.evidence.engine == engine), run.isa_observed)
    return structs.replace(run, isa_observed=seen)


def judge_engines(cell: Cell, pins: Sequence[PinCheck], runs: Mapping[str, RunInfo]) -> Finding:
    """Judge T0 over the files and the engines that ran; the note names what the cache did."""
    rung = t0_pins.judge_all(cell, pins, runs)
    # A cached row that was refused costs nothing but time; a reader has to know of the disk or the hand that did it.
    return Finding(structs.replace(rung, note="; ".join(filter(None, [rung.note, *cell.diary.notes]))), ())


def _judge_rows(cell: Cell, climbed: Climbed) -> tuple[Found[_Paired], Found[_Paired]]:
    """Return T4 and T5: judged by limits and self-spread, or only reported, in a cell in bf16."""
    cell.progress.step("statistics")
    reference, twin, candidate = climbed.reference, climbed.twin, climbed.candidate
    if cell.id.compute == Compute.BF16:
        end = attempt(cell, report_twin, reference, twin, candidate, climbed.spread)
        return end, attempt(cell, report_deployed, reference, candidate)
    end = attempt(cell, judge_f32_twin, reference, twin, candidate, climbed.limits)
    native = attempt(cell, judge_deployed, reference, candidate, climbed.spread)
    if isinstance(end, _Paired) and isinstance(native, _Paired):
        rung, found = accuse_reference(end.finding.rung, native.finding.rung, native.finding.divergences)
        native = replace(native, finding=replace(native.finding, rung=rung, divergences=tuple(found)))
    return end, _with_site(native, climbed.ops)


def _with_site(native: Found[_Paired], ops: Found[Finding]) -> Found[_Paired]:
    """Name at T5 where the values of llama.cpp are first not finite, if the replay of its graph (T3) saw that."""
    replayed = ops.measured.ops if isinstance(ops, Finding) else None
    if not isinstance(native, _Paired) or replayed is None:
        return native
    words = replayed.non_finite
    rung = name_site(native.finding.rung, words, native.finding.divergences)
    found = tuple(with_site(divergence, words) for divergence in native.finding.divergences)
    return replace(native, finding=replace(native.finding, rung=rung, divergences=found))


def judge_f32_twin(cell: Cell, reference: Reference, twin: Rows, candidate: Rows, limits: DriftLimits) -> _Paired:
    """Judge T4: the candidate against llama.cpp on the F32 twin, by the predicted limits."""
    expected = positions(cell, reference)
    pair = logits.pair(twin, candidate, expected)
    rung, divergences, ledger = judge_twin(pair, expected, limits)
    return _Paired(Finding(rung, tuple(divergences), Measured(ledger=ledger.record())), pair)


def judge_deployed(cell: Cell, reference: Reference, candidate: Rows, spread: SelfSpread) -> _Paired:
    """Judge T5: the candidate against llama.cpp on the file as it is, by llama.cpp's own spread."""
    expected = positions(cell, reference)
    pair = logits.pair(reference.rows, candidate, expected)
    pin = load_spreads().find(
        cell.id.model, cell.id.quant, reference.rows.run.isa_requested, machine_class(), cell.suite.sha256
    )
    rung, divergences, numbers = judge_native(pair, expected, spread, pin)
    return _Paired(Finding(rung, tuple(divergences), numbers), pair)


def report_twin(cell: Cell, reference: Reference, twin: Rows, candidate: Rows, bf16: Bf16Rows) -> _Paired:
    """Report T4 against the BF16 twin: end to end no number judges the arithmetic of BF16."""
    rung, told, pair = report_bf16(bf16.twin, twin, candidate, bf16.plain, positions(cell, reference))
    return _Paired(Finding(rung, (), Measured(bf16=told)), pair)


def report_deployed(cell: Cell, reference: Reference, candidate: Rows) -> _Paired:
    """Report T5 literally, without a band; a row that is not finite diverges."""
    expected = positions(cell, reference)
    pair = logits.pair(reference.rows, candidate, expected)
    rung, divergences, numbers = report_native(pair, expected)
    return _Paired(Finding(rung, tuple(divergences), numbers), pair)


def positions(cell: Cell, reference: Reference) -> tuple[Position, ...]:
    """Return every position that the cell must score, from prompts and request, not from the rows that came back."""
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
        measured=_diary(cell),
    )


def _measured(cell: Cell, climbed: Climbed, findings: Sequence[Finding]) -> Measured:
    """Return the numbers of all rungs; beside burn's relations those of llama.cpp, and how much of the text is new."""
    found = joined([*(finding.measured for finding in findings), _diary(cell)])
    if isinstance(climbed.spread, SelfSpread) and found.itself is not None:
        relations = {**found.itself.reference, **defaults_relation(climbed.spread)}
        found = structs.replace(found, itself=structs.replace(found.itself, reference=relations))
    if isinstance(climbed.reference, Reference):
        text = text_numbers(climbed.reference.sequences, climbed.reference.prompt_lengths)
        power = power_statement(sum(numbers.effective_positions for numbers in text))
        found = structs.replace(found, text=text, power=power)
    return found


def _diary(cell: Cell) -> Measured:
    diary = cell.diary
    return Measured(cache=Cache(dict(diary.cache), tuple(diary.notes)), seconds=dict(diary.seconds))


def _verdict(cell: Cell, **known: Known) -> Verdict:
    return Verdict(
        cell=cell.id,
        unpinned=cell.unpinned,
        pins=t0_pins.recorded_pins(cell),
        control=cell.request.control,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.monotonic() - cell.started,
        **known,
    )
