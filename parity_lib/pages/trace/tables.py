"""Tables of a trace: both top-5s, layers, ops worst first, and the commands that go on from here."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from parity_lib.base.names import TOP_JUDGED
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.judge.blame import Blame
from parity_lib.numerics.op_error import OpError
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.fragment import Fragment, details, note
from parity_lib.pages.kit.op_names import op_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, number, percent, signed
from parity_lib.pages.trace.blame import farther
from parity_lib.pages.trace.conclusion import traced_positions
from parity_lib.trace.runs import Names
from parity_lib.trace.token import TokenTrace

_OPS_SHOWN = 24
_FOLDED_FROM = 14  # rows
_LOGIT = (Column("logit", numeric=True), Column("probability", numeric=True))
_OPS = (
    Column("op"),
    Column("pass"),
    Column("of its limit", numeric=True),
    Column("local NMSE, native path", numeric=True),
    Column("worst position (token)", numeric=True),
    Column("worst channel", numeric=True),
    Column("local NMSE, twin", numeric=True),
    Column("total NMSE, twin", numeric=True),
    Column("inherited", numeric=True),
)
_LAYERS = (
    Column("after"),
    Column("part of delta, logits", numeric=True),
    Column("share of delta", numeric=True),
    Column("error that enters", numeric=True),
    Column("gain", numeric=True),
    Column("inherited", numeric=True),
    Column("new here", numeric=True),
)


def top_table(trace: TokenTrace, words: Words | None = None, row: int | None = None) -> Fragment:
    """Return both top-5s at a row (the traced one) with text, logit and probability, and the margins."""
    words, shown = words or Words(), traced_positions(trace)
    row = trace.place.row if row is None else row
    r, c = shown.pair.reference, shown.pair.candidate
    rows = []
    for rank in range(min(TOP_JUDGED, r.topk_ids.shape[1])):
        line = [str(rank + 1)]
        for side in (r, c):
            logit = float(side.topk_logits[row, rank])
            share = math.exp(logit - float(side.logsumexp[row])) if math.isfinite(logit) else math.nan
            line += [words.token(int(side.topk_ids[row, rank])), number(logit, 6), percent(share)]
        rows.append(line)
    marks = ["bad" if line[1] != line[4] else "" for line in rows]
    names = trace.names
    columns = (Column("rank", numeric=True), Column(names.reference), *_LOGIT, Column(names.candidate), *_LOGIT)
    return table(columns, rows, marks=marks, css="tops", cards=False) + note(_margins(shown, row, names))


def _margins(shown: Positions, row: int, names: Names) -> str:
    r, c = shown.pair.reference, shown.pair.candidate
    margins = [float(side.topk_logits[row, 0]) - float(side.topk_logits[row, 1]) for side in (r, c)]
    return (
        f"Margin, first minus second: {names.reference} {number(margins[0], 3)}, {names.candidate} "
        f"{number(margins[1], 3)} logits. Delta {signed(float(shown.delta[row]))} at id {shown.delta_id[row]}; rms "
        f"over the vocabulary {number(float(shown.rms_over_std[row]))} of the row's standard deviation."
    )


def layer_table(trace: TokenTrace) -> Fragment:
    """Return each layer's part of the delta, what is inherited and what is new there, and whose error it is."""
    entered, fall, reference = trace.entered, trace.by_layer, trace.names.reference
    rows = []
    for layer, blame in enumerate(trace.layers.blames[:-1]):
        split = [NONE] * 6
        if entered is not None and fall is not None:
            part, at_entry, came = fall.parts[1 + layer], entered.entered[layer], entered.inherited[layer]
            gain = number(came / at_entry) if at_entry else NONE
            split = [signed(part.value), _share(fall.share(part.name)), number(at_entry), gain, number(came)]
            split.append(number(entered.new[layer]))
        rows.append([blame.where, *split, *_blame(blame, trace.names)])
    head = [NONE] * 6
    if fall is not None:
        value = sum(part.value for part in fall.parts if part.name.startswith("result_"))
        head = [signed(value), _share(value / fall.delta if fall.delta else 0.0), *[NONE] * 4]
    rows.append(["logits", *head, *_blame(trace.layers.blames[-1], trace.names)])
    marks = ["bad" if row[-1] != "equal" else "" for row in rows]
    drawn = trace.layers.blames[-1]
    method = (
        f"Errors are norms of the residual stream, as shares of {reference}'s own at the traced token. Inherited: the "
        f"error that enters a layer, times its gain. New: the layer's own error on {reference}'s input. Oracle: "
        f"float64, on the same file; the interval is from a bootstrap over {drawn.n} {drawn.drawn}."
    )
    ratio = Column(f"{trace.names.candidate} / {reference} to float64 oracle", numeric=True)
    columns = (*_LAYERS, ratio, Column("95 % interval"), Column("farther from the oracle"))
    body = table(columns, rows, marks=marks, css="layers") + note(method)
    if len(rows) > _FOLDED_FROM:
        body = details(
            f"{len(rows)} rows: part of the delta, inherited and new error, oracle, layer by layer",
            body,
        )
    return body


