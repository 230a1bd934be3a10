"""The list of known differences between llama.cpp's tokenizer and the families' own: each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import FixtureError
from parity_lib.base.toml_table import Table, fixture_path, read_toml

SCHEMA = "parity/token-differences/1"
TOGETHER = "+"  # between the names of rules that are followed at once
EXACT = ("prompts", "cases", "invalid")  # classes of texts in which nothing can be excused


@dataclass(frozen=True, slots=True)
class KnownDifference:
    """Texts of some classes may differ for one reason, which has to be shown for each of them.

    A text is excused only if the built tokenizer gives llama.cpp's ids as soon as it follows llama.cpp in ``rule``.
    """

    name: str
    pre: tuple[str, ...]  # pre-tokenizers
    rule: str
    groups: tuple[str, ...]  # classes of generated texts
    seen: tuple[str, ...]  # digests of tokenizers' metadata with which some text must differ, or the entry is stale
    reason: str


@dataclass(frozen=True, slots=True)
class KnownDifferences:
    """The whole list, and the hash of its file."""

    entries: tuple[KnownDifference, ...]
    sha256: str

    def of(self, pre: str) -> tuple[KnownDifference, ...]:
        """Return the entries of one pre-tokenizer."""
        return tuple(entry for entry in self.entries if pre in entry.pre)

    def ways(self, pre: str, group: str) -> tuple[str, ...]:
        """Return what may explain a text of this class: each listed rule alone, then all of them together."""
        rules = [entry.rule for entry in self.of(pre) if group in entry.groups]
        return (*rules, TOGETHER.join(rules)) if len(rules) > 1 else tuple(rules)


def load_differences(path: Path | None = None) -> KnownDifferences:
    """Return the list of ``fixtures/token_differences.toml``, or of another file.

    Raises:
        FixtureError: unreadable, of another version, an unknown key, a name twice, or an entry that excuses a class
            in which nothing can be excused.
    """
    path = fixture_path("token_differences.toml") if path is None else path
    table, digest = read_toml(path)
    table.schema(SCHEMA)
    entries = tuple(_entry(item) for item in table.tables("difference", []))
    table.done()
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise FixtureError("two differences have the same name", place=path, found=", ".join(sorted(names)))
    return KnownDifferences(entries, digest)


def _entry(item: Table) -> KnownDifference:
    entry = KnownDifference(
        name=item.text("name"),
        pre=item.texts("pre"),
        rule=item.text("rule"),
        groups=item.texts("classes"),
        seen=item.texts("seen"),
        reason=item.text("reason"),
    )
    item.done()
    exact = sorted(set(entry.groups) & set(EXACT))
    if exact or not (entry.pre and entry.groups and entry.seen):
        raise FixtureError(
            "a difference cannot be excused so",
            place=f"{item.place} '{entry.name}'",
            expected=f"at least one pre, class and digest; no class of {', '.join(EXACT)}",
            found=", ".join(exact) or "an empty list",
        )
    return entry
