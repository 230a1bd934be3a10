"""Rung T1 on the page: texts by class, vocabulary cases, differences with their reasons, prompts cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from parity_lib.base.names import Rung
from parity_lib.cell.file_check import Pieces
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, joined, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, quoted
from parity_lib.records.measured import Tokens
from parity_lib.records.verdicts import Verdict

_CLASSES = (
    Column("class of texts"),
    Column("texts", numeric=True),
    Column("tokens", numeric=True),
    Column("different, not listed", numeric=True),
    Column("different, listed with reason", numeric=True),
)
_CASES = (
    Column("vocabulary"),
    Column("rules"),
    Column("cases", numeric=True),
    Column("as expected", numeric=True),
    Column("generated texts", numeric=True),
    Column("listed", numeric=True),
    Column("tokens' bytes", numeric=True),
)
_FACTS = (Column("tokenizer"), Column("value"))


def token_table(verdict: Verdict) -> Fragment:
    """Return the texts of this file by class, and what differs."""
    record = verdict.measured.tokens
    if record is None:
        return paragraph("The file has no vocabulary: there is no text to tokenise, and the prompts are made of ids.")
    counts = {name: (row.texts, row.tokens, row.different, row.listed) for name, row in record.classes.items()}
    total = [sum(numbers) for numbers in zip((0, 0, 0, 0), *counts.values(), strict=True)]
    rows = [[name, *map(count, numbers)] for name, numbers in (counts | {"all": total}).items()]
    bad = [numbers[2] > 0 for numbers in (*counts.values(), total)]
    found = record.bytes
    text = (
        f"{count(total[0])} texts tokenised by both, {count(total[2])} differ without a listed reason; the bytes of "
        f"{count(found.compared)} of {count(found.expected)} tokens compared, {count(found.different)} differ."
    )
    classes = table(_CLASSES, rows, marks=_red(bad), css="tokens", cards=False)
    return paragraph(text) + classes + _facts(record.tokenizer)


def case_table(verdict: Verdict) -> Fragment:
    """Return llama.cpp's own vocabulary cases: both tokenizers against the expected ids."""
    cases = verdict.measured.cases
    if not cases:
        return paragraph("The vocabulary cases were not run.")
    rows, bad = [], []
    for name, record in cases.items():
        own = record.classes["cases"]
        others = [row for group, row in record.classes.items() if group != "cases"]
        rows.append(
            [
                name,
                str(record.tokenizer["pre"]),
                count(own.texts),
                count(own.texts - own.different),
                count(sum(row.texts for row in others)),
                count(sum(row.listed for row in others)),
                count(record.bytes.compared),
            ]
        )
        bad.append(own.different > 0 or sum(row.different for row in others) > 0)
    return table(_CASES, rows, marks=_red(bad), css="tokens")


def token_differences(verdict: Verdict) -> Fragment:
    """Return the first ids that differ, and under them the known differences with their reasons."""
    lines = [(d.where or NONE, d.note) for d in verdict.divergences if d.rung is Rung.T1]
    columns = (Column("text"), Column("where the ids part"))
    shown = paragraph("No difference without a listed reason.")
    if lines:
        shown = table(columns, lines, marks=["bad"] * len(lines), css="tokens")
    known = [entry for record in _records(verdict) for entry in record.known if entry.texts]
    merged = {entry.name: entry for entry in known}
    counts = {name: sum(e.texts for e in known if e.name == name) for name in merged}
    rows = [[name, count(counts[name]), ", ".join(e.classes), e.reason] for name, e in merged.items()]
    listed = (Column("listed difference"), Column("texts", numeric=True), Column("classes"), Column("reason"))
    return shown + (table(listed, rows, css="tokens") if rows else EMPTY)


def prompt_pieces(prompts: Sequence[Pieces]) -> Fragment:
    """Return each prompt as boxes, one a token; whitespace is visible, the id is the box's title."""
    blocks = []
    for prompt in prompts:
        shown = prompt.tokens[:_SHOWN]
        boxes = [_BOX.format(token, quoted(word)[1:-1] or Markup("&nbsp;")) for token, word in shown]
        rest = len(prompt.tokens) - len(shown)
        more = f" and {count(rest)} more" if rest else ""
        html = Markup('<p class="pieces">{}{}</p>').format(Markup().join(boxes), more)
        body = Fragment(html, " ".join(quoted(word) for _, word in shown))
        blocks.append(details(f"{prompt.name}: {count(len(prompt.tokens))} tokens", body))
    return joined(blocks) if blocks else paragraph("The file has no vocabulary.")


_SHOWN = 400  # tokens of a prompt
_BOX = Markup('<span class="piece" title="{}">{}</span>')


def _records(verdict: Verdict) -> list[Tokens]:
    own = verdict.measured.tokens
    return [*([] if own is None else [own]), *verdict.measured.cases.values()]


def _facts(tokenizer: Mapping[str, Any]) -> Fragment:
    names = {
        "pre": "pre-tokenizer",
        "n_vocab": "tokens",
        "n_merges": "merges",
        "types": "token types",
        "added_tokens": "user-defined tokens, found in a text",
        "bos": "added in front of every text",
        "eos": "added behind every text",
        "missing_bytes": "bytes without a token",
        "nfc": "text is composed first (NFC)",
        "ignore_merges": "whole pieces before merges",
        "scores": "different scores",
        "space_prefix": "a space in front of a text",
        "source": "rules from",
        "tokenizers": "tokenizers, version",
    }
    rows = [[label, _word(tokenizer[key])] for key, label in names.items() if key in tokenizer]
    return details("what the file says of its tokenizer", table(_FACTS, rows, css="tokens"))


def _word(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {count(number)}" for name, number in value.items())
    if isinstance(value, list):
        return ", ".join(f"0x{item:02x}" for item in value) or NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else count(value) if isinstance(value, int) else str(value)


def _red(bad: Sequence[bool]) -> list[str]:
    return ["bad" if wrong else "" for wrong in bad]
