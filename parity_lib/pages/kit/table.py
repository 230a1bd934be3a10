"""The one table: HTML that becomes cards on a phone, and the same as aligned text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity_lib.pages.kit.fragment import Fragment, fill, words_of_markup
from parity_lib.pages.kit.text import NONE


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its header with unit, and whether it is numeric."""

    head: str
    numeric: bool = False


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    marks: Sequence[str] = (),
    ids: Sequence[str] = (),
    css: str = "",
    cards: bool = True,
) -> Fragment:
    """Return a table.

    Args:
        columns: headers; a cell's class and its label on narrow screens come from them.
        rows: one text a column; escaped unless it is ``Markup``.
        caption: one sentence above the table.
        marks: class of each row (``bad``, ``here``), one a row, or empty.
        ids: id of each row, one a row, or empty.
        css: further classes of the table.
        cards: on a narrow screen each row becomes a card, each cell with its header; without, the table scrolls,
            which a table of a thousand rows must: the headers in every cell would be most of the page.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """
    empty = [""] * len(rows)
    cells = [list(zip(columns, row, strict=True)) for row in rows]
    html = fill(
        "table.html.j2",
        columns=columns,
        rows=list(zip(ids or empty, marks or empty, cells, strict=True)),
        caption=caption,
        css=f"stack {css}" if cards else css,
        cards=cards,
        NONE=NONE,
    )
    plain = plain_table(columns, rows)
    return Fragment(html, f"{caption}\n{plain}" if caption else plain)


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows as aligned text, for terminals."""
    grid = [[c.head for c in columns], *[[words_of_markup(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in grid) for i in range(len(columns))]
    lines = []
    for row in grid:
        cells = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
