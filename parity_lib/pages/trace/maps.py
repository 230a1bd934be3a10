"""Two maps of a trace: error over floor by layer and position, and keys and values by layer and head."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity_lib.pages.kit.fragment import Picture
from parity_lib.pages.kit.grid import FAR, LOST, OVER, Grid, grid_picture
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


def layer_map(trace: TokenTrace, conclusion: Conclusion, words: Words | None = None) -> Picture:
    """Return the total error over its floor, layer by layer from the top, position by position from the left.

    The traced token is outlined, and in it the first layer that is over its floor. A long sequence has several
    positions in a column, of which it shows the worst.
    """
    words, share = words or Words(), trace.layers.share
    groups = _columns(share.shape[1], trace.place.row, max(16, _SQUARES // len(share)))
    names = [f"layer {layer}" for layer in range(len(share) - 1)] + ["logits"]
    worst = [[int(group[np.argmax(row[group])]) for group in groups] for row in share]
    bins = [_bins(row[picked], _EDGES) for row, picked in zip(share, worst, strict=True)]
    titles = [
        [_title(trace, words, name, row, at) for at in picked]
        for name, row, picked in zip(names, share, worst, strict=True)
    ]
    here = next(i for i, group in enumerate(groups) if trace.place.row in group)
    row_over = conclusion.layer
    n_over = int((share > 1).sum())
    alt = (
        f"Map of the total error over its floor: {len(share) - 1} layers and the logits, {share.shape[1]} positions; "
        f"{n_over} of {share.size} places over their floor"
        + (f", the first in {names[row_over]}." if row_over is not None else ".")
    )
    grid = Grid(
        title="error over its floor; column: position (tokens above), row: after that layer",
        rows=names,
        ticks=_ticks(trace, groups, here),
        bins=bins,
        titles=titles,
        legend=list(enumerate(_LABELS)),
        column=here,
        cell=None if row_over is None else (row_over, here),
    )
    return grid_picture(
        grid,
        alt=alt,
        caption=f"burn against llama.cpp on the F32 twin, as a share of a floor: {number(FLOOR, 3)} times the "
        "error of the engine that is nearer to the float64 oracle. Outlined: the traced token"
        + (", and the first layer over its floor." if row_over is not None else "."),
    )


def head_map(trace: TokenTrace) -> Picture:
    """Return the relative error of K after RoPE and of V at the traced token, layer by layer and head by head."""
    row = trace.place.row - trace.place.first
    keys, values = (np.sqrt(trace.followed.heads[name][:, :, row]) for name in ("Kcur", "Vcur"))
    n_layer, n_head = keys.shape
    bins = [_bins(np.concatenate([keys[layer], values[layer]]), _DECADES) for layer in range(n_layer)]
    titles = [
        [
            f"layer {layer}, {name} of KV head {head}: {number(float(value))}"
            for name, line in (("K", keys), ("V", values))
            for head, value in enumerate(line[layer])
        ]
        for layer in range(n_layer)
    ]
    layer, head = np.unravel_index(int(np.argmax(np.nan_to_num(keys, nan=np.inf))), keys.shape)
    alt = (
        f"Keys and values by layer and head at token {trace.place.token_idx}: largest relative error of a key head "
        f"{number(float(keys.max()))} (layer {layer}, head {head}), of a value head {number(float(values.max()))}."
    )
    ticks = {0: "K of head 0 …", n_head: "V of head 0 …"} if n_head * 18 > 110 else {0: "K", n_head: "V"}
    grid = Grid(
        title=f"relative error of K (after RoPE) and V at token {trace.place.token_idx}; column: KV head, row: layer",
        rows=[f"layer {layer}" for layer in range(n_layer)],
        ticks=ticks,
        bins=bins,
        titles=titles,
        legend=list(enumerate(_HEAD_LABELS)),
        pitch=18,
    )
    caption = (
        f"What goes into the cache at the traced token: {n_head} heads of K, then {n_head} of V. Total error on "
        "the F32 twin, not the op's own."
    )
    return grid_picture(grid, alt=alt, caption=caption)


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


def _bins(values: F64, edges: Sequence[float]) -> list[int]:
    """Return the class of each value; what is not finite has its own."""
    classes = np.searchsorted(edges, values, side="left")
    classes = np.where(classes >= len(edges), FAR, classes)
    classes = np.where(classes == OVER, OVER, classes)
    return [int(c) for c in np.where(np.isfinite(values), classes, LOST)]


def _title(trace: TokenTrace, words: Words, name: str, row: F64, at: int) -> str:
    fed = words.tokens.get(trace.place.sequence[at])
    after = "" if fed is None else f" after {quoted(fed)}"
    size = f"{number(float(row[at]))}x its floor" if np.isfinite(row[at]) else "not finite"
    return f"{name}, token {at - trace.place.n_prompt + 1}{after}: {size}"
