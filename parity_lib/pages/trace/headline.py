"""The headline of a trace: the one sentence, the delta, where it comes from."""

from __future__ import annotations

from markupsafe import Markup

from parity_lib.base.names import Outcome
from parity_lib.pages.kit.box import box
from parity_lib.pages.kit.fragment import Fragment
from parity_lib.pages.kit.outcomes import style_of
from parity_lib.pages.kit.scraps import record
from parity_lib.pages.kit.text import Words, code_markup
from parity_lib.pages.trace.blame import farther
from parity_lib.pages.trace.conclusion import Conclusion
from parity_lib.trace.token import TokenTrace

_TITLE = {
    Outcome.PARITY: ": every op and layer is inside its limit",
    Outcome.INCOMPLETE: ": the comparison is not complete",
}


def trace_box(trace: TokenTrace, conclusion: Conclusion, words: Words | None = None) -> Fragment:
    """Return the box on top of the page: outcome, place, the sentence, and what else is known in one line each."""
    words = words or Words()
    place, cell = trace.place, trace.cell.id
    fed = words.token(place.sequence[place.row])
    where = f"prompt {words.prompt(place.prompt_idx)}, token {place.token_idx}"
    title = f"{conclusion.outcome} at {where}{_TITLE.get(conclusion.outcome, '')}"
    marks = [f"after {fed}", f"position {place.row} of {len(place.sequence)} traced"]
    if trace.against:
        marks.insert(0, f"burn on {trace.against} in llama.cpp's place; llama.cpp generated the tokens")
    if trace.cell.request.fault:
        marks.insert(0, f"seeded fault: {trace.cell.request.fault}")
    if trace.cell.unpinned:
        marks.append("unpinned: limits derived from this sequence")
    first = Markup("<strong>{}</strong>").format(code_markup(conclusion.sentence))
    return box(
        style_of(conclusion.outcome),
        title,
        name=str(cell),
        marks=[(mark, "") for mark in marks],
        sentences=[first, *map(code_markup, [*conclusion.more, next_step(trace, conclusion)])],
        tab=f"trace {conclusion.outcome} · {cell.model} · {cell.quant} · p{place.prompt_idx} t{place.token_idx}",
    )


def next_step(trace: TokenTrace, conclusion: Conclusion) -> str:
    """Return one sentence on what to do, with the command."""
    if trace.reproducer is not None:
        return f"Next: replay the failing op without the model: `parity replay {trace.reproducer}`"
    if conclusion.outcome is Outcome.PARITY:
        return "Next: no action needed at this token; commands for other tokens are at the end of the page."
    return "Next: docs/reading-a-divergence.md; commands for other tokens are at the end of the page."


def record_trace(trace: TokenTrace, conclusion: Conclusion) -> None:
    """Store the conclusion in the running notebook, for programs: ``read_records``."""
    first = conclusion.first
    record("outcome", conclusion.outcome)
    record("sentence", conclusion.sentence)
    record("more", list(conclusion.more))
    record("first_site", "" if first is None else first.where)
    record("sides", {"reference": trace.names.reference, "candidate": trace.names.candidate})
    blame = conclusion.blame
    record("blame", {"word": farther(blame, trace.names), "low": blame.low, "high": blame.high})
