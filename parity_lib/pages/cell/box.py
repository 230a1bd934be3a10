"""The verdict box: the ten seconds. What was concluded, where, how large against what limit, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from parity_lib.base.names import Outcome, Rung
from parity_lib.judge.first_divergence import TRACE_PAGE, first_divergence, is_traced
from parity_lib.pages.cell.bf16 import bf16_words
from parity_lib.pages.cell.drift_words import profile_words
from parity_lib.pages.cell.first_place import first_words, named_words, place_words, trace_command
from parity_lib.pages.cell.ladder import noun
from parity_lib.pages.cell.position_map import row_anchor
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.cell.t5_literal import load_expectations
from parity_lib.pages.kit.box import box
from parity_lib.pages.kit.fragment import Fragment
from parity_lib.pages.kit.outcomes import style_of
from parity_lib.pages.kit.text import Words, code_markup, count, margin, number, percent
from parity_lib.records.runs import burn
from parity_lib.records.verdicts import Verdict

_COUNTED = (Rung.T1, Rung.T6)  # their worst case is a number of texts, of rows
_FORK_STACKS = ("overlay", "spine")  # and what is made of them
_NEXT_FOR_CAUSE = "fix the cause, then run the cell again"


def verdict_box(
    verdict: Verdict,
    words: Words | None = None,
    links: Mapping[str, str] | None = None,
    shown: Positions | None = None,
) -> Fragment:
    """Return the headline of a cell's page.

    Args:
        verdict: the record of the cell.
        words: token texts and prompt names; ids stand alone where a text is missing.
        links: label to relative address, shown at the right of the first line.
        shown: positions of rung T4, for the shape of a drift; without them it is left out.
    """
    words = words or Words()
    title, sentences = headline(verdict), [*_body(verdict, words), *_profile(verdict, shown), next_step(verdict)]
    return box(
        style_of(verdict.outcome),
        title,
        name=str(verdict.cell),
        about=when(verdict),
        links=links,
        marks=_marks(verdict),
        sentences=[_to_row(sentence, verdict, words) for sentence in sentences],
        tab=f"{verdict.outcome} · {verdict.cell.model} · {verdict.cell.quant}",
    )


def cell_links(out_dir: Path | str, verdict: Verdict | None = None) -> dict[str, str]:
    """Return the pages that stand around a cell's page in the folder of a nightly run; empty for a cell on its own.

    A nightly run traces the first divergence of each cell but its red controls, see ``night.traced``.
    """
    if Path(out_dir).resolve().parent.name != "cells":
        return {}
    links = {"nightly run": "../../index.html", "machine and pins": "../../00_machine_and_pins.html"}
    if verdict is not None and is_traced(verdict):
        links = {"trace of the first divergence": TRACE_PAGE, **links}
    return links


def headline(verdict: Verdict) -> str:
    """Return the first line: outcome, rung, and how much of what was compared."""
    word = "CONTROL, " + verdict.outcome if verdict.control else str(verdict.outcome)
    broken, twin = verdict.lowest_broken, verdict.rung(Rung.T4)
    if verdict.outcome is Outcome.DIVERGED and broken is not None:
        hit = _n_hit(verdict, broken.rung)
        share = f": {count(hit)} of {count(broken.expected)} {noun(broken.rung)}" if hit else ""
        return f"{word} at rung {broken.rung.title}{share}"
    if verdict.outcome is Outcome.PARITY and twin is not None and twin.outcome is Outcome.PARITY:
        return f"{word} at {count(twin.compared)} of {count(twin.expected)} positions"
    if verdict.outcome is Outcome.PARITY:
        judged = [r.rung.value for r in verdict.rungs if r.outcome is Outcome.PARITY]
        reported = [r.rung.value for r in verdict.rungs if r.outcome is Outcome.REPORTED]
        return f"{word} at rungs {', '.join(judged)}" + (
            f"; {', '.join(reported)} reported, not gated" if reported else ""
        )
    if verdict.outcome is Outcome.INCOMPLETE and broken is not None and broken.rung is Rung.T0:
        return f"{word}: files or engines are not the pinned ones; no rung was judged"
    return f"{word}: {_incomplete_word(verdict)}"


def next_step(verdict: Verdict) -> str:
    """Return one sentence on what to do, with the command that reproduces the cell."""
    command = f"`{reproduce(verdict)}`" + (", with your own file and prompts" if verdict.unpinned else "")
    if verdict.outcome is Outcome.PARITY:
        return f"Next: no action needed. Run again: {command}"
    if verdict.outcome is Outcome.INVALID:
        return f"Next: the seeded fault was not caught, so no PARITY of this nightly run counts. Reproduce: {command}"
    if verdict.outcome is Outcome.DIVERGED:
        trace = trace_command(verdict)
        follow = f"trace it: `{trace}`" if trace else "the divergences below, worst first"
        return f"Next: {follow}. How to read it: docs/reading-a-divergence.md. Reproduce: {command}"
    return f"Next: {_NEXT_FOR_CAUSE}: {command}"


def reproduce(verdict: Verdict) -> str:
    """Return the command that runs this one cell again."""
    cell = verdict.cell
    command = f"parity run {cell.model} {cell.quant} --isa {cell.isa} --stack {cell.stack} --compute {cell.compute}"
    candidate = verdict.runs.get("candidate")
    return command + (f" --fault {candidate.fault}" if candidate is not None and candidate.fault else "")


def when(verdict: Verdict) -> str:
    """Return date and time to the minute, UTC."""
    stamp = verdict.created_at.replace("T", " ")
    return f"{stamp[:16]} UTC" if len(stamp) >= 16 else stamp


def which_burn(verdict: Verdict) -> str:
    """Return which burn ran, in words: a page must never leave this open."""
    stack = verdict.cell.stack
    if stack == "crates-io":
        return "crates.io burn, not the fork"
    return f"the fork, stack {stack}" if stack.startswith(_FORK_STACKS) else f"stack {stack}"


def _n_hit(verdict: Verdict, rung: Rung) -> int:
    """Return how many ops, positions, rows or tensors a rung names; a pooled number names no place."""
    own = [d for d in verdict.divergences if d.rung == rung]
    if rung is Rung.T3:
        return len(own)
    result = verdict.rung(rung)
    if rung in _COUNTED and result is not None and result.worst is not None:
        return int(result.worst)  # a divergence of these stands for several
    positions = {(d.prompt_idx, d.token_idx) for d in own if d.prompt_idx is not None}
    return len(positions) or (0 if rung in (Rung.T4, Rung.T5) else len({d.where for d in own}))


def _incomplete_word(verdict: Verdict) -> str:
    n = len(verdict.causes)
    return f"the comparison could not be completed ({n} cause{'' if n == 1 else 's'})" if n else "no cause was recorded"


def _marks(verdict: Verdict) -> list[tuple[str, str]]:
    """Return what restricts the verdict, with the reason; it stands in the headline, never in a footnote."""
    candidate = verdict.runs.get("candidate")
    marks = [(which_burn(verdict), "the candidate's stack")]
    if candidate is not None and candidate.fault:
        library = f"library {burn(candidate).build.library}"
        reason = f"a fault was put into the candidate on purpose; it ran in the {library}, which is never judged"
        marks.append((f"seeded fault: {candidate.fault}, {library}", reason))
    if verdict.provisional:
        marks.append(
            ("provisional limits", "the self-spread that T5 is judged by is not pinned for this machine class")
        )
    if verdict.unpinned:
        marks.append(("unpinned", "the file or the prompts are the user's own; limits were derived on the fly"))
    proof = verdict.rung(Rung.T7)
    if proof is None or proof.outcome is not Outcome.PARITY:
        reason = "rung T7 is not part of this cell" if proof is None else proof.note
        word = "not on both sides" if proof is not None and proof.outcome is Outcome.REPORTED else "unproven"
        marks.append((f"{verdict.cell.isa} {word}", f"requested; {reason}"))
    return marks


def _body(verdict: Verdict, words: Words) -> list[str]:
    if verdict.outcome is Outcome.DIVERGED or verdict.outcome is Outcome.INVALID:
        return first_words(verdict, words) + _causes(verdict.causes)
    if verdict.outcome is Outcome.PARITY:
        return _inside(verdict)
    return _causes(verdict.causes) or ["No cause was recorded."]


def _profile(verdict: Verdict, shown: Positions | None) -> list[str]:
    """Return the shape of the drift where rung T4 saw one."""
    twin = verdict.rung(Rung.T4)
    if shown is None or twin is None or twin.outcome is not Outcome.DIVERGED:
        return []
    return [words for words in [profile_words(shown, named_words(verdict))] if words]


def _to_row(sentence: str, verdict: Verdict, words: Words) -> Markup:
    """Let the place of the first divergence lead to its row, where the page has one: rung T4's table."""
    first = first_divergence(verdict, Rung.T4) if sentence.startswith("First: ") else None
    if first is None or first.prompt_idx is None or first.token_idx is None:
        return code_markup(sentence)
    place = place_words(first, words)
    link = Markup('<a href="#{}">{}</a>').format(row_anchor(first.prompt_idx, first.token_idx), place)
    before, found, after = sentence.partition(place)
    return code_markup(before) + (link if found else "") + code_markup(after)


