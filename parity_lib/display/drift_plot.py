"""Drift by position: one small picture for each prompt, all on one vertical axis, the limit as a grey area."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from parity_lib.display.figures import Gallery, Palette, decades, picture
from parity_lib.display.page import Picture
from parity_lib.display.position_data import Bools, Positions
from parity_lib.display.text import NONE, Words, margin, number
from parity_lib.traces import F64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (3.75, 2.3)
_SPAN = 1e7  # decades below the limit that are worth showing; smaller deltas lie on the axis


def drift(shown: Positions, words: Words | None = None) -> Gallery:
    """Return one picture for each prompt: |delta| and rms against the limit, over the token's place.

    Both are shares of the row's standard deviation. What is exactly zero lies on the lower edge,
    what is not finite on the upper one.
    """
    words = words or Words()
    axis = _axis(shown)
    pictures = tuple(_panel(shown, prompt, axis, words) for prompt in shown.prompts())
    caption = (
        "Horizontal: token (0 chooses the first generated token; left of the line, and negative, is the prompt). "
        "Vertical, the same in all: share of the row's standard deviation, log. Dots: |delta| at delta_id. "
        "Line: rms over the whole vocabulary. Grey area: inside the limit of delta; dashed line: the limit of rms. "
        "Triangle: top-1 differs; diamond: only the top-5 set differs; cross on the upper edge: not finite."
    )
    return Gallery(pictures, caption)


def _axis(shown: Positions) -> tuple[float, float]:
    """Return the common vertical limits, whole powers of ten."""
    std = shown.pair.reference.std
    values = np.concatenate([np.abs(shown.delta) / std, shown.rms_over_std, shown.limit / std, shown.rms_limit])
    low, high = decades(values.tolist())
    return max(low, high / _SPAN / 100), high


def _panel(shown: Positions, prompt: int, axis: tuple[float, float], words: Words) -> Picture:
    rows = shown.of_prompt(prompt)
    worst = rows[int(np.argmax(np.nan_to_num(shown.share[rows], nan=0.0)))]
    size = "not finite" if shown.nonfinite[worst] else margin(float(shown.delta[worst]), float(shown.limit[worst]))
    title = f"{words.prompt(prompt)}: {'no limit' if size == NONE else size}"
    flips = _flip_words(shown, rows)

    def draw(figure: Figure, ink: Palette) -> None:
        _draw(figure.add_subplot(), shown, rows, axis, ink)
        figure.axes[0].set_title(title)

    alt = (
        f"Prompt {words.prompt(prompt)}: drift over {len(rows)} positions. Largest |delta| "
        f"{number(abs(float(shown.delta[worst])))} logits at token {shown.token_idx[worst]}, "
        f"limit {number(float(shown.limit[worst]))}; {'; '.join(flips) if flips else 'no flip'}."
    )
    return picture(draw, inches=_INCHES, alt=alt)


def _draw(axes: Axes, shown: Positions, rows: npt.NDArray[np.intp], axis: tuple[float, float], ink: Palette) -> None:
    low, high = axis
    std, place = shown.pair.reference.std[rows], shown.token_idx[rows]
    delta, limit = np.abs(shown.delta[rows]) / std, shown.limit[rows] / std
    axes.fill_between(place, low, limit, step="mid", color=ink.band, linewidth=0)
    axes.plot(place, shown.rms_limit[rows], color=ink.green, linestyle=(0, (4, 2)), linewidth=0.9)
    axes.plot(place, _clip(shown.rms_over_std[rows], axis), color=ink.green, linewidth=1.2)
    over = ~(delta <= limit) & ~np.isnan(limit)
    axes.plot(place[~over], _clip(delta[~over], axis), ".", color=ink.blue, markersize=3)
    axes.plot(place[over], _clip(delta[over], axis), "o", color=ink.orange, markersize=3.5)
    _mark(axes, place, _clip(delta, axis), shown.top1_flip[rows], "v", ink)
    _mark(axes, place, _clip(delta, axis), shown.top5_flip[rows] & ~shown.top1_flip[rows], "D", ink)
    lost = shown.nonfinite[rows]
    axes.plot(place[lost], np.full(int(lost.sum()), high), "x", color=ink.orange, markersize=6, clip_on=False)
    axes.axvline(-0.5, color=ink.soft, linewidth=0.9)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(int(place.min()) - 1, int(place.max()) + 1)
    axes.tick_params(length=2.5)
    axes.minorticks_off()


def _mark(axes: Axes, place: npt.NDArray[np.int32], value: F64, mask: Bools, shape: str, ink: Palette) -> None:
    axes.plot(
        place[mask], value[mask], shape, markersize=8, markerfacecolor="none", markeredgecolor=ink.ink, linestyle="none"
    )


def _clip(values: F64, axis: tuple[float, float]) -> F64:
    return np.clip(np.nan_to_num(values, nan=axis[1], posinf=axis[1]), *axis)


def _flip_words(shown: Positions, rows: npt.NDArray[np.intp]) -> list[str]:
    top1, top5 = shown.top1_flip[rows], shown.top5_flip[rows]
    pairs = (("top-1 differs", top1), ("only the top-5 set differs", top5 & ~top1))
    return [f"{name} at tokens {_listing(shown.token_idx[rows][mask])}" for name, mask in pairs if mask.any()]


def _listing(places: npt.NDArray[np.int32]) -> str:
    texts = [str(int(place)) for place in places[:8]]
    return ", ".join(texts) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
