"""The shape of the drift in words: where it starts, whether it stays and grows, and which parts of a model do that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from parity_lib.display.position_data import Bools, Positions
from parity_lib.display.text import count, percent
from parity_lib.traces import F64, I32

_MOST = 0.8  # share of the prompts, or of the positions after the start, that "each" and "stays" stand for
_FEW = 0.1  # share of the positions that "single positions" stands for
_GROWS = 2.0  # last third over first third, medians of rms


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    place: I32  # (n,) 0 is the first token that was fed of a prompt
    over: Bools  # (n,)
    rms: F64  # (n,) over the row's std


def profile_words(shown: Positions) -> str:
    """Return one or two sentences on the shape of what is over its limit; empty where nothing is.

    The likely parts follow from what a model can see at a position: at the first one there is a single key and
    RoPE turns by zero, so queries, keys and RoPE cannot be seen there, and everything else can.
    """
    shape = _shape(shown)
    if not shape.over.any():
        return ""
    prompts = [shown.of_prompt(prompt) for prompt in shown.prompts()]
    hit = [rows for rows in prompts if shape.over[rows].any()]
    starts = [int(shape.place[rows[np.argmax(shape.over[rows])]]) for rows in hit]
    n_first, n_over = sum(start == 0 for start in starts), int(shape.over.sum())
    if n_over <= max(3, _FEW * len(shown)):
        which = f"{count(n_over)} single position{'' if n_over == 1 else 's'}, the neighbours inside"
        return f"Profile: {which}{_only(shown, hit)}. Points to rows: one token's embedding, a near-tie, a tile's edge."
    stays = _stays(shape, hit)
    if n_first >= _MOST * len(prompts):
        where, cause = (
            "over its limit from the first position on",
            "what acts at every position: embedding, norms, V and output projections, feed-forward, output",
        )
    elif n_first == 0:
        where, cause = _later(starts), "what looks back at earlier positions: attention, KV cache, RoPE"
        cause += "" if len(hit) == len(prompts) else "; in these prompts alone, to the tokens that were fed"
    else:
        where, cause = f"over from the first position on in {n_first} of {len(prompts)} prompts", ""
    points = f" Points to {cause}." if cause else ""
    return f"Profile: {where}{stays}{_growth(shape)}{_only(shown, hit)}.{points}"


def _shape(shown: Positions) -> _Shape:
    place = np.zeros(len(shown), np.int32)
    for prompt in shown.prompts():
        rows = shown.of_prompt(prompt)
        place[rows] = np.arange(len(rows))
    with np.errstate(invalid="ignore"):
        over = (shown.share > 1) | (shown.rms_over_std > shown.rms_limit) | shown.nonfinite
    return _Shape(place, over, shown.rms_over_std)


def _later(starts: list[int]) -> str:
    """Return where it starts when every prompt's first position is inside."""
    start, n = Counter(starts).most_common(1)[0]
    if n >= _MOST * len(starts):
        inside = "at each prompt's first position" if start == 1 else f"up to fed position {start - 1}"
        return f"inside {inside}, over from fed position {start} on"
    low, high = min(starts), max(starts)
    return f"inside at each prompt's first position, over from fed positions {low} to {high} on"


def _stays(shape: _Shape, hit: list[np.ndarray[tuple[int], np.dtype[np.intp]]]) -> str:
    after = np.concatenate([shape.over[rows[int(np.argmax(shape.over[rows])) :]] for rows in hit])
    share = float(after.mean())
    return ", and stays over" if share >= _MOST else f", at {percent(share)} of the positions from there"


def _growth(shape: _Shape) -> str:
    place, rms = shape.place[shape.over], shape.rms[shape.over]
    finite = np.isfinite(rms)
    place, rms = place[finite], rms[finite]
    if len(place) < 12:
        return ""
    low, high = np.quantile(place, [1 / 3, 2 / 3])
    early, late = float(np.median(rms[place <= low])), float(np.median(rms[place >= high]))
    if early <= 0:
        return ""
    ratio = late / early
    return ", rising" if ratio >= _GROWS else ", falling" if ratio <= 1 / _GROWS else ", level"


def _only(shown: Positions, hit: list[np.ndarray[tuple[int], np.dtype[np.intp]]]) -> str:
    if len(hit) == len(shown.prompts()) or not hit:
        return ""
    names = ", ".join(str(int(shown.prompt_idx[rows[0]])) for rows in hit)
    return f", only in prompt{'s' if len(hit) > 1 else ''} {names}"
