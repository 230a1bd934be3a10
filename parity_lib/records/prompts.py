"""The prompts of a run: frozen text, each with the reason why it is in the suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import FixtureError, UsageError
from parity_lib.base.toml_table import Table, close_matches, fixture_path, read_toml

SCHEMA = "parity/prompts/1"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt; ``idx`` is the number in every record, ``name`` is for people, commands take either."""

    idx: int
    name: str
    bucket: str
    text: str
    n_tokens: int  # generated tokens that are scored
    why: str


@dataclass(frozen=True, slots=True)
class PromptSuite:
    """All prompts of one file, in the order of their numbers 0, 1, 2, ..."""

    prompts: tuple[Prompt, ...]
    sha256: str  # of the file's bytes
    path: Path

    def __len__(self) -> int:
        return len(self.prompts)

    def get(self, key: str | int) -> Prompt:
        """Return a prompt by number or by name.

        Raises:
            UsageError: there is none; the message lists what there is.

        >>> suite = load_prompts()
        >>> suite.get(0).name, suite.get("insulin").idx
        ('insulin', 0)
        """
        names = {prompt.name: prompt for prompt in self.prompts}
        word = str(key)
        if word in names:
            return names[word]
        if word.isascii() and word.isdecimal() and int(word) < len(self.prompts):
            return self.prompts[int(word)]
        raise UsageError(
            f"unknown prompt '{word}'{close_matches(word, names)}",
            place=self.path.name,
            expected=f"0 to {len(self.prompts) - 1}, or one of {', '.join(names)}",
        )


def load_prompts(path: Path | str | None = None) -> PromptSuite:
    """Return the suite of ``fixtures/prompts.toml``, or of the user's own file.

    Raises:
        FixtureError: unreadable, another version, an unknown or missing key, numbers that are not
            0, 1, 2, ... in order, a name twice, or no prompt at all.

    >>> len(load_prompts())
    11
    >>> load_prompts().get(0).n_tokens
    50
    """
    path = fixture_path("prompts.toml") if path is None else Path(path)
    table, sha256 = read_toml(path)
    table.schema(SCHEMA)
    prompts = tuple(_prompt(entry) for entry in table.tables("prompt"))
    table.done()
    if not prompts:
        raise FixtureError("holds no prompt", place=path, expected="at least one [[prompt]]")
    seen: set[str] = set()
    for number, prompt in enumerate(prompts):
        if prompt.idx != number:
            # prompt_idx is part of every record: a gap or another order would re-number old records.
            raise FixtureError("numbers are not in order", place=path, expected=f"idx = {number}", found=prompt.idx)
        if prompt.name in seen or prompt.name.isdecimal():
            raise FixtureError("a name is taken twice or is a number", place=path, found=prompt.name)
        seen.add(prompt.name)
    return PromptSuite(prompts, sha256, path)


def _prompt(table: Table) -> Prompt:
    prompt = Prompt(
        idx=table.integer("idx"),
        name=table.text("name"),
        bucket=table.text("bucket"),
        text=table.text("text"),
        n_tokens=table.integer("n_tokens", least=1),
        why=table.text("why"),
    )
    table.done()
    return prompt
