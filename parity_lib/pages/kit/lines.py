"""The greppable lines, as they stand in the log, ready to be copied."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.pages.kit.fragment import Fragment, details
from parity_lib.pages.kit.text import count, escape

_SHOWN = 10  # open; a broken engine gives one line for each position
_KEPT = 200  # folded; the rest stands in divergences.jsonl


def lines_block(lines: Sequence[str], *, file_name: str = "divergences.jsonl") -> Fragment:
    """Return the lines of one cell or one night, the first ones open, more of them folded.

    Args:
        lines: as ``Verdict.lines`` gives them.
        file_name: where all of them are, named when not all are shown.
    """
    if not lines:
        text = "No divergence and no cause: there is no line to grep for."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    html = _pre(lines[:_SHOWN])
    if len(lines) > _SHOWN:
        html += details(f"{count(len(lines) - _SHOWN)} more lines", _pre(lines[_SHOWN:_KEPT]) + _rest(lines, file_name))
    return Fragment(html=f"{html}<p class=note>One click selects all lines of a block.</p>", plain="\n".join(lines))


def _pre(lines: Sequence[str]) -> str:
    # One block a line, so that where a long line wraps is seen; a selection still copies one line a line.
    return '<pre class="lines">' + "".join(f"<span>{escape(line)}\n</span>" for line in lines) + "</pre>"


def _rest(lines: Sequence[str], file_name: str) -> str:
    left = len(lines) - _KEPT
    return f"<p>{count(left)} further lines are in <code>{escape(file_name)}</code>.</p>" if left > 0 else ""
