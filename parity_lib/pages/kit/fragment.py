"""What a display function returns: an object that JupyterLab shows and the HTML export places."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from parity_lib.pages.kit.text import NONE, escape

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
HEADLINE = "headline"  # the role of the output that the export moves to the top of the page
LAB_STYLE = '<style data-parity="lab">'  # removed again by the export, whose page has the style in its head


@cache
def _templates() -> Environment:
    folder = FileSystemLoader(TEMPLATES / "fragments")
    return Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def fill(template: str, **values: object) -> Markup:
    """Return a template of ``templates/fragments`` filled with values; each is escaped unless it is markup."""
    return Markup(_templates().get_template(template).render(values))  # noqa: S704 - the template escapes


@cache
def _lab_style() -> str:
    sheets = [(TEMPLATES / "parity" / name).read_text(encoding="utf-8") for name in ("lab.css", "components.css")]
    return LAB_STYLE + "\n".join(sheets) + "</style>"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of HTML with the same in plain text, for terminals and for tests.

    Args:
        html: markup of the piece; every foreign text in it is escaped already.
        plain: the same content as text.
        role: ``HEADLINE`` for the piece that opens the page, otherwise empty.
        title: what the browser's tab says, from the headline only.
    """

    html: str
    plain: str
    role: str = ""
    title: str = ""

    def __str__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        style = _lab_style() if self.role == HEADLINE else ""
        data = {"text/html": f'{style}<div class="parity">{self.html}</div>', "text/plain": self.plain}
        return data, {"parity": {"role": self.role, "title": self.title}}


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure: PNG for light pages, PNG for dark pages, and the words for all."""

    png: bytes
    png_dark: bytes
    alt: str  # what the picture shows, with its finding, for who cannot see it
    caption: str = ""

    def __str__(self) -> str:
        return self.alt

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode("ascii"), "text/plain": self.alt}
        dark = base64.b64encode(self.png_dark).decode("ascii")
        return data, {"image/png": {"alt": self.alt}, "parity": {"dark": dark, "caption": self.caption}}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its header with unit, whether it is numeric, whether its cells are markup already."""

    head: str
    numeric: bool = False
    markup: bool = False


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    row_attributes: Sequence[str] = (),
    css: str = "",
    cards: bool = True,
) -> str:
    """Return an HTML table.

    Args:
        columns: headers; a cell's class and its label on narrow screens come from them.
        rows: one text a column; escaped unless the column says that it holds markup.
        caption: one sentence above the table.
        row_attributes: attributes of each row (``id="p3t17" class="bad"``), one a row, or none at all.
        css: further classes of the table.
        cards: on a narrow screen each row becomes a card, each cell with its header; without, the table scrolls,
            which a table of a thousand rows must: the headers in every cell would be most of the page.
    """
    attributes = row_attributes or [""] * len(rows)
    head = "".join(f'<th scope="col"{_class(c)}>{escape(c.head)}</th>' for c in columns)
    body = []
    for row, attribute in zip(rows, attributes, strict=True):
        cells = "".join(_td(column, cell, cards) for column, cell in zip(columns, row, strict=True))
        body.append(f"<tr{' ' + attribute if attribute else ''}>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table class="{"stack " if cards else ""}{css}">{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned text, for terminals; cells must not be markup."""
    grid = [[c.head for c in columns], *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in grid) for i in range(len(columns))]
    lines = []
    for row in grid:
        cells = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def details(summary: str, body: str, *, is_open: bool = False, short: bool = False) -> str:
    """Return a folded block; ``summary`` and ``body`` are markup. On paper what is ``short`` is printed open."""
    marks = (' class="short"' if short else "") + (" open" if is_open else "")
    return f"<details{marks}><summary>{summary}</summary>{body}</details>"


def _td(column: Column, cell: str, cards: bool) -> str:
    """Return one cell; a narrow screen leaves out what has no number, and shows the header before what has one."""
    words = [word for word, holds in (("num", column.numeric), ("none", cell == NONE)) if holds]
    css = f' class="{" ".join(words)}"' if words else ""
    inside = f"<div>{cell}</div>" if column.markup else escape(cell)  # one box beside the label on a narrow screen
    label = f' data-label="{escape(column.head)}"' if cards else ""
    return f"<td{css}{label}>{inside}</td>"


def _class(column: Column) -> str:
    return ' class="num"' if column.numeric else ""
