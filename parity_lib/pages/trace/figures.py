"""Figures of a trace: the errors layer by layer at the token, and the waterfall of one logit's delta."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from parity_lib.engines import sites
from parity_lib.judge.waterfall import Waterfall
from parity_lib.pages.kit.figures import Gallery, Palette, Picture, decades, picture, plain_decades
from parity_lib.pages.kit.op_names import short_name
from parity_lib.pages.kit.text import Words, number, signed
from parity_lib.records.traces import F64
from parity_lib.trace.token import TokenTrace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (11.4, 3.0)
_LABELLED = 4  # parts of a waterfall with their number
_LABEL_FROM = 0.25  # of the largest: smaller parts go without
_ASTRAY = 1e4  # a relative error beyond it is drawn at the top: its size has no meaning
_SHOWN_TICKS = 34  # labels of an axis that fit side by side
_UPRIGHT = 12  # of them: more are turned where a name is long


def layer_profile(trace: TokenTrace) -> Gallery:
    """Return both engines' errors against the float64 oracle, their distance, and each layer's local error."""
    names, row, layers = trace.names, trace.place.row, trace.layers
    burn, llamacpp, total, floor = (
        np.nan_to_num(values[:, row], nan=np.inf)
        for values in (layers.burn, layers.llamacpp, layers.total, layers.floor)
    )
    local = local_errors(trace)
    axis = decades(np.minimum([*burn, *llamacpp, *total, *local, *floor], _ASTRAY).tolist())
    ticks = [*map(str, range(len(total) - 1)), "logits"]
    worst = int(np.argmax(local))

    def draw(figure: Figure, ink: Palette) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(total))
        clip = [np.clip(values, *axis) for values in (floor, local, total, burn, llamacpp)]
        axes.fill_between(x, axis[0], clip[0], color=ink.band, linewidth=0, label="inside the floor")
        axes.bar(
            x,
            clip[1] - axis[0],
            bottom=axis[0],
            width=0.5,
            color=ink.steps[2],
            label="local error, worst op of the layer",
        )
        axes.plot(
            x, clip[2], "-", color=ink.ink, linewidth=1.6, label=f"{names.candidate} to {names.reference} (total)"
        )
        axes.plot(x, clip[3], "o-", color=ink.orange, markersize=3.5, label=f"{names.candidate} to float64 oracle")
        axes.plot(x, clip[4], "s--", color=ink.green, markersize=3, label=f"{names.reference} to float64 oracle")
        axes.set_yscale("log")
        axes.set_ylim(*axis)
        plain_decades(axes)
        axes.minorticks_off()
        _name_ticks(axes, ticks)
        axes.set_xlabel("after layer")
        axes.set_title(f"relative error at token {trace.place.token_idx}")
        figure.legend(loc="outside right center", fontsize=8)

    where = "head" if worst == len(local) - 1 else f"layer {worst}"
    alt = (
        f"Errors layer by layer at token {trace.place.token_idx}. In the logits {names.candidate} is "
        f"{number(float(burn[-1]))} from the oracle, {names.reference} {number(float(llamacpp[-1]))}, both "
        f"{number(float(total[-1]))} apart. Largest local error {number(float(local[worst]))} ({where})."
    )
    caption = (
        f"Bars: local error of each layer's worst op on {names.reference}'s own inputs, on the F32 twin. Lines: the "
        "error since the embedding. Where a bar reaches the total, the error arises; where it does not, it is "
        "inherited."
    )
    return Gallery((picture(draw, inches=_INCHES, alt=alt),), caption, frozenset({0}))


def local_errors(trace: TokenTrace) -> F64:
    """Return the largest relative error of an op in each layer, the head last, at the traced token, ``(n_layer + 1,)``.

    What is infinite, because a value is not finite, stays so.
    """
    local = np.zeros(len(trace.layers.total))
    for error in trace.twin_ops:
        block = sites.split(error.site)[1]
        place = -1 if block is None and error.site != "embd" else block or 0
        at = trace.place.row - error.first_position
        if 0 <= at < len(error.by_position):
            local[place] = max(local[place], float(np.sqrt(error.by_position[at])))
    return local


def falls(trace: TokenTrace, words: Words | None = None) -> Gallery:
    """Return the waterfall of the delta by layer, and inside of the layer with the largest part by op."""
    words = words or Words()
    if trace.by_layer is None or trace.by_op is None or not np.isfinite(trace.by_layer.total):
        return Gallery((), "A value on the way to this logit is not finite, so its delta could not be split by layer.")
    token, reference, burn = words.token(trace.delta_id), trace.names.reference, trace.names.candidate
    pictures = (
        _fall(trace.by_layer, f"delta of {token} by layer", f"{burn} from {reference}'s values at each place"),
        _fall(trace.by_op, f"layer {trace.block} by op", f"inside of layer {trace.block}"),
    )
    sums = " ".join(
        f"{name} sum to {signed(fall.total, 6)} of {signed(fall.delta, 6)}."
        for name, fall in (("Layers", trace.by_layer), (f"Ops of layer {trace.block}", trace.by_op))
    )
    caption = (
        f"Logits, {burn} minus {reference}. Each bar is what {burn} adds between two places when it is given "
        f"{reference}'s values up to the first of them. {sums}"
    )
    return Gallery(pictures, caption, frozenset({0, 1}))


def _fall(fall: Waterfall, title: str, how: str) -> Picture:
    values = np.array([part.value for part in fall.parts])
    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    ends = np.cumsum(finite)
    starts = ends - finite
    names = [short_name(part.name) for part in fall.parts]
    largest = set(np.argsort(-np.abs(finite))[:_LABELLED].tolist())

    def draw(figure: Figure, ink: Palette) -> None:
        axes = figure.add_subplot()
        x = np.arange(len(finite))
        colours = [ink.orange if value > 0 else ink.blue for value in finite]
        bars = axes.bar(x, finite, bottom=starts, width=0.7, color=colours, edgecolor=ink.ink, linewidth=0.4)
        for bar, value in zip(bars, finite, strict=True):
            if value < 0:
                bar.set_hatch("//")  # a second sign besides the colour
        axes.step(np.append(x, len(x)) - 0.5, np.append(starts, ends[-1]), where="post", color=ink.soft, linewidth=0.6)
        axes.axhline(0, color=ink.soft, linewidth=0.8)
        for place in sorted(largest):
            if abs(finite[place]) >= _LABEL_FROM * np.abs(finite).max() > 0:
                top = max(starts[place], ends[place])
                axes.annotate(
                    signed(float(values[place])),
                    (place, top),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                )
        low, high = min(0.0, ends.min(), starts.min()), max(0.0, ends.max(), starts.max())
        room = 0.15 * (high - low or 1.0)
        axes.set_ylim(low - 0.3 * room, high + room)
        axes.yaxis.set_major_formatter(lambda value, _: number(value) if value else "0")
        _name_ticks(axes, names)
        axes.set_title(f"{title}: {signed(fall.total, 4)} logits")

    worst = fall.worst
    alt = (
        f"Waterfall, {title}: {len(fall.parts)} parts sum to {signed(fall.total)} logits; the largest is {worst.name} "
        f"with {signed(worst.value)}. {how}."
    )
    return picture(draw, inches=_INCHES, alt=alt)


def _name_ticks(axes: Axes, names: list[str]) -> None:
    """Name the places of an axis; long names are turned, and of too many only some are named."""
    step = 1 + (len(names) - 1) // _SHOWN_TICKS
    places = list(range(0, len(names), step))
    turned = len(names) > _UPRIGHT and any(len(name) > 6 for name in names)
    axes.set_xticks(
        places, [names[place] for place in places], rotation=35 if turned else 0, ha="right" if turned else "center"
    )
    axes.tick_params(length=2, labelsize=8)
    axes.set_xlim(-0.8, len(names) - 0.2)
