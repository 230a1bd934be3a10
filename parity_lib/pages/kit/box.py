"""The box that opens a page: outcome, where, how large against what limit, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parity_lib.pages.kit.fragment import EMPTY, HEADLINE, Fragment, fill, words_of_markup
from parity_lib.pages.kit.outcomes import Style

Marks = Sequence[tuple[str, str]]  # (what restricts the verdict, why)


def box(
    style: Style,
    title: str,
    *,
    name: str = "",
    about: str = "",
    links: Mapping[str, str] | None = None,
    marks: Marks = (),
    sentences: Sequence[str] = (),
    more: Fragment = EMPTY,
    tab: str = "",
) -> Fragment:
    """Return the headline of a page.

    Args:
        style: CSS class and sign of the outcome.
        title: the first line.
        name: what the page is of, above the box, with ``about`` and ``links`` (label to address) beside it.
        about: date and time, host.
        links: shown only where there is a name.
        marks: what restricts the verdict; it stands in the headline, never in a footnote.
        sentences: one paragraph each.
        more: what stands below them in the box.
        tab: what the browser's tab says.
    """
    html = fill(
        "box.html.j2",
        style=style,
        title=title,
        name=name,
        about=about,
        links=links or {},
        marks=marks,
        sentences=sentences,
        more=more,
    )
    lines = [f"{name}  {about}".strip(), title, " · ".join(mark for mark, _ in marks)]
    plain = "\n".join(filter(None, [*lines, *map(words_of_markup, sentences), more.plain]))
    return Fragment(html, plain, role=HEADLINE, title=tab)
