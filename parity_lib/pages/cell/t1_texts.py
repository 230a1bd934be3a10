"""Rung T1 and the texts themselves: ids of both tokenizers, listed differences, how much each text repeats itself."""

from __future__ import annotations

from parity_lib.base.names import Rung
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, percent
from parity_lib.records.measured import TextClass, TextNumbers, Tokens
from parity_lib.records.verdicts import Verdict

_CLASSES = (
    Column("texts"),
    Column("expected", numeric=True),
    Column("compared", numeric=True),
    Column("ids of llama.cpp", numeric=True),
    Column("differ, without a reason", numeric=True),
    Column("differ, listed with a reason", numeric=True),
)
_PROMPTS = (
    Column("prompt"),
    Column("positions", numeric=True),
    Column("effective positions", numeric=True),
    Column("distinct 3-grams of the generated tokens", numeric=True),
)
_FACTS = ("pre", "n_vocab", "n_merges", "tokenizers")  # of the tokenizer that was built; all of them stand folded
_EFFECTIVE = "Positions whose last three fed tokens were fed before, in the same prompt, count once."


def text_section(verdict: Verdict, words: Words | None = None) -> Fragment:
    """Return rung T1, and for each prompt how many of its positions say something new."""
    return _tokens(verdict) + _repeats(verdict, words or Words())


def _tokens(verdict: Verdict) -> Fragment:
    found = verdict.measured.tokens
    if found is None or not found.classes:
        return paragraph(_no_tokens(verdict))
    rows = [_class(name, values) for name, values in found.classes.items()]
    rows.sort(key=lambda row: (row[4] == "0", row[0] != "prompts"))
    marks = ["" if row[4] == "0" else "bad" for row in rows]
    classes_table = table(_CLASSES, rows, marks=marks, css="tokens")
    return paragraph(_facts(found)) + classes_table + _differences(found) + _known(found) + _all_facts(found)


def _no_tokens(verdict: Verdict) -> str:
    rung = verdict.rung(Rung.T1)
    if rung is not None:
        return f"Rung T1: {rung.outcome}. {rung.note or ABSENT}"
    return (
        f"Whether llama.cpp's tokenizer and the file's own metadata give the same ids (rung T1): {ABSENT}. "
        "A file without a vocabulary has no text to tokenise, and no such rung."
    )


def _class(name: str, values: TextClass) -> list[str]:
    return [name, *map(count, (values.expected, values.texts, values.tokens, values.different, values.listed))]


def _facts(found: Tokens) -> str:
    """Return two or three sentences: which tokenizer, and whether every id stands for the same bytes."""
    said = ", ".join(f"{key} {found.tokenizer[key]}" for key in _FACTS if key in found.tokenizer)
    word = "all equal" if found.bytes.different == 0 else f"{found.bytes.different} differ"
    compared = f"{count(found.bytes.compared)} of {count(found.bytes.expected)}"
    beside = f" Beside the file's own metadata: {found.ranks}." if found.ranks else ""
    return f"Tokenizer built from the file's metadata: {said}. Bytes of {compared} ids compared: {word}.{beside}"


def _differences(found: Tokens) -> Fragment:
    rows = [[text.name, text.what] for text in found.differences]
    return table((Column("text that differs"), Column("where")), rows, css="tokens") if rows else EMPTY


def _all_facts(found: Tokens) -> Fragment:
    rows = [[key, str(value)] for key, value in found.tokenizer.items()]
    return details("the tokenizer that was built", table((Column("fact"), Column("value")), rows, css="tokens"))


def _known(found: Tokens) -> Fragment:
    rows = [[known.name, str(known.texts), known.reason] for known in found.known]
    if not rows:
        return EMPTY
    columns = (Column("listed difference"), Column("texts in this run", numeric=True), Column("reason"))
    title = f"{len(rows)} difference{'' if len(rows) == 1 else 's'} listed in fixtures/token_differences.toml"
    return details(title, table(columns, rows, css="tokens"), short=True)


def _repeats(verdict: Verdict, words: Words) -> Fragment:
    rows = [_repeat(numbers, words) for numbers in verdict.measured.text]
    if not rows:
        return paragraph(f"How much the generated texts repeat themselves: {ABSENT}.")
    return table(_PROMPTS, rows, css="tokens") + note(_EFFECTIVE)


def _repeat(numbers: TextNumbers, words: Words) -> list[str]:
    share = NONE if numbers.distinct_3grams is None else percent(numbers.distinct_3grams)
    return [words.prompt(numbers.prompt_idx), count(numbers.positions), count(numbers.effective_positions), share]