def _inside(verdict: Verdict) -> list[str]:
    """Return how far inside the limits a green cell is, and the literal numbers of the deployed file."""
    sentences = []
    twin = verdict.rung(Rung.T4)
    if twin is not None and twin.outcome is Outcome.PARITY:
        sentences.append(
            "Top-1 and top-5 set equal llama.cpp's on the F32 twin at every scored position. "
            f"Worst {number(twin.worst)} {twin.unit}, limit {number(twin.limit)} ({margin(twin.worst, twin.limit)})."
        )
    sentences += [words for words in [bf16_words(verdict)] if words]
    deployed = verdict.rung(Rung.T5)
    if deployed is not None and deployed.outcome is Outcome.PARITY:
        size = f"{number(deployed.worst, 3)} of llama.cpp's self-spread ({deployed.worst_where})"
        inside = f"limit {number(deployed.limit, 3)} ({margin(deployed.worst, deployed.limit)})"
        sentences.append(f"On the deployed file the distance to llama.cpp is {size}, {inside}.")
    found = verdict.measured.native.generated if verdict.measured.native else None
    if found is not None:
        sentences.append(
            f"On the deployed file, generated tokens: top-1 equal {percent(found.top1_share)}, "
            f"top-5 set equal {percent(found.top5_set_share)}{_of_itself(verdict)}."
        )
    return sentences


def _of_itself(verdict: Verdict) -> str:
    """Return what llama.cpp's own settings reach among themselves, where that was published for this file."""
    own = load_expectations()[0].get((verdict.cell.model, verdict.cell.quant, "self"))
    if own is None:
        return ""
    shares = f"{percent(own['top1_share'])} and {percent(own['top5_set_share'])}"
    return f" (llama.cpp with its defaults against itself, published: {shares})"


def _causes(causes: Sequence[str]) -> list[str]:
    shown = [f"Cause: {cause}." if not cause.endswith(".") else f"Cause: {cause}" for cause in causes[:5]]
    return shown + ([f"And {len(causes) - 5} more causes, in the lines below."] if len(causes) > 5 else [])
