"""Two maps of a trace: error over floor by layer and position, and keys and values by layer and head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity_lib.pages.kit.fragment import Fragment
from parity_lib.pages.kit.heat_map import HeatMap, Line, Square, classes, heat_map
from parity_lib.pages.kit.text import Words, number, quoted
from parity_lib.pages.trace.conclusion import Conclusion
from parity_lib.records.traces import F64
from parity_lib.trace.layers import FLOOR
from parity_lib.trace.token import TokenTrace

_SQUARES = 2000  # of one map: each costs the page some 170 bytes
_EDGES = (0.1, 0.25, 0.5, 1.0, 100.0)  # shares of the floor
_LABELS = ("≤ 10 %", "≤ 25 %", "≤ 50 %", "≤ floor", "over", "over 100x", "not finite")
_DECADES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-1)  # relative errors of a head
_HEAD_LABELS = ("≤ 1e-06", "≤ 1e-05", "≤ 1e-04", "≤ 1e-03", "≤ 0.1", "over 0.1", "not finite")


def layer_map(trace: TokenTrace, conclusion: Conclusion, words: Words | None = None) -> Fragment:
    """Return the total error over its floor, layer by layer from the top, position by position from the left.

    The traced token is outlined, and in it the first layer that is over its floor. A long sequence has several
    positions in a column, of which it shows the worst.
    """
    words, share = words or Words(), trace.layers.share
    groups = _columns(share.shape[1], trace.place.row, max(16, _SQUARES // len(share)))
    names = [f"layer {layer}" for layer in range(len(share) - 1)] + ["logits"]
    lines = []
    for name, row in zip(names, share, strict=True):
        picked = [int(group[np.argmax(row[group])]) for group in groups]
        titles = [_title(trace, words, name, row, at) for at in picked]
        lines.append(Line(name, [Square(*one) for one in zip(classes(row[picked], _EDGES), titles, strict=True)]))
    here = next(i for i, group in enumerate(groups) if trace.place.row in group)
    first, n_over = conclusion.layer, int((share > 1).sum())
    boxes = [(0, here, len(lines), 1), *([] if first is None else [(first, here, 1, 1)])]
    alt = (
        f"Map of the total error over its floor: {len(share) - 1} layers and the logits, {share.shape[1]} positions; "
        f"{n_over} of {share.size} places over their floor"
        + (f", the first in {names[first]}." if first is not None else ".")
    )
    marks = [("line", "the traced token" + (", in it the first layer over its floor" if first is not None else ""))]
    title = "total error over its floor; column: position (token above), line: after that layer"
    caption = (
        f"{trace.names.candidate} against {trace.names.reference} on the F32 twin, as a share of a floor: "
        f"{number(FLOOR, 3)} times the error of the engine that is nearer to the float64 oracle."
    )
    ticks = _ticks(trace, groups, here)
    return heat_map(HeatMap(title, lines, [*enumerate(_LABELS)], marks, ticks, boxes), alt=alt, caption=caption)


def head_map(trace: TokenTrace) -> Fragment:
    """Return the relative error of K after RoPE and of V at the traced token, layer by layer and head by head."""
    row = trace.place.row - trace.place.first
    keys, values = (np.sqrt(trace.followed.heads[name][:, :, row]) for name in ("Kcur", "Vcur"))
    n_layer, n_head = keys.shape
    lines = []
    for layer in range(n_layer):
        line = np.concatenate([keys[layer], values[layer]])
        heads = [f"{name} of KV head {head}" for name in "KV" for head in range(n_head)]
        titles = [f"layer {layer}, {of}: {number(float(value))}" for of, value in zip(heads, line, strict=True)]
        lines.append(
            Line(f"layer {layer}", [Square(*one) for one in zip(classes(line, _DECADES), titles, strict=True)])
        )
    at = np.unravel_index(int(np.argmax(np.nan_to_num(keys, nan=np.inf))), keys.shape)
    alt = (
        f"Keys and values by layer and head at token {trace.place.token_idx}: largest relative error of a key head "
        f"{number(float(keys.max()))} (layer {at[0]}, head {at[1]}), of a value head {number(float(values.max()))}."
    )
    title = f"relative error of K (after RoPE) and V at token {trace.place.token_idx}; column: KV head, line: layer"
    caption = (
        f"What goes into the cache at the traced token: {n_head} heads of K, then {n_head} of V. Total error on "
        "the F32 twin, not the op's own."
    )
    ticks = {0: "K", n_head: "V"}
    return heat_map(HeatMap(title, lines, [*enumerate(_HEAD_LABELS)], ticks=ticks, pitch=18), alt=alt, caption=caption)


def _columns(n: int, row: int, most: int) -> list[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Return the positions of each column; the traced one stands alone."""
    if n <= most:
        return [np.array([i], np.intp) for i in range(n)]
    step = -(-n // (most - 2))
    before, after = np.arange(row), np.arange(row + 1, n)
    parts = [part[i : i + step] for part in (before,) for i in range(0, len(part), step)]
    parts.append(np.array([row]))
    return parts + [after[i : i + step] for i in range(0, len(after), step)]


def _ticks(trace: TokenTrace, groups: Sequence[np.ndarray[tuple[int], np.dtype[np.intp]]], here: int) -> dict[int, str]:
    """Return the token's number above some columns, never so near that they touch."""
    offset, found = trace.place.n_prompt - 1, {here: f"{trace.place.token_idx}"}
    for column, group in enumerate(groups):
        if column % 8 == 0 and abs(column - here) >= 4:
            found[column] = str(int(group[0]) - offset)
    return found


def _title(trace: TokenTrace, words: Words, name: str, row: F64, at: int) -> str:
    fed = words.tokens.get(trace.place.sequence[at])
    after = "" if fed is None else f" after {quoted(fed)}"
    size = f"{number(float(row[at]))}x its floor" if np.isfinite(row[at]) else "not finite"
    return f"{name}, token {at - trace.place.n_prompt + 1}{after}: {size}"
