"""Tables of positions: the divergences and the worst ten with both top-5s, all others folded, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from markupsafe import Markup

from parity_lib.base.names import TOP_JUDGED, Kind, Rung
from parity_lib.pages.cell.position_map import LONG, kept_rows, no_position, row_anchor
from parity_lib.pages.cell.positions import Positions
from parity_lib.pages.kit.fragment import Fragment, details, joined, note
from parity_lib.pages.kit.outcomes import kind_words, ledger_words
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, margin, number, quoted, signed
from parity_lib.records.verdicts import Divergence

WORST = 10
_LISTED = 20  # divergences with both top-5s; a broken model has one at each position
_CONTEXT = 6  # fed tokens shown before a position

_SHORT_KIND = {
    Kind.TOP1: "top-1",
    Kind.TOP5_SET: "top-5 set",
    Kind.LOGIT_DELTA: "delta over",
    Kind.RMS: "rms over",
    Kind.NON_FINITE: "not finite",
}

_FULL = (
    Column("position"),
    Column("fed so far, last token at the end"),
    Column("delta, limit, margin: logits"),
    Column("llama.cpp, top-5: logit, id, text"),
    Column("burn, top-5: logit, id, text"),
)
_SHORT = (
    Column("token", numeric=True),
    Column("fed"),
    Column("top-1 of llama.cpp"),
    Column("top-1 of burn"),
    Column("delta, logits", numeric=True),
    Column("|delta| over limit", numeric=True),
    Column("margin, logits", numeric=True),
    Column("rms/std", numeric=True),
    Column("class"),
)


def position_tables(
    shown: Positions | None, divergences: Sequence[Divergence], words: Words | None = None, rung: Rung = Rung.T4
) -> Fragment:
    """Return the divergences and the worst positions open, all others folded by prompt.

    Args:
        shown: positions of the pair that the rung judged; None where it judged no pair.
        divergences: of the verdict; kinds and ledger classes are taken from them.
        words: token texts and prompt names.
        rung: whose divergences are meant.
    """
    words = words or Words()
    if not shown:
        return no_position()
    kinds = _by_place(divergences, rung)
    n_listed = int(shown.listed.sum())
    top = _open_rows(shown)
    plural = "" if n_listed == 1 else "s"
    if np.isnan(shown.limit).all():
        caption = f"No limit applies; the {len(top)} positions with the largest |delta|."
    elif not n_listed:
        caption = f"No divergence; the {len(top)} worst positions by |delta| over its limit."
    elif n_listed > _LISTED:
        caption = f"{count(n_listed)} positions with a divergence; the first, and the {_LISTED} worst of them."
    else:
        caption = f"{count(n_listed)} position{plural} with a divergence, worst first; then the next worst."
    rows = [_full_row(shown, row, kinds, words) for row in top]
    return table(_FULL, rows, caption=caption, css="places", **_rows(shown, top)) + _folded(
        shown, set(top), kinds, words
    )


def around(shown: Positions | None, words: Words | None = None, *, reach: int = 8) -> Fragment:
    """Return the positions before and after the first divergence, or the worst position of a cell at parity."""
    words = words or Words()
    if not shown:
        return no_position()
    listed = np.flatnonzero(shown.listed)
    centre = int(listed[0]) if len(listed) else int(shown.worst_first()[0])
    prompt = int(shown.prompt_idx[centre])
    rows = [int(row) for row in shown.of_prompt(prompt) if abs(int(row) - centre) <= reach]
    word = "first divergence" if len(listed) else "worst position"
    caption = f"Around the {word}: prompt {words.prompt(prompt)}, token {int(shown.token_idx[centre])}."
    texts = [_short_row(shown, row, {}, words) for row in rows]
    marks = ["here" if row == centre else "" for row in rows]
    return table(_SHORT, texts, caption=caption, marks=marks, css="all", cards=False)


def anchors(shown: Positions | None) -> frozenset[str]:
    """Return the ids of the rows that ``position_tables`` makes, for the map's links."""
    if not shown:
        return frozenset()
    rows = {*kept_rows(shown), *_open_rows(shown)}
    return frozenset(row_anchor(int(shown.prompt_idx[row]), int(shown.token_idx[row])) for row in rows)


def _open_rows(shown: Positions) -> list[int]:
    """Return the rows that stand open, with both top-5s: the first divergence, then the worst."""
    order = [int(row) for row in shown.worst_first()]
    listed = np.flatnonzero(shown.listed)
    if len(listed) <= _LISTED:
        return order[: len(listed) + WORST]
    first = int(listed[0])  # the headline names it
    return [first, *(row for row in order[:_LISTED] if row != first)]


def _by_place(divergences: Sequence[Divergence], rung: Rung) -> Mapping[tuple[int, int], list[Divergence]]:
    kinds: dict[tuple[int, int], list[Divergence]] = {}
    for divergence in divergences:
        if divergence.rung == rung and divergence.prompt_idx is not None and divergence.token_idx is not None:
            kinds.setdefault((divergence.prompt_idx, divergence.token_idx), []).append(divergence)
    return kinds


class _Rows(TypedDict):
    ids: list[str]
    marks: list[str]


def _rows(shown: Positions, rows: Sequence[int]) -> _Rows:
    """Return id and class of some rows of a table."""
    ids = [row_anchor(int(shown.prompt_idx[row]), int(shown.token_idx[row])) for row in rows]
    return {"ids": ids, "marks": ["bad" if shown.listed[row] else "" for row in rows]}


