"""Rung T5 on the page: literal numbers, the distance over llama.cpp's own spread, that spread, and its flips."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.base.names import Compute, Kind, Rung
from parity_lib.pages.cell.bf16 import bf16_table
from parity_lib.pages.cell.position_tables import top_list
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.cell.t5_literal import literal_table
from parity_lib.pages.cell.t5_spread import Json, Rows, reader, spread_section
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, heading, joined, note, paragraph
from parity_lib.pages.kit.outcomes import kind_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, number, signed
from parity_lib.records.verdicts import Divergence, Verdict

_SHOWN = 20  # flips


def native_section(verdict: Verdict, words: Words | None = None) -> Fragment:
    """Return everything about the deployed file: each part that the record lacks is said to be lacking."""
    words = words or Words()
    spread = verdict.literal.get("spread")
    known = spread if isinstance(spread, Mapping) else {}
    parts = [literal_table(verdict), bf16_table(verdict), _divergences(verdict, words)]
    parts += [spread_section(known)] if known else [_no_spread(verdict)]
    parts += [_ledgers(verdict), _flips(verdict, words)]
    return joined(parts)


def _no_spread(verdict: Verdict) -> Fragment:
    if verdict.cell.compute == Compute.BF16:
        return paragraph("No gate: llama.cpp's own spread says nothing about a candidate that rounds to BF16.")
    rung = verdict.rung(Rung.T5)
    why = f" {rung.note}." if rung is not None and rung.note else ""
    return paragraph(f"How far llama.cpp is from itself on this file, and the gate that follows: {ABSENT}.{why}")


def _ledgers(verdict: Verdict) -> Fragment:
    """Return how many flips there were on the twin and on the deployed file, and how many margins predict."""
    rows: Rows = []
    marks: list[str] = []
    for rung, key in ((Rung.T4, "ledger"), (Rung.T5, "native_ledger")):
        ledger = verdict.literal.get(key)
        counts = ledger.get("counts") if isinstance(ledger, Mapping) else None
        for kind, values in counts.items() if isinstance(counts, Mapping) else ():
            get, known = reader(values), _known(ledger, kind)
            new = (get("unexplained") or 0) - len(known)
            surplus = bool(values.get("surplus")) if isinstance(values, Mapping) else False
            marks.append("bad" if new > 0 or surplus else "")
            numbers = [_whole(get("ties")), number(get("predicted"), 3), "yes" if surplus else "no"]
            rows.append([rung.title, _kind(kind), *numbers, _whole(get("unexplained")), count(len(known))])
    if not rows:
        return paragraph(f"The ledger of flips: {ABSENT}.")
    columns = (
        Column("flips"),
        Column("kind"),
        Column("ties", numeric=True),
        Column("predicted by margins", numeric=True),
        Column("more than predicted"),
        Column("unexplained", numeric=True),
        Column("of them llama.cpp's own twin shows", numeric=True),
    )
    tie = (
        "A tie: llama.cpp's margin at that position is within 3 sigma, of the band on the twin, of llama.cpp's own "
        "spread on the deployed file; never of burn's error."
    )
    if not isinstance(verdict.literal.get("native_ledger"), Mapping):
        tie += f" The ledger of the deployed file: {ABSENT}."
    return heading("Ledger of flips") + table(columns, rows, marks=marks, css="native") + note(tie)


def _flips(verdict: Verdict, words: Words) -> Fragment:
    """Return the flips of the deployed file that lie farthest over what the spread explains, folded."""
    ledger = verdict.literal.get("native_ledger")
    flips = ledger.get("flips") if isinstance(ledger, Mapping) else None
    listed = [flip for flip in flips if isinstance(flip, Mapping)] if isinstance(flips, list | tuple) else []
    if not listed:
        return EMPTY
    listed.sort(key=lambda flip: -_over_sigma(flip))
    rows = [_flip(flip, words) for flip in listed[:_SHOWN]]
    columns = (
        Column("position"),
        Column("kind"),
        Column("of llama.cpp"),
        Column("of burn"),
        Column("margin, logits", numeric=True),
        Column("margin over sigma", numeric=True),
        Column("class"),
    )
    title = f"{count(len(rows))} of {count(len(listed))} flips on the deployed file, the widest margins first"
    return details(title, table(columns, rows, css="all", cards=False))


def _flip(flip: Mapping[str, Json], words: Words) -> list[str]:
    get = reader(flip)
    prompt, token = get("prompt_idx"), get("token_idx")
    ids = [get("reference_id"), get("candidate_id")]
    return [
        f"prompt {words.prompt(int(prompt or 0))}, token {int(token or 0)}",
        _kind(str(flip.get("kind", NONE))),
        *(NONE if token_id is None else words.token(int(token_id)) for token_id in ids),
        number(get("margin"), 3),
        number(_over_sigma(flip), 2),
        str(flip.get("ledger", NONE)),
    ]


def _divergences(verdict: Verdict, words: Words) -> Fragment:
    """Return rung T5's divergences: first the pooled numbers, then flips with both top-5s."""
    own = sorted((d for d in verdict.divergences if d.rung is Rung.T5), key=lambda d: d.prompt_idx is not None)
    if not own:
        return EMPTY
    rows = [_divergence(d, words) for d in own[:_SHOWN]]
    columns = [
        Column("diverged"),
        Column("delta", numeric=True),
        Column("limit", numeric=True),
        Column("why"),
        Column("llama.cpp, top-5: logit, id, text"),
        Column("burn, top-5: logit, id, text"),
    ]
    if all(row[-2:] == [NONE, NONE] for row in rows):  # pooled numbers alone have no top-5
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    title = f"Divergences of the deployed file: {count(len(own))}"
    rest = f"The other {count(len(own) - _SHOWN)} stand in the lines below." if len(own) > _SHOWN else ""
    return heading(title) + table(columns, rows, marks=["bad"] * len(rows), css="gaps") + note(rest)


def _divergence(d: Divergence, words: Words) -> list[str]:
    place = d.where or NONE
    if d.prompt_idx is not None:
        place = f"prompt {words.prompt(d.prompt_idx)}, token {d.token_idx}"
    kind = f"{place}: {kind_words(d.kind)}" + (f", {d.ledger}" if d.ledger is not None else "")
    ours, theirs = list(d.top5_llamacpp), list(d.top5_burn)
    tops = [top_list(ours, theirs, words), top_list(theirs, ours, words)] if ours and theirs else [NONE, NONE]
    return [kind, signed(d.delta), number(d.limit), d.note or NONE, *tops]


def _known(ledger: Json, kind: str) -> list[Json]:
    known = ledger.get("known") if isinstance(ledger, Mapping) else None
    return [item for item in known if item[-1:] == [kind]] if isinstance(known, list) else []


def _over_sigma(flip: Mapping[str, Json]) -> float:
    get = reader(flip)
    width, sigma = get("margin") or 0.0, get("sigma") or 0.0
    return width / sigma if sigma > 0 else float("inf") if width > 0 else 0.0


def _whole(value: float | None) -> str:
    return NONE if value is None else count(int(value))


def _kind(kind: str) -> str:
    return kind_words(Kind(kind)) if kind in list(Kind) else kind
