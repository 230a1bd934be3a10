"""Rung T1 on the page: texts by class, vocabulary cases, differences with their reasons, prompts cut into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parity_lib.base.names import Rung
from parity_lib.cell.file_check import Pieces
from parity_lib.pages.kit.fragment import Column, Fragment, details, plain_table, table
from parity_lib.pages.kit.text import NONE, count, escape, quoted
from parity_lib.records.verdicts import Verdict

Json = Mapping[str, Any]
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
    record = verdict.literal.get("tokens")
    if not isinstance(record, Mapping):
        text = "The file has no vocabulary: there is no text to tokenise, and the prompts are made of ids."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    rows = [
        [name, *(count(row[key]) for key in ("texts", "tokens", "different", "listed"))]
        for name, row in record["classes"].items()
    ]
    total = [sum(row[key] for row in record["classes"].values()) for key in ("texts", "tokens", "different", "listed")]
    rows.append(["all", *map(count, total)])
    bad = [*(row["different"] > 0 for row in record["classes"].values()), total[2] > 0]
    found = record["bytes"]
    text = (
        f"{count(total[0])} texts tokenised by both, {count(total[2])} differ without a listed reason; the bytes of "
        f"{count(found['compared'])} of {count(found['expected'])} tokens compared, {count(found['different'])} differ."
    )
    html = f"<p>{escape(text)}</p>" + table(_CLASSES, rows, row_attributes=_red(bad), css="tokens", cards=False)
    return Fragment(html=html + _facts(record["tokenizer"]), plain=f"{text}\n{plain_table(_CLASSES, rows)}")


def case_table(verdict: Verdict) -> Fragment:
    """Return llama.cpp's own vocabulary cases: both tokenizers against the expected ids."""
    cases = verdict.literal.get("cases")
    if not isinstance(cases, Mapping) or not cases:
        text = "The vocabulary cases were not run."
        return Fragment(html=f"<p>{text}</p>", plain=text)
    rows, bad = [], []
    for name, record in cases.items():
        own = record["classes"]["cases"]
        others = [row for group, row in record["classes"].items() if group != "cases"]
        rows.append(
            [
                name,
                record["tokenizer"]["pre"],
                count(own["texts"]),
                count(own["texts"] - own["different"]),
                count(sum(row["texts"] for row in others)),
                count(sum(row["listed"] for row in others)),
                f"{count(record['bytes']['compared'])}",
            ]
        )
        bad.append(own["different"] > 0 or sum(row["different"] for row in others) > 0)
    return Fragment(html=table(_CASES, rows, row_attributes=_red(bad), css="tokens"), plain=plain_table(_CASES, rows))


def token_differences(verdict: Verdict) -> Fragment:
    """Return the first ids that differ, and under them the known differences with their reasons."""
    lines = [(d.where or NONE, d.note) for d in verdict.divergences if d.rung is Rung.T1]
    columns = (Column("text"), Column("where the ids part"))
    html = table(columns, lines, row_attributes=['class="bad"'] * len(lines), css="tokens") if lines else ""
    plain = plain_table(columns, lines) if lines else "No difference without a listed reason."
    known = [entry for record in _records(verdict) for entry in record["known"] if entry["texts"]]
    merged = {entry["name"]: entry for entry in known}
    counts = {name: sum(e["texts"] for e in known if e["name"] == name) for name in merged}
    rows = [[name, count(counts[name]), ", ".join(e["classes"]), e["reason"]] for name, e in merged.items()]
    listed = (Column("listed difference"), Column("texts", numeric=True), Column("classes"), Column("reason"))
    html += "" if lines else "<p>No difference without a listed reason.</p>"
    html += table(listed, rows, css="tokens") if rows else ""
    return Fragment(html=html, plain=f"{plain}\n{plain_table(listed, rows)}" if rows else plain)


def prompt_pieces(prompts: Sequence[Pieces]) -> Fragment:
    """Return each prompt as boxes, one a token; whitespace is visible, the id is the box's title."""
    blocks = []
    for prompt in prompts:
        boxes = "".join(
            f'<span class="piece" title="{token}" style="{_BOX}">{escape(quoted(word)[1:-1]) or "&nbsp;"}</span>'
            for token, word in prompt.tokens[:_SHOWN]
        )
        more = f" and {count(len(prompt.tokens) - _SHOWN)} more" if len(prompt.tokens) > _SHOWN else ""
        summary = f"{escape(prompt.name)}: {count(len(prompt.tokens))} tokens"
        blocks.append(details(summary, f'<p style="line-height:1.9">{boxes}{more}</p>'))
    text = "\n".join(f"{p.name}: {' '.join(quoted(word) for _, word in p.tokens[:_SHOWN])}" for p in prompts)
    empty = "The file has no vocabulary." if not prompts else ""
    return Fragment(html="".join(blocks) or f"<p>{empty}</p>", plain=text or empty)


_SHOWN = 400  # tokens of a prompt
_BOX = "border:1px solid currentColor;border-radius:3px;padding:0 3px;margin:0 2px 2px 0;display:inline-block"


def _records(verdict: Verdict) -> list[Json]:
    own, cases = verdict.literal.get("tokens"), verdict.literal.get("cases")
    found = [own] if isinstance(own, Mapping) else []
    return found + list(cases.values() if isinstance(cases, Mapping) else [])


def _facts(tokenizer: Json) -> str:
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
        return ", ".join(f"0x{item:02x}" for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "nothing" if value is None else count(value) if isinstance(value, int) else str(value)


def _red(bad: Sequence[bool]) -> list[str]:
    return ['class="bad"' if wrong else "" for wrong in bad]
