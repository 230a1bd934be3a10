"""Rung T2 of a file in pictures: type, shape and size of the numbers of every tensor, and their course over layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity_lib.base.names import Rung
from parity_lib.cell.file_check import TensorNumbers
from parity_lib.pages.kit.figures import Gallery, Palette, Picture, picture, plain_decades
from parity_lib.pages.kit.fragment import Fragment, details, joined
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import count, number, size
from parity_lib.records.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    Column("tensor"),
    Column("type"),
    Column("shape"),
    Column("values", numeric=True),
    Column("bytes", numeric=True),
    Column("rms", numeric=True),
    Column("largest", numeric=True),
    Column("worst, ULP", numeric=True),
)
_TYPES = (Column("type"), Column("tensors", numeric=True), Column("values", numeric=True), Column("size", numeric=True))


def type_table(tensors: Sequence[TensorNumbers]) -> Fragment:
    """Return how many tensors, values and bytes there are of each type: what a quant's name hides."""
    counts = Counter(tensor.type for tensor in tensors)
    rows = [
        [
            name,
            count(n),
            count(sum(_values(t) for t in tensors if t.type == name)),
            size(sum(t.n_bytes for t in tensors if t.type == name)),
        ]
        for name, n in counts.most_common()
    ]
    return table(_TYPES, rows, css="weights")


def tensor_table(tensors: Sequence[TensorNumbers], verdict: Verdict) -> Fragment:
    """Return every tensor, by layer and folded; a tensor that differs opens its layer."""
    worst = {d.where: d.delta for d in verdict.divergences if d.rung is Rung.T2}
    rung = verdict.rung(Rung.T2)
    judged = rung is not None and rung.compared == rung.expected
    layers = sorted({t.layer for t in tensors}, key=lambda layer: -1 if layer is None else layer)
    blocks, differ = [], False
    for layer in layers:
        own = [t for t in tensors if t.layer == layer]
        rows = [_row(t, worst.get(t.name), judged) for t in own]
        red = ["bad" if t.name in worst or t.n_nonfinite else "" for t in own]
        name = "outside of the layers" if layer is None else f"layer {layer}"
        summary = f"{name}: {count(len(own))} tensors, {size(sum(t.n_bytes for t in own))}"
        body = table(_COLUMNS, rows, marks=red, css="weights", cards=False)
        blocks.append(details(summary, body, is_open=any(red)))
        differ |= any(red)
    return details("every tensor, by layer", joined(blocks), is_open=differ)


def weight_figure(tensors: Sequence[TensorNumbers]) -> Gallery:
    """Return, for each kind of tensor, rms and largest absolute value over the layers."""
    kinds = list(dict.fromkeys(t.kind for t in tensors if t.layer is not None))
    pictures = tuple(_panel(kind, [t for t in tensors if t.layer is not None and t.kind == kind]) for kind in kinds)
    caption = "Weights by layer, one panel for each kind of tensor; a wrong tensor stands out from its neighbours."
    return Gallery(pictures, caption, key=(("●", "root mean square"), ("▲", "largest absolute value")))


def _panel(kind: str, own: Sequence[TensorNumbers]) -> Picture:
    layers = [int(t.layer or 0) for t in own]

    def draw(figure: Figure, ink: Palette) -> None:
        axes = figure.subplots()
        axes.plot(layers, [t.rms for t in own], "o-", color=ink.blue, markersize=3)
        axes.plot(layers, [t.absmax for t in own], "^:", color=ink.orange, markersize=3)
        if any(t.rms > 0 for t in own):
            axes.set_yscale("log")
            plain_decades(axes)
            axes.yaxis.set_minor_formatter("")
        axes.set_title(kind)
        axes.set_xlabel("layer")

    low, high = min(t.rms for t in own), max(t.rms for t in own)
    alt = f"{kind} over {len(own)} layers: rms {number(low)} to {number(high)}, largest {number(_largest(own))}"
    return picture(draw, inches=(3.2, 2.0), alt=alt)


def _largest(own: Sequence[TensorNumbers]) -> float:
    return max(t.absmax for t in own)


def _values(tensor: TensorNumbers) -> int:
    total = 1
    for length in tensor.shape:
        total *= length
    return total


def _row(tensor: TensorNumbers, worst: float | None, judged: bool) -> list[str]:
    nonfinite = f" and {count(tensor.n_nonfinite)} not finite" if tensor.n_nonfinite else ""
    return [
        tensor.name,
        tensor.type,
        " × ".join(map(str, tensor.shape)),
        count(_values(tensor)),
        count(tensor.n_bytes),
        number(tensor.rms, 3),
        number(tensor.absmax, 3) + nonfinite,
        number(worst) if worst is not None else "0" if judged else "not judged",
    ]
