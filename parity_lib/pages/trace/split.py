"""The error split of a trace: what each kind of product is off by, and where that comes from."""

from __future__ import annotations

from parity_lib.judge.error_split import ErrorSplit, KindSplit
from parity_lib.pages.kit.fragment import Fragment, note
from parity_lib.pages.kit.op_names import op_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import count, number
from parity_lib.trace.runs import Names
from parity_lib.trace.token import TokenTrace

_COLUMNS = (
    Column("product"),
    Column("weights"),
    Column("dequantised differently", numeric=True),
    Column("activations rounded", numeric=True),
    Column("accumulation", numeric=True),
    Column("together", numeric=True),
    Column("worst layer"),
)


def split_table(trace: TokenTrace) -> Fragment:
    """Return what the reference's products are off by, kind by kind, and the same at the logits."""
    split = trace.split
    rows = [_row(kind) for kind in split.kinds]
    marks = ["bad" if kind.differ else "" for kind in split.kinds]
    return table(_COLUMNS, rows, marks=marks, css="split") + note(" ".join(_notes(split, trace.names)))


def _row(kind: KindSplit) -> list[str]:
    name = op_words(kind.worst).replace("`", "").split(" ")[-1]
    worst = op_words(kind.worst).replace("`", "").rpartition(" ")[0]
    return [
        name,
        f"{', '.join(kind.types)} x {kind.n}",
        count(kind.differ),
        number(kind.activations),
        number(kind.accumulation),
        number(kind.total),
        f"{worst}: {number(kind.worst_total)}" if worst else "-",
    ]


def _notes(split: ErrorSplit, names: Names) -> list[str]:
    reference, burn = names.reference, names.candidate
    said = [
        f"{reference}'s products on the deployed file, {split.n_positions} positions, against the float64 product",
        "of its own inputs: norm of the difference over norm of the product, pooled over layers. Activations rounded:",
        "what converting them to the weight's partner type does, in float64. Accumulation: what is left, its float32",
        "sums.",
    ]
    if split.differ:
        said.append(
            f"{count(split.differ)} weights are dequantised differently by {burn}: rounding does not explain that."
        )
    logits = split.logits
    if logits is None:
        return [*said, "A logit is not finite, so the logits could not be split."]
    said.append(
        f"At the logits, rms over their spread, {logits.n_positions} positions: {burn}'s f32 policy is "
        f"{number(logits.plain_to_reference)} from {reference}; rounding activations too (policy {logits.rounded}) "
        f"moves {burn} by {number(logits.plain_to_rounded)} and leaves {number(logits.rounded_to_reference)}. They "
        "need not sum: one rounding that falls the other way is another input for all layers after it."
    )
    return said
