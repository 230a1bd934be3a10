"""Rung T1: do llama.cpp's tokenizer and one built from the file's metadata give the same ids, and bytes, everywhere?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.judge.t1_known_differences import EXACT, TOGETHER, KnownDifference, KnownDifferences
from parity_lib.records.measured import BytesCompared, ListedDifference, TextClass, TextDifference, Tokens
from parity_lib.records.verdicts import Divergence, RungResult

AROUND = 3  # ids shown on each side of the first that differs
Ids = tuple[int, ...]
_RANK = {Outcome.PARITY: 0, Outcome.INCOMPLETE: 1, Outcome.DIVERGED: 2}
REFUSED: Ids = (-1,)  # stands for a refusal: no token has this id


@dataclass(frozen=True, slots=True)
class TextResult:
    """One text, tokenised by both; ``REFUSED`` where a side refuses the text."""

    name: str
    group: str
    reference: Ids  # llama.cpp's
    candidate: Ids  # of the tokenizer built from the metadata
    expected: Ids | None = None  # of a vocabulary case: what the model's own tokenizer gave when the case was made
    following: Mapping[str, Ids] = field(default_factory=dict)  # rule -> ids when llama.cpp is followed in it
    ranks: Ids | None = None  # of a tokenizer whose ranks do not come from the file; None: there is none

    @property
    def equal(self) -> bool:
        """Return whether both tokenizers, and the expected ids if given, agree on this text."""
        return self.reference == self.candidate and {self.expected, self.ranks} <= {None, self.reference}


@dataclass(frozen=True, slots=True)
class BytesResult:
    """The text of every token, by both."""

    n_expected: int
    n_compared: int
    different: tuple[tuple[int, bytes, bytes], ...]  # (id, llama.cpp's bytes, the metadata's)


@dataclass(frozen=True, slots=True)
class RankCheck:
    """What holds the ids beside the file's own metadata: pinned ranks from elsewhere."""

    name: str  # id of the pin
    sha256: str
    bytes: BytesResult | None  # llama.cpp's bytes of each ordinary token against the ranks'; None: not fetched

    @property
    def words(self) -> str:
        """Return in a few words what was held to them, or that it was not, with the command."""
        if self.bytes is None:
            return f"not held to the ranks {self.name}, which are not here: parity models fetch {self.name}"
        return f"ids and {self.bytes.n_compared} tokens' bytes held to the ranks {self.name} too"


@dataclass(frozen=True, slots=True)
class TokenizerPair:
    """Everything that was found for one file."""

    digest: str  # of the file's tokenizer metadata
    expected: Mapping[str, int]  # class -> number of texts that had to be tokenised
    texts: Sequence[TextResult]
    bytes: BytesResult
    facts: Mapping[str, Any]  # of the built tokenizer; "pre" is read here, and "warning" if there is one
    ranks: RankCheck | None = None  # None: no ranks are pinned for this vocabulary


def judge_tokens(pair: TokenizerPair, known: KnownDifferences) -> tuple[RungResult, list[Divergence], Tokens]:
    """Return T1's result, its divergences and the numbers for the record. Counts are of texts.

    A difference counts unless an entry of ``known`` covers the text's class and its rule alone explains the ids.
    An entry that explains nothing, though it was seen with this very tokenizer, leaves the rung INCOMPLETE.
    """
    pre = str(pair.facts["pre"])
    entries = known.of(pre)
    excused = {text.name: entry for text in pair.texts if (entry := _excuse(text, pre, known)) is not None}
    differing = [text for text in pair.texts if not text.equal]
    unknown = [text for text in differing if text.name not in excused]
    divergences = _divergences(unknown, pair)
    causes = _missing(pair) + _stale(pair, entries, excused)
    outcome = Outcome.DIVERGED if divergences else Outcome.INCOMPLETE if causes else Outcome.PARITY
    n_tokens = sum(len(text.reference) for text in pair.texts if text.reference != REFUSED)
    listed = f"{len(excused)} listed differences, " if excused else ""
    note = f"{n_tokens} tokens, {listed}{pair.bytes.n_compared} tokens' bytes"
    rung = RungResult(
        rung=Rung.T1,
        outcome=outcome,
        expected=sum(pair.expected.values()),
        compared=len({text.name for text in pair.texts}),
        worst=float(len(unknown)),
        limit=0.0,
        unit="texts",
        worst_where=unknown[0].name if unknown else "",
        source="tokenizers, built from the file's own metadata",
        note="; ".join([note, *filter(None, [pair.ranks and pair.ranks.words, pair.facts.get("warning")]), *causes]),
    )
    return rung, divergences, _record(pair, known, entries, excused, unknown)


def join_rungs(rungs: Sequence[RungResult]) -> RungResult:
    """Return one T1 over several files: counts added up, the worst outcome, every note."""
    worst = max(rungs, key=lambda rung: (_RANK[rung.outcome], rung.worst or 0.0))
    return replace(
        worst,
        expected=sum(rung.expected for rung in rungs),
        compared=sum(rung.compared for rung in rungs),
        worst=sum(rung.worst or 0.0 for rung in rungs),
        note="; ".join(rung.note for rung in rungs),
    )


def _excuse(text: TextResult, pre: str, known: KnownDifferences) -> KnownDifference | None:
    """Return the entry that covers the difference of this text and is shown to explain it; None for an equal text.

    A difference of llama.cpp's own is one that the ranks, where there are some, show as the built tokenizer does.
    """
    if text.equal or text.expected is not None or text.group in EXACT or text.ranks not in (None, text.candidate):
        return None
    for way in known.ways(pre, text.group):
        if text.following.get(way) == text.reference:
            rule = way.partition(TOGETHER)[0]  # several together: the first of them stands for all
            return next(entry for entry in known.of(pre) if entry.rule == rule and text.group in entry.groups)
    return None


