"""How hard the model is, on a cell's page: how far its scores, residuals and biases reach, beside a known model."""

from __future__ import annotations

from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, number
from parity_lib.records.hardness import BiasNorms, Extreme, load_known
from parity_lib.records.verdicts import Verdict

EXP_RANGE = -87.3
"""exp of less is no normal float32; the exp of the fork's ndarray does not check it (docs/findings.md, `exp-range`)."""


def hardness_table(verdict: Verdict, words: Words | None = None) -> Fragment:
    """Return the extremes of what T3 captured of llama.cpp, with their places, and what they mean for an exp."""
    hard = verdict.measured.hardness
    if hard is None:
        return paragraph(f"How hard this model is for an engine: {ABSENT}.")
    known = list(load_known().values())
    columns = (
        Column("llama.cpp's own values"),
        Column("here", numeric=True),
        Column("where"),
        *(Column(f"{one.model} {one.quant}", numeric=True) for one in known),
    )
    named = words or Words()
    rows = [
        ["largest attention score", *_extreme(hard.score, named), *(number(one.score, 4) for one in known)],
        [
            "deepest score below its row's largest",
            *_extreme(hard.depth, named),
            *(number(one.depth, 4) for one in known),
        ],
        [
            "largest value of the residual stream",
            *_extreme(hard.residual, named),
            *(number(one.residual, 4) for one in known),
        ],
        *(_biases(kind, norms, len(known)) for kind, norms in hard.biases.items()),
    ]
    notes = [f"Over {count(hard.rows)} rows, those that T3 replays.", _exp(hard.depth)]
    notes += [f"{one.model}: {one.source}." for one in known]
    return table(columns, rows, css="native") + note(" ".join(notes))


def _extreme(one: Extreme, words: Words) -> list[str]:
    head = "" if one.head is None else f", head {one.head}"
    return [number(one.value, 4), f"{one.site}{head}, {words.prompt(one.prompt_idx)}, token {one.token_idx}"]


def _biases(kind: str, norms: BiasNorms, n_known: int) -> list[str]:
    where = f"{norms.tensor}; median of all blocks {number(norms.median, 3)}"
    return [f"largest norm of {kind}", number(norms.largest, 4), where, *[NONE] * n_known]


def _exp(depth: Extreme) -> str:
    """Return whether the softmax of these rows leaves the range of an exp without a range check."""
    reaches = depth.value < EXP_RANGE
    return (
        "Softmax takes exp of a score minus its row's largest. An exp without a range check, as the fork's ndarray has "
        f"it (stack overlay), is wrong below {EXP_RANGE}: these rows reach {number(depth.value, 4)}, "
        + ("beyond it." if reaches else f"{number(depth.value - EXP_RANGE, 3)} above it.")
    )
