"""The greppable lines, as they stand in the log, ready to be copied."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from parity_lib.pages.kit.fragment import Fragment, details, note, paragraph
from parity_lib.pages.kit.text import code_markup, count

_SHOWN = 10  # open; a broken engine gives one line for each position
_KEPT = 200  # folded; the rest stands in divergences.jsonl


def lines_block(lines: Sequence[str], *, file_name: str = "divergences.jsonl") -> Fragment:
    """Return the lines of one cell or one night, the first ones open, more of them folded.

    Args:
        lines: as ``Verdict.lines`` gives them.
        file_name: where all of them are, named when not all are shown.
    """
    if not lines:
        return paragraph("No divergence and no cause: there is no line to grep for.")
    shown = Fragment(_pre(lines[:_SHOWN]), "")
    left = len(lines) - _KEPT
    if len(lines) > _SHOWN:
        rest = code_markup(f"{count(left)} further lines are in `{file_name}`." if left > 0 else "")
        folded = Fragment(_pre(lines[_SHOWN:_KEPT]), "") + paragraph(rest)
        shown += details(f"{count(len(lines) - _SHOWN)} more lines", folded)
    return Fragment((shown + note("One click selects all lines of a block.")).html, "\n".join(lines))


def _pre(lines: Sequence[str]) -> Markup:
    # One block a line, so that where a long line wraps is seen; a selection still copies one line a line.
    blocks = Markup().join(Markup("<span>{}\n</span>").format(line) for line in lines)
    return Markup('<pre class="lines">{}</pre>').format(blocks)
