"""What a trace says, in sentences: the first op over its limit, the shape of the drift, whose error it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from parity_lib.base.names import Outcome
from parity_lib.judge.align import align
from parity_lib.judge.blame import BURN_WORSE, EQUAL, Blame
from parity_lib.judge.drift_shape import Kind, Shape, shape_of
from parity_lib.judge.t3_ops import judge_ops
from parity_lib.numerics.op_error import OpError
from parity_lib.pages.cell.positions import Positions, positions
from parity_lib.pages.kit.op_names import op_words, short_name
from parity_lib.pages.kit.shape_words import shape_words
from parity_lib.pages.kit.text import Words, count, margin, number, percent, signed
from parity_lib.records.verdicts import Divergence
from parity_lib.trace.runs import Names
from parity_lib.trace.token import TokenTrace

_CANCEL = 3.0  # sizes of the parts together, over the delta: above it no part is most of it


@dataclass(frozen=True, slots=True, eq=False)
class Conclusion:
    """What a trace comes to."""

    outcome: Outcome
    sentence: str  # the one on top
    more: tuple[str, ...]
    first: Divergence | None  # the first op over its limit, up to the traced token
    on_twin: bool  # that op was found on the F32 twin alone
    layer: int | None  # the first layer over its floor, up to the traced token; n_layer stands for the logits
    shape: Shape
    blame: Blame  # of the logits


def trace_conclusion(trace: TokenTrace, words: Words | None = None, *, broken: str = "") -> Conclusion:
    """Return what the trace shows of its token; later positions are named apart and do not change the outcome.

    Args:
        trace: of the token.
        words: texts of tokens and names of prompts.
        broken: what broke in the cell that the trace belongs to, which a trace need not show: without a finding the
            outcome is then INCOMPLETE, not PARITY.
    """
    words, shown = words or Words(), traced_positions(trace)
    row, lost = trace.place.row, lost_op(trace)
    blame = _blame(trace, lost)
    first, on_twin = first_op(trace)
    over = np.flatnonzero(trace.layers.pooled(row + 1) > 1)
    layer = int(over[0]) if over.size else None
    shape = shape_of(trace.layers.share[-1])
    wrong = (
        lost is not None or first is not None or layer is not None or not shown.share[row] <= 1 or blame.word != EQUAL
    )
    outcome = Outcome.DIVERGED if wrong or trace.own.parted else Outcome.PARITY
    lacks = trace.native.compared != trace.native.expected
    if outcome is Outcome.PARITY and (lacks or broken):
        outcome = Outcome.INCOMPLETE
    whose = _whose(blame, trace.names, found=wrong)
    if wrong:
        where = _first_words(trace, first, on_twin, layer)
        sentence = f"{where}; {_shape_words(shape, named=first is not None)}. {whose}"
        if lost is not None:
            sentence = _lost_words(trace, lost)
    elif trace.own.parted:
        other = _lower(_lacking(trace) if lacks else _green(trace))
        sentence = f"{_parted(trace)} Against {trace.names.reference}: {other}"
    elif lacks:
        sentence = f"{_lacking(trace)} {whose}"
    elif broken:
        sentence = f"The cell broke {broken}, which this trace does not repeat. {_green(trace)}"
    else:
        sentence = f"{_green(trace)} {whose}"
    own = [_parted(trace)] if wrong or not trace.own.parted else []
    more = [_delta_words(trace, shown, words), *_parts_words(trace), *own, *_after(trace, shown, wrong=wrong)]
    return Conclusion(outcome, sentence, tuple(more), first, on_twin, layer, shape, blame)


def traced_positions(trace: TokenTrace) -> Positions:
    """Return the traced sequence's rows with their limits."""
    return positions(trace.pair, trace.limits, trace.twin_divergences)


def first_op(trace: TokenTrace) -> tuple[Divergence | None, bool]:
    """Return the first op over its limit up to the traced token, and whether only the F32 twin shows it."""
    row = trace.place.row
    native = _over(trace, [error for error in trace.ops.errors if error.first_position <= row])
    if native is not None:
        return native, False
    twin = [error for error in trace.twin_ops if not error.share <= 1 and _first_wrong(error) <= row]
    return _over(trace, twin), True


