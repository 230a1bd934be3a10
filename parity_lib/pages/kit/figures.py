"""Draws a figure twice, for light and for dark pages, with its words beside it. The only way into matplotlib."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parity_lib.pages.kit.fragment import fill, on_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
_COLOURS = 64


@dataclass(frozen=True, slots=True)
class Palette:
    """Inks of a figure. Every kind of colour vision separates blue from vermillion; shapes and lines differ as well."""

    face: str
    ink: str
    soft: str
    grid: str
    band: str
    blue: str
    orange: str
    green: str
    steps: tuple[str, ...]  # shares of a limit, small to large


LIGHT = Palette(
    face="#ffffff",
    ink="#1b1f24",
    soft="#57606a",
    grid="#e3e7eb",
    band="#dfe3e8",
    blue="#0060a0",
    orange="#c04a00",
    green="#00684f",
    steps=("#eef1f4", "#c9ddec", "#8fbcdc", "#3b87bd"),
)
DARK = Palette(
    face="#14181d",
    ink="#e4e8ec",
    soft="#a3adb8",
    grid="#2a323a",
    band="#2c343d",
    blue="#7db7f0",
    orange="#ff8c42",
    green="#5fd0ac",
    steps=("#242b33", "#24435c", "#2f6a94", "#6cb2e3"),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure: PNG for light pages, PNG for dark pages, and the words for both."""

    png: bytes
    png_dark: bytes
    alt: str  # what the picture shows, with its finding, for a reader who cannot see it


Draw = Callable[["Figure", Palette], None]


def picture(draw: Draw, *, inches: tuple[float, float], alt: str) -> Picture:
    """Return what ``draw`` draws, in both palettes; ``alt`` says what is to be seen in it."""
    return Picture(png=png(draw, inches, LIGHT), png_dark=png(draw, inches, DARK), alt=alt)


def png(draw: Draw, inches: tuple[float, float], palette: Palette) -> bytes:
    """Return what ``draw`` draws as a PNG; the same numbers give the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib's own dependency

    # The style is set here and given back: a figure must not depend on what a notebook did before.
    with rc_context(_style(palette)):  # type: ignore[arg-type]  # its keys are a literal type
        figure = Figure(figsize=inches, dpi=DPI, facecolor=palette.face, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(figure, palette)
        canvas.draw()  # type: ignore[no-untyped-call]
        raw = bytes(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        pixels = Image.frombuffer("RGBA", canvas.get_width_height(), raw, "raw", "RGBA", 0, 1)
    target = io.BytesIO()
    # A few inks need no 16 million colours: a third of the bytes, and no date in them.
    pixels.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(target, "PNG", optimize=True)
    return target.getvalue()


def _style(palette: Palette) -> dict[str, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "axes.edgecolor": palette.soft,
        "axes.facecolor": palette.face,
        "axes.labelcolor": palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": palette.grid,
        "grid.linewidth": 0.6,
        "text.color": palette.ink,
        "xtick.color": palette.soft,
        "ytick.color": palette.soft,
        "xtick.labelcolor": palette.ink,
        "ytick.labelcolor": palette.ink,
        "lines.linewidth": 1.1,
        "legend.frameon": False,
    }


@dataclass(frozen=True, slots=True)
class Gallery:
    """Small multiples: pictures side by side on a wide screen, one below the other on a narrow one."""

    pictures: tuple[Picture, ...]
    caption: str
    wide: frozenset[int] = frozenset()  # places of the pictures that get a line of their own
    key: tuple[tuple[str, str], ...] = ()  # (sign, what it stands for)

    def __str__(self) -> str:
        key = ["; ".join(f"{sign} {words}" for sign, words in self.key)] if self.key else []
        return "\n".join([self.caption, *key, *(p.alt for p in self.pictures)])

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        pictures = [(i in self.wide, _data(p.png), _data(p.png_dark), p.alt) for i, p in enumerate(self.pictures)]
        html = fill("gallery.html.j2", pictures=pictures, caption=self.caption, key=self.key)
        return {"text/html": on_page(html), "text/plain": str(self)}


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def decades(values: Sequence[float]) -> tuple[float, float]:
    """Return limits of a log axis, whole powers of ten around the positive values; (1e-9, 1) without any."""
    from math import ceil, floor, isfinite, log10

    positive = [value for value in values if isfinite(value) and value > 0]
    if not positive:
        return 1e-9, 1.0
    # Of a result that went astray, a square can be near the largest number that there is.
    low, high = (min(max(value, 1e-300), 1e300) for value in (min(positive), max(positive)))
    low, high = 10.0 ** floor(log10(low)), 10.0 ** ceil(log10(high))
    return low, high if high > low else low * 10


def plain_decades(axes: Axes) -> None:
    """Write the decades of a log axis as the tables write small numbers, ``1e-05``."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}" if value < 1e-2 else f"{value:g}")
