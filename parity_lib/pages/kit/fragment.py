"""What a display function returns: an object that JupyterLab shows and the HTML export places. Text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, reduce
from operator import add
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
HEADLINE = "headline"  # the role of the output that the export moves to the top of the page
LAB_STYLE = '<style data-parity="lab">'  # removed again by the export, whose page has the style in its head
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")  # terminal colours, and what HTML cannot hold


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
    """A piece of HTML with the same in plain text, for terminals and for tests; ``+`` puts one below another.

    Args:
        html: markup of the piece; a ``str`` that is no ``Markup`` is text, and escaped.
        plain: the same content as text.
        role: ``HEADLINE`` for the piece that opens the page, otherwise empty.
        title: what the browser's tab says, from the headline only.
    """

    html: Markup
    plain: str
    role: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "html", escape(self.html))

    def __add__(self, below: Fragment) -> Fragment:
        return Fragment(self.html + below.html, "\n".join(filter(None, [self.plain, below.plain])))

    def __html__(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        style = _lab_style() if self.role == HEADLINE else ""
        data = {"text/html": style + on_page(self.html), "text/plain": self.plain}
        return data, {"parity": {"role": self.role, "title": self.title}}


EMPTY = Fragment(Markup(), "")


def on_page(html: Markup) -> str:
    """Return markup as it stands on a page: in the box that its style is for, without terminal colours."""
    return f'<div class="parity">{_CONTROL.sub("", html)}</div>'


def joined(parts: Iterable[Fragment]) -> Fragment:
    """Return the parts one below another."""
    return reduce(add, parts, EMPTY)


def words_of_markup(text: str) -> str:
    """Return what a reader sees of a text that may be markup; a line break becomes a dot."""
    return str(text.replace("<br>", " · ").striptags() if isinstance(text, Markup) else text)


def _in(tags: Markup, text: str) -> Fragment:
    return Fragment(tags.format(text), words_of_markup(text)) if text else EMPTY


def paragraph(text: str) -> Fragment:
    """Return a sentence; an empty one is no paragraph."""
    return _in(Markup("<p>{}</p>"), text)


def note(text: str) -> Fragment:
    """Return a sentence that explains what stands above it."""
    return _in(Markup('<p class="note">{}</p>'), text)


def heading(text: str) -> Fragment:
    """Return a heading of the third order."""
    return _in(Markup("<h3>{}</h3>"), text)


def details(summary: str, body: Fragment, *, is_open: bool = False, short: bool = False) -> Fragment:
    """Return a folded block. On paper what is ``short`` is printed open."""
    marks = (Markup(' class="short"') if short else Markup()) + (Markup(" open") if is_open else Markup())
    html = Markup("<details{}><summary>{}</summary>{}</details>").format(marks, summary, body)
    return Fragment(html, "\n".join(filter(None, [words_of_markup(summary), body.plain])))