def lost_op(trace: TokenTrace) -> OpError | None:
    """Return the first op whose value in the reference is not finite up to the traced token: first on the file."""
    row = trace.place.row
    return next((e for e in (*trace.ops.errors, *trace.twin_ops) if e.lost is not None and e.lost <= row), None)


def _blame(trace: TokenTrace, lost: OpError | None) -> Blame:
    """Return whose error it is at the logits; the reference's where only its own path to them is not finite."""
    found = trace.layers.blames[-1]
    return replace(found, llamacpp=np.inf, low=0.0, high=0.0) if lost is not None and _burn_finite(trace) else found


def _burn_finite(trace: TokenTrace) -> bool:
    return not trace.pair.candidate.n_nonfinite[trace.place.row]


def _lost_words(trace: TokenTrace, lost: OpError) -> str:
    """Return where the reference's values are first not finite, and whose fault that is."""
    reference, burn = trace.names.reference, trace.names.candidate
    on_twin = " on the F32 twin" if all(lost is not error for error in trace.ops.errors) else ""
    at = (lost.lost or 0) - (trace.place.n_prompt - 1)
    where = f"{reference}'s own values are not finite{on_twin}: first at {op_words(lost.site)}, token {at}"
    if _burn_finite(trace):
        return f"{where}; {burn}'s logits are finite: {reference}'s fault."
    return f"{where}; {burn}'s logits are not finite either: check the file."


def _over(trace: TokenTrace, errors: Sequence[OpError]) -> Divergence | None:
    found = judge_ops([replace(trace.ops, errors=tuple(errors), expected=len(errors))])[1]
    return found[0] if found else None


def _first_wrong(error: OpError) -> int:
    """Return the first position that an op over its limits may be wrong at: where it is more than rounding."""
    wrong = np.flatnonzero(~(error.by_position <= 1e-11))
    return error.first_position + (int(wrong[0]) if wrong.size else 0)


def _first_words(trace: TokenTrace, first: Divergence | None, on_twin: bool, layer: int | None) -> str:
    if first is not None:
        where = " on the F32 twin; on the native path every op is inside its limit" if on_twin else ""
        size = f"local error {number(first.delta)} against {number(first.limit)}" if first.limit else "bits differ"
        return f"First over its limit: {op_words(first.where or '')}, {size}{where}"
    if layer is not None:
        name = "the logits" if layer == trace.cell.facts.n_layer else f"layer {layer}"
        share = float(trace.layers.pooled(trace.place.row + 1)[layer])
        return f"No single op is over its limit; first over its floor: {name}, total error {number(share)} times it"
    return "No single op is over its limit, and no layer is over its floor"


def _shape_words(shape: Shape, *, named: bool) -> str:
    """Return the shape of the drift, and what may cause it unless an op is named."""
    if shape.kind is Kind.INSIDE:
        return "the logits stay inside their floor at every position"
    return f"at the logits {shape_words(shape)}" if named else f"{shape_words(shape)}: points to {shape.causes}"


def _whose(blame: Blame, names: Names, *, found: bool) -> str:
    ratio, reference, burn = blame.ratio, names.reference, names.candidate
    if blame.word == EQUAL:
        end = "the fault does not show in these logits" if found else "no engine is at fault"
        return f"Both are about as far from the float64 oracle ({burn} {number(ratio)} times {reference}): {end}."
    farther, other = (burn, reference) if blame.word == BURN_WORSE else (reference, burn)
    times = ratio if blame.word == BURN_WORSE else (1 / ratio if ratio else float("inf"))
    if not np.isfinite(times):
        return f"{farther}'s logits are not finite: {farther}'s fault."
    return f"{farther} is {_times(times)} times as far from the float64 oracle as {other}: {farther}'s fault."


