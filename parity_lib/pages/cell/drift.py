"""Drift by position: one small picture for each prompt, all on one vertical axis, the limit as a grey area."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from parity_lib.judge.align import row_scale
from parity_lib.pages.cell.position_map import LONG, no_position
from parity_lib.pages.cell.positions import Bools, Positions
from parity_lib.pages.kit.figures import Gallery, Palette, Picture, decades, picture, plain_decades
from parity_lib.pages.kit.fragment import Fragment
from parity_lib.pages.kit.text import NONE, Words, count, margin, number
from parity_lib.records.traces import F64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (3.75, 2.3)
_WIDE_INCHES = (11.4, 2.3)  # a long prompt, in a line of its own: it would be a black bar among the others
_MARGINS = (0.46, 0.26, 0.17, 0.26)  # inches: left, bottom, right, top
_KEY = (
    ("•", "|delta| at delta_id, larger where over its limit"),
    ("─", "rms over the whole vocabulary"),
    ("▒", "inside the limit of delta"),
    ("┄", "limit of rms"),
    ("│", "generation starts"),
    ("▽", "top-1 differs"),
    ("◇", "only the top-5 set differs"),
    ("×", "not finite, on the upper edge"),
)
_SPAN = 1e7  # decades below the limit that are worth showing; smaller deltas lie on the axis


def drift(shown: Positions | None, words: Words | None = None, token: int | None = None) -> Gallery | Fragment:
    """Return one picture for each prompt: |delta| and rms against the limit, over the token's place.

    With ``token``, that token is marked in every picture, and each picture has a line of its own.

    Both are shares of the row's standard deviation. What is exactly zero lies on the lower edge,
    what is not finite on the upper one.
    """
    if not shown:
        return no_position()
    words = words or Words()
    axis = _axis(shown)
    prompts = shown.prompts()
    wide = frozenset(i for i, prompt in enumerate(prompts) if token is not None or len(shown.of_prompt(prompt)) > LONG)
    pictures = tuple(_panel(shown, prompt, axis, words, token, i in wide) for i, prompt in enumerate(prompts))
    reference, candidate = shown.pair.reference.run, shown.pair.candidate.run
    sides = "burn against llama.cpp"
    if reference.engine == candidate.engine:  # two stacks, in a trace
        sides = f"burn on {candidate.stack} against burn on {reference.stack}"
    caption = (
        f"{sides} on {reference.model_path}. Horizontal: token; 0 chooses the first generated token, "
        "negative ones belong to the prompt. Vertical, the same in all: share of the row's std, log scale."
    )
    return Gallery(pictures, caption, wide, _KEY if token is None else (*_KEY, ("┃", "the traced token")))


def _axis(shown: Positions) -> tuple[float, float]:
    """Return the common vertical limits, whole powers of ten."""
    scale = row_scale(shown.pair.reference)
    sizes = [np.abs(shown.delta) / scale, shown.rms_over_std, shown.limit / scale, shown.rms_limit]
    values = np.concatenate(sizes)
    low, high = decades(values.tolist())
    return max(low, high / _SPAN / 100), high


def _panel(
    shown: Positions, prompt: int, axis: tuple[float, float], words: Words, token: int | None, is_wide: bool
) -> Picture:
    rows = shown.of_prompt(prompt)
    place = np.lexsort((-np.abs(shown.delta[rows]), -np.nan_to_num(shown.share[rows], nan=0.0)))[0]
    worst = rows[int(place)]
    size = "not finite" if shown.nonfinite[worst] else margin(float(shown.delta[worst]), float(shown.limit[worst]))
    title = f"{words.prompt(prompt)}: {'no limit' if size == NONE else size}"
    flips = "; ".join(_flip_words(shown, rows)) or "no flip"
    limit = "no limit" if size == NONE else f"limit {number(float(shown.limit[worst]))}"
    inches = _WIDE_INCHES if is_wide else _INCHES

    def draw(figure: Figure, ink: Palette) -> None:
        figure.set_layout_engine("none")  # the same margins in all, so that the axes stand under one another
        left, bottom, right, top = (m / inches[i % 2] for i, m in enumerate(_MARGINS))
        _draw(figure.add_axes((left, bottom, 1 - left - right, 1 - bottom - top)), shown, rows, axis, ink)
        figure.axes[0].set_title(title)
        if token is not None:
            figure.axes[0].axvline(token, color=ink.orange, linewidth=4, alpha=0.45, zorder=1.5)

    alt = (
        f"Prompt {words.prompt(prompt)}: drift over {count(len(rows))} positions. Largest |delta| "
        f"{number(abs(float(shown.delta[worst])))} logits at token {shown.token_idx[worst]}, "
        f"{limit}; {flips}." + ("" if token is None else f" Traced: token {token}.")
    )
    return picture(draw, inches=inches, alt=alt)


def _draw(axes: Axes, shown: Positions, rows: npt.NDArray[np.intp], axis: tuple[float, float], ink: Palette) -> None:
    low, high = axis
    scale, place = row_scale(shown.pair.reference)[rows], shown.token_idx[rows]
    delta, limit = np.abs(shown.delta[rows]) / scale, shown.limit[rows] / scale
    axes.fill_between(place, low, limit, step="mid", color=ink.band, linewidth=0)
    axes.plot(place, shown.rms_limit[rows], color=ink.green, linestyle=(0, (4, 2)), linewidth=0.9)
    axes.plot(place, _clip(shown.rms_over_std[rows], axis), color=ink.green, linewidth=1.2)
    over = ~(delta <= limit) & ~np.isnan(limit)
    dot = 3 if len(rows) <= LONG else 1.5
    axes.plot(place[~over], _clip(delta[~over], axis), ".", color=ink.blue, markersize=dot)
    axes.plot(place[over], _clip(delta[over], axis), "o", color=ink.orange, markersize=3.5)
    _mark(axes, place, _clip(delta, axis), shown.top1_flip[rows], "v", ink)
    _mark(axes, place, _clip(delta, axis), shown.top5_flip[rows] & ~shown.top1_flip[rows], "D", ink)
    lost = shown.nonfinite[rows]
    axes.plot(place[lost], np.full(int(lost.sum()), high), "x", color=ink.orange, markersize=6, clip_on=False)
    axes.axvline(-0.5, color=ink.soft, linewidth=0.9)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    plain_decades(axes)
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
