"""Rung T1 and the texts themselves: ids of both tokenizers, listed differences, how much each text repeats itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parity_lib.base.names import Rung
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import EMPTY, Fragment, details, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, Words, count, percent
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
    found = verdict.literal.get("tokens")
    classes = found.get("classes") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(classes, Mapping) or not classes:
        return paragraph(_no_tokens(verdict))
    rows = [_class(str(name), values) for name, values in classes.items() if isinstance(values, Mapping)]
    rows.sort(key=lambda row: (row[4] in ("0", NONE), row[0] != "prompts"))
    marks = ["" if row[4] in ("0", NONE) else "bad" for row in rows]
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


def _class(name: str, values: Mapping[str, Any]) -> list[str]:
    keys = ("expected", "texts", "tokens", "different", "listed")
    return [name, *(count(values[key]) if isinstance(values.get(key), int) else NONE for key in keys)]


def _facts(found: Mapping[str, Any]) -> str:
    """Return one or two sentences: which tokenizer, and whether every id stands for the same bytes."""
    facts, bytes_ = found.get("tokenizer"), found.get("bytes")
    sentences = []
    if isinstance(facts, Mapping):
        named = (key for key in _FACTS if isinstance(facts.get(key), str | int))
        said = ", ".join(f"{key} {facts[key]}" for key in named)
        sentences.append(f"Tokenizer built from the file's metadata: {said}.")
    if isinstance(bytes_, Mapping) and all(isinstance(bytes_.get(k), int) for k in ("expected", "compared")):
        differ = bytes_.get("different")
        word = "all equal" if differ == 0 else f"{differ} differ"
        sentences.append(f"Bytes of {count(bytes_['compared'])} of {count(bytes_['expected'])} ids compared: {word}.")
    if found.get("ranks"):
        sentences.append(f"Beside the file's own metadata: {found['ranks']}.")
    return " ".join(sentences) or "Ids of llama.cpp against those of a tokenizer built from the file's metadata."


def _differences(found: Mapping[str, Any]) -> Fragment:
    items = found.get("differences")
    listed = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
    if not listed:
        return EMPTY
    rows = [[str(item.get("name", NONE)), str(item.get("what", NONE))] for item in listed]
    return table((Column("text that differs"), Column("where")), rows, css="tokens")


def _all_facts(found: Mapping[str, Any]) -> Fragment:
    facts = found.get("tokenizer")
    rows = [[str(key), str(value)] for key, value in facts.items()] if isinstance(facts, Mapping) else []
    return details("the tokenizer that was built", table((Column("fact"), Column("value")), rows, css="tokens"))


def _known(found: Mapping[str, Any]) -> Fragment:
    items = found.get("known")
    listed = [item for item in items if isinstance(item, Mapping)] if isinstance(items, list | tuple) else []
    if not listed:
        return EMPTY
    columns = (Column("listed difference"), Column("texts tonight", numeric=True), Column("reason"))
    rows = [[str(k.get("name", NONE)), str(k.get("texts", NONE)), str(k.get("reason", NONE))] for k in listed]
    title = f"{len(rows)} difference{'' if len(rows) == 1 else 's'} listed in fixtures/token_differences.toml"
    return details(title, table(columns, rows, css="tokens"), short=True)


def _repeats(verdict: Verdict, words: Words) -> Fragment:
    rows = [_repeat(idx, values, words) for idx, values in _by_prompt(verdict.literal.get("text"))]
    if not rows:
        return paragraph(f"How much the generated texts repeat themselves: {ABSENT}.")
    return table(_PROMPTS, rows, css="tokens") + note(_EFFECTIVE)


def _repeat(idx: int, values: Mapping[str, Any], words: Words) -> list[str]:
    def whole(key: str) -> str:
        value = values.get(key)
        return count(int(value)) if isinstance(value, int | float) else NONE

    share = values.get("distinct_3grams")
    distinct = percent(share) if isinstance(share, int | float) else NONE
    return [words.prompt(idx), whole("positions"), whole("effective_positions"), distinct]


def _by_prompt(found: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:  # noqa: ANN401 - JSON
    """Yield (prompt_idx, numbers) of a list of objects, or of an object whose keys are prompts."""
    if isinstance(found, Mapping):
        items = [(key, values) for key, values in found.items() if str(key).isdigit()]
        yield from ((int(key), values) for key, values in items if isinstance(values, Mapping))
    elif isinstance(found, list | tuple):
        for values in found:
            if isinstance(values, Mapping) and isinstance(values.get("prompt_idx"), int):
                yield values["prompt_idx"], values