def _full_row(shown: Positions, row: int, kinds: Mapping[tuple[int, int], list[Divergence]], words: Words) -> list[str]:
    prompt, token = int(shown.prompt_idx[row]), int(shown.token_idx[row])
    ours, theirs = _tops(shown, row)
    classes = [Markup("<b>{}</b>").format(word) for word in _classes(shown, row, kinds) if word != NONE]
    return [
        Markup("<br>").join([f"prompt {words.prompt(prompt)}", f"token {token}", *classes]),
        _context(shown, row, words),
        _size(shown, row, words),
        top_list(ours, theirs, words),
        top_list(theirs, ours, words),
    ]


def _size(shown: Positions, row: int, words: Words) -> Markup:
    """Return how large the delta of a position is, against what limit, and the reference's own margin."""
    delta, limit = float(shown.delta[row]), float(shown.limit[row])
    over = "not finite" if shown.nonfinite[row] else margin(delta, limit)
    return Markup("<br>").join(
        [
            f"delta {signed(delta)}",
            Markup("at {}").format(words.brief(int(shown.delta_id[row]))),
            f"limit {number(limit)}",
            Markup("<b>{}</b>").format(over),
            f"margin {number(float(shown.margin[row]), 3)}",
        ]
    )


def _classes(shown: Positions, row: int, kinds: Mapping[tuple[int, int], list[Divergence]]) -> list[str]:
    """Return what diverged at a position: each flip with its ledger class, then what is over its limit, in one."""
    place = (int(shown.prompt_idx[row]), int(shown.token_idx[row]))
    own = kinds.get(place, [])
    found = [
        f"{_SHORT_KIND.get(d.kind, kind_words(d.kind))} {ledger_words(d.ledger)}" for d in own if d.ledger is not None
    ]
    found += (
        [", ".join(_SHORT_KIND.get(d.kind, kind_words(d.kind)) for d in own if d.ledger is None)]
        if len(found) < len(own)
        else []
    )
    if found:
        return found
    if shown.nonfinite[row]:
        return [kind_words(Kind.NON_FINITE)]
    if shown.top1_flip[row] or shown.top5_flip[row]:
        return [kind_words(Kind.TOP1 if shown.top1_flip[row] else Kind.TOP5_SET)]
    return [NONE]


def _tops(shown: Positions, row: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return both top-5s as (token id, logit)."""
    sides = (shown.pair.reference, shown.pair.candidate)
    ours, theirs = (
        list(zip(side.topk_ids[row, :TOP_JUDGED].tolist(), side.topk_logits[row, :TOP_JUDGED].tolist(), strict=True))
        for side in sides
    )
    return ours, theirs


def top_list(own: list[tuple[int, float]], other: list[tuple[int, float]], words: Words) -> Markup:
    """Return a top-5 as a list; bold is what the other side has not in its five, or not in the first place."""
    theirs = {token for token, _ in other}
    items = []
    for place, (token, logit) in enumerate(own):
        differs = token not in theirs or (place == 0 and token != other[0][0])
        text = Markup("{} {}").format(number(logit, 6), words.brief(token))
        items.append(Markup("<li>{}</li>").format(Markup("<b>{}</b>").format(text) if differs else text))
    return Markup('<ol class="top">{}</ol>').format(Markup().join(items))


def _context(shown: Positions, row: int, words: Words) -> str:
    """Return the last fed tokens of a position as one text, oldest first."""
    rows = shown.of_prompt(int(shown.prompt_idx[row]))
    fed = shown.pair.reference.fed_id[rows[rows <= row][-_CONTEXT:]].tolist()
    texts = [words.tokens.get(token) for token in fed]
    if all(isinstance(text, bytes) for text in texts):
        return ("…" if row - rows[0] >= _CONTEXT else "") + quoted(b"".join(t for t in texts if isinstance(t, bytes)))
    return " ".join(words.token(token) for token in fed)


def _short_row(
    shown: Positions, row: int, kinds: Mapping[tuple[int, int], list[Divergence]], words: Words
) -> list[str]:
    reference, candidate = shown.pair.reference, shown.pair.candidate
    share = float(shown.share[row])
    fed = words.tokens.get(int(reference.fed_id[row]))
    return [
        str(int(shown.token_idx[row])),
        str(int(reference.fed_id[row])) if fed is None else quoted(fed),
        words.token(int(reference.topk_ids[row, 0])),
        words.token(int(candidate.topk_ids[row, 0])),
        signed(float(shown.delta[row])),
        NONE if np.isnan(share) else number(share) if np.isfinite(share) else "not finite",
        number(float(shown.margin[row]), 3),
        number(float(shown.rms_over_std[row])),
        "; ".join(_classes(shown, row, kinds)),
    ]


def _folded(
    shown: Positions, done: set[int], kinds: Mapping[tuple[int, int], list[Divergence]], words: Words
) -> Fragment:
    """Return the rows that are not in the upper table, one folded table for each prompt, in fed order."""
    kept = set(kept_rows(shown)) - done
    blocks = []
    for prompt in shown.prompts():
        own = [int(row) for row in shown.of_prompt(prompt)]
        rows = [row for row in own if row in kept]
        if rows:
            texts = [_short_row(shown, row, kinds, words) for row in rows]
            left = len(own) - len(rows) - len(done.intersection(own))
            which = ", the worst of each square of the map" if len(own) > LONG else ", the worst"
            some = f" of {count(len(rows) + left)} further positions{which}" if left else " further positions"
            name = f"prompt {words.prompt(prompt)}: {count(len(rows))}{some}"
            blocks.append(details(name, table(_SHORT, texts, css="all", cards=False, **_rows(shown, rows))))
    left = len(shown) - len(kept | done)
    rest = f"{count(left)} positions with smaller deltas stand only in the stored traces." if left else ""
    return joined([*blocks, note(rest)])