def _missing(pair: TokenizerPair) -> list[str]:
    """Return what had to be compared and was not, one sentence each."""
    given = Counter(text.group for text in pair.texts)
    causes = [
        f"{group}: tokenised {given[group]} of {pair.expected.get(group, 0)} texts"
        for group in sorted(given.keys() | pair.expected.keys())
        if given[group] != pair.expected.get(group, 0)
    ]
    names = Counter(text.name for text in pair.texts)
    causes += [f"{name} was tokenised {count} times" for name, count in names.items() if count > 1]
    if pair.bytes.n_compared != pair.bytes.n_expected or not pair.bytes.n_expected:
        causes.append(f"compared the bytes of {pair.bytes.n_compared} of {pair.bytes.n_expected} tokens")
    held = pair.ranks and pair.ranks.bytes
    if held and (held.n_compared != held.n_expected or any(text.ranks is None for text in pair.texts)):
        causes.append(f"not every text and token was held to the ranks {pair.ranks and pair.ranks.name}")
    return causes


def _stale(
    pair: TokenizerPair, entries: Sequence[KnownDifference], excused: Mapping[str, KnownDifference]
) -> list[str]:
    used = {entry.name for entry in excused.values()}
    compared = {text.group for text in pair.texts}
    return [
        f"the listed difference '{entry.name}' is gone: correct fixtures/token_differences.toml"
        for entry in entries
        if pair.digest in entry.seen and entry.name not in used and compared & set(entry.groups)
    ]


def _divergences(unknown: Sequence[TextResult], pair: TokenizerPair) -> list[Divergence]:
    """Return one for each exact text that differs, one for each generated class, one for the tokens' bytes."""
    groups: dict[str, list[TextResult]] = {}
    for text in unknown:
        groups.setdefault(text.name if text.group in EXACT else text.group, []).append(text)
    lines = [_divergence(texts) for texts in groups.values()]
    sides = {"tokenizers": pair.bytes}
    if pair.ranks is not None and pair.ranks.bytes is not None:
        sides["ranks"] = pair.ranks.bytes
    for name, found in sides.items():
        if found.different:
            token, theirs, ours = found.different[0]
            note = f"{len(found.different)} tokens have other bytes, the first: llama.cpp {theirs!r}, {name} {ours!r}"
            lines.append(Divergence(rung=Rung.T1, kind=Kind.TOKENS, limit=0.0, where=f"token/{token}", note=note))
    return lines


def _divergence(texts: Sequence[TextResult]) -> Divergence:
    first = texts[0]
    note = describe(first)
    if len(texts) > 1:
        note += f"; {len(texts)} texts of {first.group} differ"
    return Divergence(rung=Rung.T1, kind=Kind.TOKENS, limit=0.0, where=first.name, note=note)


def describe(text: TextResult) -> str:
    """Return in words where the ids of a text part, with the ids around that place."""
    sides = {"llama.cpp": text.reference, "tokenizers": text.candidate}
    if text.ranks is not None:
        sides["ranks"] = text.ranks
    if text.expected is not None:
        sides["expected"] = text.expected
    index = first_difference(list(sides.values()))
    if index is None:
        return "no difference"
    shown = ", ".join(f"{name} {_window(ids, index)}" for name, ids in sides.items())
    return f"the first id that differs is number {index}: {shown}"


def first_difference(sides: Sequence[Ids]) -> int | None:
    """Return the index of the first id that is not the same on all sides, or None.

    >>> first_difference([(1, 2, 3), (1, 2, 4)]), first_difference([(1, 2), (1, 2)])
    (2, None)
    """
    longest = max(map(len, sides), default=0)
    return next((i for i in range(longest) if len({ids[i : i + 1] for ids in sides}) > 1), None)


def _window(ids: Ids, index: int) -> str:
    if ids == REFUSED:
        return "refuses the text"
    start = max(0, index - AROUND)
    words = [str(token) for token in ids[start : index + AROUND + 1]]
    front, back = ("... " if start else ""), (" ..." if index + AROUND + 1 < len(ids) else "")
    return f"[{front}{' '.join(words)}{back}] of {len(ids)}"


def _record(
    pair: TokenizerPair,
    known: KnownDifferences,
    entries: Sequence[KnownDifference],
    excused: Mapping[str, KnownDifference],
    unknown: Sequence[TextResult],
) -> Tokens:
    """Return what a verdict holds of the two tokenizers."""
    wrong = {text.name for text in unknown}
    by_group: dict[str, Counter[str]] = {group: Counter(expected=n) for group, n in pair.expected.items()}
    for text in pair.texts:
        row = by_group.setdefault(text.group, Counter())
        row["texts"] += 1
        row["tokens"] += 0 if text.reference == REFUSED else len(text.reference)
        row["different"] += text.name in wrong
        row["listed"] += text.name in excused
    counts = Counter(entry.name for entry in excused.values())
    return Tokens(
        classes={g: TextClass(**{n: row[n] for n in TextClass.__struct_fields__}) for g, row in by_group.items()},
        bytes=BytesCompared(pair.bytes.n_expected, pair.bytes.n_compared, len(pair.bytes.different)),
        differences=tuple(TextDifference(text.name, describe(text)) for text in unknown[:20]),
        known=tuple(ListedDifference(e.name, e.rule, e.reason, counts[e.name], e.groups) for e in entries),
        known_sha256=known.sha256,
        ranks="" if pair.ranks is None else f"{pair.ranks.words} ({pair.ranks.sha256[:12]})",
        tokenizer=pair.facts,
    )
