"""Other tokens of the traced sequence: a slider in JupyterLab where widgets exist, a table elsewhere."""

from __future__ import annotations

import os
from importlib import import_module, util
from typing import Any

from parity_lib.pages.kit.fragment import Fragment, details
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import Words, margin, number, percent, signed
from parity_lib.pages.trace.conclusion import traced_positions
from parity_lib.pages.trace.tables import top_table
from parity_lib.trace.token import TokenTrace

_UNATTENDED = "PARITY_NOTEBOOK"  # set where no person sits before the notebook (night/job.py)
_AROUND = 12  # tokens before and after the traced one
_COLUMNS = (
    Column("token", numeric=True),
    Column("fed"),
    Column("delta, logits", numeric=True),
    Column("against its limit", numeric=True),
    Column("error over floor", numeric=True),
)


def traced_tokens(trace: TokenTrace, words: Words | None = None) -> Any:  # noqa: ANN401 - a Fragment, or a box of widgets
    """Return the tokens around the traced one as a table; with a person and ipywidgets, a slider over all of them."""
    words = words or Words()
    if os.environ.get(_UNATTENDED) or util.find_spec("ipywidgets") is None:
        return token_table(trace, words)
    widgets = import_module("ipywidgets")
    place = trace.place
    slider = widgets.IntSlider(
        value=place.token_idx,
        min=1 - place.n_prompt,
        max=len(place.sequence) - place.n_prompt,
        description="token",
        continuous_update=False,
        layout=widgets.Layout(width="40em"),
    )

    def show(token: int) -> None:
        display = import_module("IPython.display").display
        display(token_table(trace, words, token), top_table(trace, words, token + place.n_prompt - 1))

    return widgets.VBox([slider, widgets.interactive_output(show, {"token": slider})])


def token_table(trace: TokenTrace, words: Words | None = None, token: int | None = None) -> Fragment:
    """Return delta, limit and top-1 of the tokens around one (the traced one); the rest is folded."""
    words, shown, place = words or Words(), traced_positions(trace), trace.place
    row = place.row if token is None else token + place.n_prompt - 1
    rows = []
    for at in range(len(shown)):
        size = "not finite" if shown.nonfinite[at] else margin(float(shown.delta[at]), float(shown.limit[at]))
        share = float(trace.layers.share[-1, at])
        rows.append(
            [
                str(int(shown.token_idx[at])),
                words.token(place.sequence[at]),
                signed(float(shown.delta[at])),
                size,
                percent(share) if share <= 1 else f"{number(share)}x",
                words.token(int(shown.pair.reference.topk_ids[at, 0])),
                words.token(int(shown.pair.candidate.topk_ids[at, 0])),
            ]
        )
    marks = ["here" if at == row else "" if shown.share[at] <= 1 else "bad" for at in range(len(rows))]
    columns = (*_COLUMNS, *(Column(f"top-1 of {name}") for name in (trace.names.reference, trace.names.candidate)))
    low, high = max(0, row - _AROUND), row + _AROUND + 1
    near = table(columns, rows[low:high], marks=marks[low:high], css="around", cards=False)
    if len(rows) == len(rows[low:high]):
        return near
    return near + details(f"all {len(rows)} tokens", table(columns, rows, marks=marks, css="around", cards=False))
