"""Rung T5 on the page: literal numbers, the distance over llama.cpp's self-spread, that spread, and its flips."""

from __future__ import annotations

from parity_lib.base.names import Compute, Rung
from parity_lib.pages.cell.bf16 import bf16_table
from parity_lib.pages.cell.position_tables import top_list
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.cell.t5_literal import literal_table
from parity_lib.pages.cell.t5_spread import Rows, spread_section
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, heading, joined, note, paragraph
from parity_lib.pages.kit.outcomes import kind_words, ledger_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, number, signed
from parity_lib.records.row_numbers import Flip
from parity_lib.records.verdicts import Divergence, Verdict

_SHOWN = 20  # flips


def native_section(verdict: Verdict, words: Words | None = None) -> Fragment:
    """Return everything about the deployed file; a part that the record lacks is named."""
    words = words or Words()
    spread = verdict.measured.spread
    parts = [literal_table(verdict), bf16_table(verdict), _divergences(verdict, words)]
    parts += [_no_spread(verdict) if spread is None else spread_section(spread)]
    parts += [_ledgers(verdict), _flips(verdict, words)]
    return joined(parts)


def _no_spread(verdict: Verdict) -> Fragment:
    if verdict.cell.compute == Compute.BF16:
        return paragraph("No gate: llama.cpp's self-spread does not bound a candidate that rounds to BF16.")
    rung = verdict.rung(Rung.T5)
    why = f" {rung.note}." if rung is not None and rung.note else ""
    return paragraph(f"How far llama.cpp is from itself on this file, and the gate that follows: {ABSENT}.{why}")


def _ledgers(verdict: Verdict) -> Fragment:
    """Return how many flips there were on the twin and on the deployed file, and how many margins predict."""
    rows: Rows = []
    marks: list[str] = []
    found = ((Rung.T4, verdict.measured.ledger), (Rung.T5, verdict.measured.native_ledger))
    for rung, ledger in ((rung, ledger) for rung, ledger in found if ledger is not None):
        for kind, n in ledger.counts.items():
            known = sum(flip.kind is kind for flip in ledger.known)
            marks.append("bad" if n.unexplained > known or n.surplus else "")
            numbers = [count(n.ties), number(n.predicted, 3), "yes" if n.surplus else "no"]
            rows.append([rung.title, kind_words(kind), *numbers, count(n.unexplained), count(known)])
    if not rows:
        return paragraph(f"The ledger of flips: {ABSENT}.")
    columns = (
        Column("flips"),
        Column("kind"),
        Column("near-ties", numeric=True),
        Column("predicted by margins", numeric=True),
        Column("more than predicted"),
        Column("unexplained", numeric=True),
        Column("of them flipped by llama.cpp's F32 twin too", numeric=True),
    )
    tie = (
        "Near-tie: llama.cpp's margin at that position is within 3 sigma. Sigma is that of the band on the twin and of "
        "llama.cpp's self-spread on the deployed file; burn's error does not enter it."
    )
    if verdict.measured.native_ledger is None:
        tie += f" The ledger of the deployed file: {ABSENT}."
    return heading("Ledger of flips") + table(columns, rows, marks=marks, css="native") + note(tie)


def _flips(verdict: Verdict, words: Words) -> Fragment:
    """Return the flips of the deployed file that lie farthest over what the spread explains, folded."""
    ledger = verdict.measured.native_ledger
    listed = sorted(ledger.flips if ledger else (), key=lambda flip: -_over_sigma(flip))
    if not listed:
        return EMPTY
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


def _flip(flip: Flip, words: Words) -> list[str]:
    return [
        f"prompt {words.prompt(flip.prompt_idx)}, token {flip.token_idx}",
        kind_words(flip.kind),
        words.token(flip.reference_id),
        words.token(flip.candidate_id),
        number(flip.margin, 3),
        number(_over_sigma(flip), 2),
        ledger_words(flip.ledger),
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
    kind = f"{place}: {kind_words(d.kind)}" + (f", {ledger_words(d.ledger)}" if d.ledger is not None else "")
    ours, theirs = list(d.top5_llamacpp), list(d.top5_burn)
    tops = [top_list(ours, theirs, words), top_list(theirs, ours, words)] if ours and theirs else [NONE, NONE]
    return [kind, signed(d.delta), number(d.limit), d.note or NONE, *tops]


def _over_sigma(flip: Flip) -> float:
    return flip.margin / flip.sigma if flip.sigma > 0 else float("inf") if flip.margin > 0 else 0.0
