"""The drift of a cell's prompts in words: its shape, the prompts that it is in, and what may cause it.

It stands apart from the box that shows it because it has to agree with the page of a trace, which a test checks.
"""

from __future__ import annotations

import numpy as np

from parity_lib.judge.drift_shape import Kind, Shape, shape_of
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.shape_words import kinds_words, shape_words
from parity_lib.records.traces import F64


def profile_words(shown: Positions, named: str = "") -> str:
    """Return one or two sentences on the shape of the drift; empty where every position is inside its limits.

    Args:
        shown: positions of rung T4.
        named: what a lower rung found, "T3 named first, layer 15 `attn_norm`". A shape has several causes and
            can only guess at one, so it does not where one is known.
    """
    share = _share(shown)
    shape = shape_of(*(share[shown.of_prompt(prompt)] for prompt in shown.prompts()))
    if shape.kind is Kind.INSIDE:
        return ""
    points = f" Points to {shape.causes}{_fed(shape)}." if shape.causes else ""
    if named:
        points = f" Start at what {named}: the profile only shows where the error reaches the logits."
    return f"Profile: {shape_words(shape)}{_but(shape)}{_only(shown, shape)}.{points}"


def _share(shown: Positions) -> F64:
    """Return how much of its limit each position uses, of the nearer of both; 0 where it has no limit."""
    with np.errstate(invalid="ignore"):
        share = np.fmax(shown.share, shown.rms_over_std / shown.rms_limit)
    return np.where(shown.nonfinite, np.inf, np.nan_to_num(share, nan=0.0, posinf=np.inf))


def _but(shape: Shape) -> str:
    """Return the kinds of the prompts that are over in another way."""
    others = {kind for kind in shape.kinds if kind is not Kind.INSIDE} - {shape.kind}
    return f" ({kinds_words(shape)} prompts)" if others and shape.kind is not Kind.MIXED else ""


def _only(shown: Positions, shape: Shape) -> str:
    hit = [str(p) for p, kind in zip(shown.prompts(), shape.kinds, strict=True) if kind is not Kind.INSIDE]
    return "" if len(hit) == len(shape.kinds) else f", only in prompt{'s' if len(hit) > 1 else ''} {', '.join(hit)}"


def _fed(shape: Shape) -> str:
    """Return the other cause of a drift that is in some prompts alone: their tokens."""
    alone = Kind.INSIDE in shape.kinds and shape.kind is not Kind.ERRATIC
    return "; in these prompts alone, to the tokens that were fed" if alone else ""
