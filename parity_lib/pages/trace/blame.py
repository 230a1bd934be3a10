"""Whose error it is on the deployed file: both engines against an oracle that rounds activations as the reference."""

from __future__ import annotations

from parity_lib.judge.blame import BURN_WORSE, EQUAL, LLAMA_WORSE, Blame
from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import number
from parity_lib.trace.runs import Names
from parity_lib.trace.token import TokenTrace


def _columns(names: Names) -> tuple[Column, ...]:
    reference, burn = names.reference, names.candidate
    return (
        Column("after"),
        Column(f"{burn} to float64 oracle", numeric=True),
        Column(f"{reference} to float64 oracle", numeric=True),
        Column(f"{burn} / {reference}", numeric=True),
        Column(f"{reference} / {burn}", numeric=True),
        Column("95 % interval"),
        Column("farther from the oracle"),
    )


def native_blame(trace: TokenTrace) -> Fragment:
    """Return the sentence for the logits of the deployed file, and the errors layer by layer, folded."""
    blames = trace.native_layers.blames
    rows = [_row(blame, trace.names) for blame in blames]
    logits, reference, burn = blames[-1], trace.names.reference, trace.names.candidate
    sentence = (
        "On the deployed file, relative error of the logits against a float64 oracle that rounds activations as the "
        f"reference does: {burn} {number(logits.burn)}, {reference} {number(logits.llamacpp)}; "
        f"{_words(logits, trace.names)}."
    )
    method = (
        "Relative error: norm of the difference over norm of the oracle's value, over the channels, pooled over the "
        f"positions up to the traced one; the interval is from a bootstrap over {logits.n} {logits.drawn}. A rounding "
        "that falls the other way changes every later input, so correct engines are far apart here and about equally "
        "far from the oracle. While every op is inside its limits, a larger error of one engine is chance, no fault."
    )
    layers = details(f"{len(rows)} rows: layer by layer", table(_columns(trace.names), rows, css="layers"))
    return paragraph(sentence) + layers + note(method)


def _row(blame: Blame, names: Names) -> list[str]:
    return [
        blame.where,
        number(blame.burn),
        number(blame.llamacpp),
        number(blame.ratio),
        number(_inverse(blame)),
        f"{number(blame.low)} to {number(blame.high)}",
        farther(blame, names),
    ]


def farther(blame: Blame, names: Names) -> str:
    """Return which engine is farther from the oracle, under its name in the trace."""
    worse = {BURN_WORSE: f"{names.candidate} worse", LLAMA_WORSE: f"{names.reference} worse"}
    return worse.get(blame.word, blame.word)


def _words(blame: Blame, names: Names) -> str:
    if blame.word == EQUAL:
        ratio = f"{names.candidate} over {names.reference} {number(blame.ratio)}"
        return f"about equal, {ratio} ({number(blame.low)} to {number(blame.high)})"
    return f"{farther(blame, names)}, {number(max(blame.ratio, _inverse(blame)))} times"


def _inverse(blame: Blame) -> float:
    return 1 / blame.ratio if blame.ratio else float("inf")