def _times(ratio: float) -> str:
    """Return a ratio with two digits, ``2.6`` or ``29,000``."""
    return number(ratio) if ratio < 100 else f"{float(f'{ratio:.2g}'):,.0f}"


def _lacking(trace: TokenTrace) -> str:
    why = f": {trace.native.note}" if trace.native.note else ""
    return f"Only {count(trace.native.compared)} of {count(trace.native.expected)} ops were judged{why}."


def _green(trace: TokenTrace) -> str:
    worst = max(trace.ops.errors, key=lambda error: error.share)
    return (
        f"All {count(trace.native.compared)} ops are right on {trace.names.reference}'s own inputs at token "
        f"{trace.place.token_idx}, nearest to its limit {op_words(worst.site)} at {percent(worst.share)} of it; "
        "every layer is inside its floor."
    )


def _parted(trace: TokenTrace) -> str:
    """Return whether the candidate's decode of the token equals its prefill, and where it does not."""
    own, burn = trace.own, trace.names.candidate
    if not own.sites:
        return f"{burn}'s decode of this token was not compared with its prefill: the sequence has no other token."
    if not own.parted:
        return f"{burn}'s decode of this token equals its prefill bit for bit at all {count(len(own.sites))} sites."
    return (
        f"{burn}'s decode of this token differs from its prefill (T6): first at {op_words(own.parted[0])}, by "
        f"{number(own.size)} of its value; {count(len(own.parted))} of {count(len(own.sites))} sites differ."
    )


def _lower(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _delta_words(trace: TokenTrace, shown: Positions, words: Words) -> str:
    row, names = trace.place.row, trace.names
    reference, candidate = shown.pair.reference.topk_ids[row, 0], shown.pair.candidate.topk_ids[row, 0]
    ratio = "not finite" if shown.nonfinite[row] else margin(float(shown.delta[row]), float(shown.limit[row]))
    top = f"top-1 of both {words.token(int(reference))}"
    if reference != candidate:
        top = f"top-1 of {names.reference} {words.token(int(reference))}, "
        top += f"of {names.candidate} {words.token(int(candidate))}"
    where = words.token(int(shown.delta_id[row]))
    limit = number(float(shown.limit[row]))
    return f"Delta {signed(float(shown.delta[row]))} logits at {where}, limit {limit} ({ratio}); {top}."


def _parts_words(trace: TokenTrace) -> list[str]:
    fall = trace.by_layer
    if fall is None or trace.by_op is None or not np.isfinite(fall.total):
        return ["A value on the way to this logit is not finite, so its delta could not be split by layer."]
    worst, op = fall.worst, trace.by_op.worst
    inside = f", inside of it {short_name(op.name)} {signed(op.value)}" if worst.name == f"layer {trace.block}" else ""
    if sum(abs(part.value) for part in fall.parts) > _CANCEL * abs(fall.delta):
        start = f"Split by layer, {signed(fall.total)} logits: parts of either sign that nearly cancel; the largest is"
        return [f"{start} {worst.name} with {signed(worst.value)}."]
    share = f" ({fall.share(worst.name) * 100:.0f} % of it)"
    most = f"most comes from {worst.name}, {signed(worst.value)}{share}{inside}"
    return [f"Split by layer, {signed(fall.total)} logits: {most}."]


def _after(trace: TokenTrace, shown: Positions, *, wrong: bool) -> list[str]:
    """Return what is over a limit only after the token, where every limit up to it held."""
    if wrong:
        return []
    late = [error for error in trace.ops.errors if not error.share <= 1]
    token = trace.place.token_idx
    seen = align(trace.pair, trace.place.positions)
    places = [seen.positions[i].token_idx for i in np.flatnonzero(~(shown.share <= 1)).tolist()]
    later = [place for place in places if place > token]
    found = [f"first op {op_words(late[0].site)}"] if late else []
    found += [f"logits from token {later[0]} on"] if later else []
    return [f"Over a limit only after this token: {', '.join(found)}. Trace that token."] if found else []
