"""Whose error it is on the deployed file: both engines against an oracle that rounds activations as the reference."""

from __future__ import annotations

from parity_lib.judge.blame import EQUAL, Blame
from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import number
from parity_lib.trace.token import TokenTrace

_COLUMNS = (
    Column("after"),
    Column("burn to float64 oracle", numeric=True),
    Column("llama.cpp to float64 oracle", numeric=True),
    Column("burn / llama.cpp", numeric=True),
    Column("llama.cpp / burn", numeric=True),
    Column("95 % interval"),
    Column("farther from the oracle"),
)


def native_blame(trace: TokenTrace) -> Fragment:
    """Return the sentence for the logits of the deployed file, and the errors layer by layer, folded."""
    blames = trace.native_layers.blames
    rows = [_row(blame) for blame in blames]
    logits = blames[-1]
    sentence = (
        "On the deployed file, relative error of the logits against a float64 oracle that rounds activations as the "
        f"reference does: burn {number(logits.burn)}, llama.cpp {number(logits.llamacpp)}; {_words(logits)}."
    )
    method = (
        "Relative error: norm of the difference over norm of the oracle's value, over the channels, pooled over the "
        f"positions up to the traced one; the interval is from a bootstrap over {logits.n} {logits.drawn}. A rounding "
        "that falls the other way changes every later input, so correct engines are far apart here and about equally "
        "far from the oracle. While every op is inside its limits, a larger error of one engine is chance, no fault."
    )
    layers = details(f"{len(rows)} rows: layer by layer", table(_COLUMNS, rows, css="layers"))
    return paragraph(sentence) + layers + note(method)


def _row(blame: Blame) -> list[str]:
    return [
        blame.where,
        number(blame.burn),
        number(blame.llamacpp),
        number(blame.ratio),
        number(_inverse(blame)),
        f"{number(blame.low)} to {number(blame.high)}",
        blame.word,
    ]


def _words(blame: Blame) -> str:
    if blame.word == EQUAL:
        return f"about equal, burn over llama.cpp {number(blame.ratio)} ({number(blame.low)} to {number(blame.high)})"
    return f"{blame.word}, {number(max(blame.ratio, _inverse(blame)))} times"


def _inverse(blame: Blame) -> float:
    return 1 / blame.ratio if blame.ratio else float("inf")