def op_table(trace: TokenTrace) -> Fragment:
    """Return the replayed ops that use up most of their limits, worst first, with their total error beside."""
    local = {error.site: error for error in trace.twin_ops}
    total = {error.site: error for error in trace.followed.errors}
    ranked = sorted(trace.ops.errors, key=lambda error: (-error.share, -error.nmse))
    rows = [_op(trace, error, local[error.site], total[error.site]) for error in ranked[:_OPS_SHOWN]]
    marks = ["" if error.share <= 1 else "bad" for error in ranked[:_OPS_SHOWN]]
    n_over = sum(not error.share <= 1 for error in ranked)
    scope = (
        f"{count(len(ranked))} of {count(trace.ops.expected)} ops replayed on the native path, {count(n_over)} over a "
        f"limit; listed: the {len(rows)} nearest to their limits. NMSE: sum of squared differences over sum of squares."
        " Inherited: total less local, on the F32 twin, over all watched positions."
    )
    return note(scope) + table(_OPS, rows, marks=marks, css="ops")


def _op(trace: TokenTrace, error: OpError, local: OpError, total: OpError) -> list[str]:
    inherited = total.nmse - local.nmse if math.isfinite(total.nmse) and math.isfinite(local.nmse) else math.nan
    return [
        op_words(error.site).replace("`", ""),
        error.phase,
        "over" if math.isinf(error.share) else percent(error.share) if error.share <= 1 else f"{number(error.share)}x",
        number(error.nmse),
        f"{error.position} ({error.position - trace.place.n_prompt + 1})",
        str(error.channel),
        number(local.nmse),
        number(total.nmse),
        NONE if math.isnan(inherited) else number(max(inherited, 0.0)),
    ]


def trace_commands(trace: TokenTrace) -> Fragment:
    """Return the next commands: this trace, the next token, the cell, the reproducer where there is one."""
    place, request = trace.place, trace.cell.request
    base = f"parity trace {request.model} {request.quant}".rstrip()
    tail = f" --stack {request.stack}" if request.stack != CRATES_IO else ""
    tail += f" --fault {request.fault}" if request.fault else ""
    tail += f" --prompts {request.prompts}" if request.prompts else ""
    whole = f"parity run {request.model} {request.quant}".rstrip() + tail
    tail = (f" --against {trace.against}" if trace.against else "") + tail
    lines = [("this token again", f"{base} --prompt {place.prompt_idx} --token {place.token_idx}{tail}")]
    if place.row + 1 < len(place.sequence):
        lines.append(("the next token", f"{base} --prompt {place.prompt_idx} --token {place.token_idx + 1}{tail}"))
    if place.row > 0:
        lines.append(("the token before", f"{base} --prompt {place.prompt_idx} --token {place.token_idx - 1}{tail}"))
    first = _first_over(trace)
    if first is not None and first != place.token_idx:
        lines.append(("first over its limit", f"{base} --prompt {place.prompt_idx} --token {first}{tail}"))
    lines.append(("the whole cell", whole))
    if trace.reproducer is not None:
        lines.append((f"replay the failing op (folder {trace.reproducer.name})", f"parity replay {trace.reproducer}"))
    rows = [[what, Markup("<code>{}</code>").format(command)] for what, command in lines]
    shown = table((Column("what"), Column("command")), rows, css="commands")
    lost = trace.reproducer_lost
    return shown + note(f"The failing op could not be kept in a reproducer: {lost}" if lost else "")


def _first_over(trace: TokenTrace) -> int | None:
    shown = traced_positions(trace)
    over = np.flatnonzero(~(shown.share <= 1))
    return int(shown.token_idx[over[0]]) if over.size else None


def _blame(blame: Blame, names: Names) -> list[str]:
    return [number(blame.ratio), f"{number(blame.low)} to {number(blame.high)}", farther(blame, names)]


def _share(share: float) -> str:
    return f"{round(share * 100, 1) + 0.0:.1f} %" if math.isfinite(share) else NONE  # never -0.0
