"""Where a verdict broke first: the op or the position that a reader sees first, and that a trace starts from."""

from __future__ import annotations

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.records.traces import Position
from parity_lib.records.verdicts import Divergence, Verdict

TRACE_PAGE = "trace/03_trace.html"  # in the folder of a cell of a nightly run
TRACED = (Rung.T4, Rung.T3, Rung.T6, Rung.T5)  # whose position is traced, the most telling first


def first_divergence(verdict: Verdict, rung: Rung | None = None) -> Divergence | None:
    """Return the earliest divergence of a rung, by default the lowest broken one.

    Ops are stored in the order in which they ran, and that is theirs; positions go in the order of the fed tokens.
    """
    broken = verdict.lowest_broken
    asked = rung if rung is not None else broken.rung if broken is not None else None
    own = [d for d in verdict.divergences if d.rung == asked]
    if not own and rung is None:
        own = list(verdict.divergences)
    if own and own[0].kind is Kind.OP:
        return own[0]
    return min(own, key=_fed_order, default=None)


def first_position(verdict: Verdict) -> Position | None:
    """Return the position to trace: of the first divergence of the logits, else of an op, else of a row, or None."""
    for rung in TRACED:
        first = first_divergence(verdict, rung)
        if first is not None and first.prompt_idx is not None and first.token_idx is not None:
            return Position(first.prompt_idx, first.token_idx)
    return None


def is_traced(verdict: Verdict) -> bool:
    """Return whether a nightly run traces a cell: it diverged and is not a red control."""
    return verdict.outcome is Outcome.DIVERGED and not verdict.control and first_position(verdict) is not None


def self_broken(verdict: Verdict) -> str:
    """Return which T6 relation of burn to itself broke first, if only T6 diverged; else "".

    A trace repeats one of them, a decoded row beside the prefill; it cannot show the others.
    """
    broken = {d.rung for d in verdict.divergences}
    if broken != {Rung.T6}:
        return ""
    first = first_divergence(verdict, Rung.T6)
    return f"T6, burn against itself ({first.where})" if first is not None and first.where else "T6"


def _fed_order(divergence: Divergence) -> tuple[bool, int, int]:
    prompt, token = divergence.prompt_idx, divergence.token_idx
    return prompt is None, prompt if prompt is not None else 0, token if token is not None else 0
