"""Repair what a finding names in a checkout of the ndarray fork; the edits are data in ``fixes.toml``.

A place is found by the name of a function or a constant, and what is written there is this project's own text. A
checkout has to be the pinned revision with nothing changed but by these edits, so that git can undo every one of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from parity_lib.base.errors import EngineError, PinError, UsageError
from parity_lib.base.files import write_atomic
from parity_lib.base.toml_table import Table, read_toml
from parity_lib.fork.source import WEIGHTS
from parity_lib.records.pins import load_pins

FIXES, SCHEMA = Path(__file__).with_name("fixes.toml"), "parity/fixes/1"
# What has to be skipped while braces are counted: comments, texts, characters.
_TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'|[{}]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Edit:
    """One change of one file, inside of the function or the constant ``name``.

    ``body`` takes the place of a function's body, ``start`` is put in front of it, ``numbers`` is (old, new), of which
    the old one stands there ``times`` times.
    """

    file: str
    keyword: str  # fn or const
    name: str
    body: str = ""
    start: str = ""
    numbers: tuple[str, ...] = ()
    times: int = 0

    def words(self) -> str:
        """Return the place in a line."""
        what = " becomes ".join(self.numbers) + " in" if self.numbers else "body of" if self.body else "start of"
        return f"{self.file}: {what} {self.keyword} {self.name}"

    def done(self, text: str) -> bool:
        """Return whether ``text``, the whole file, holds the change."""
        first, last = self._span(text)
        inside = text[first:last]
        if self.numbers:
            old, new = (len(_number(number).findall(inside)) for number in self.numbers)
            return not old and new >= self.times
        return inside.startswith(f"\n{self.start}") if self.start else inside == f"\n{self.body}{_indent(text, last)}"

    def apply(self, text: str) -> str:
        """Return ``text`` with the change.

        Raises:
            EngineError: the place is not there, or not as it is in the pinned revision.
        """
        first, last = self._span(text)
        inside = text[first:last]
        if self.numbers:
            old, new = self.numbers
            inside, count = _number(old).subn(new, inside)
            if count != self.times:
                raise self._elsewhere(f"{old} {self.times} times", f"{count} times")
        elif self.start:
            inside = f"\n{self.start}{inside.removeprefix(chr(10))}"
        else:
            inside = f"\n{self.body}{_indent(text, last)}"
        return text[:first] + inside + text[last:]

    def _span(self, text: str) -> tuple[int, int]:
        """Return where the inside of the function begins and ends: after its first brace, before its last."""
        heads = list(re.finditer(rf"\b{self.keyword} {self.name}\b", text))
        if len(heads) != 1:
            raise self._elsewhere("it once", f"{len(heads)} times")
        if self.keyword == "const":
            return heads[0].end(), text.index(";", heads[0].end())
        depth, first = 0, 0
        for token in _TOKEN.finditer(text, heads[0].end()):
            if token[0] == "{":
                first, depth = (token.end() if depth == 0 else first), depth + 1
            elif token[0] == "}":
                depth -= 1
                if depth == 0:
                    return first, token.start()
        raise self._elsewhere("its last brace", "none")

    def _elsewhere(self, expected: str, found: str) -> EngineError:
        return EngineError(
            "the source is not of the shape that is repaired",
            place=f"{self.file}, {self.keyword} {self.name}",
            expected=expected,
            found=found,
            next_step="check out the pinned revision, or adapt parity_lib/fork/fixes.toml",
        )


def _number(number: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.]){re.escape(number)}(?![\w.])")


def _indent(text: str, brace: int) -> str:
    """Return the blanks in front of a closing brace."""
    line = text.rfind("\n", 0, brace) + 1
    return text[line:brace] if not text[line:brace].strip() else ""


@dataclass(frozen=True, slots=True)
class Fix:
    """What repairs one finding."""

    name: str
    why: str
    edits: tuple[Edit, ...]

    def done(self, texts: Mapping[str, str]) -> bool:
        """Return whether all of it is in the files ``texts``, path -> content."""
        return all(edit.done(texts[edit.file]) for edit in self.edits)


@cache
def load_fixes() -> Mapping[str, Fix]:
    """Return every fix by the name of its finding.

    Raises:
        FixtureError: ``fixes.toml`` is damaged.
    """
    table, _ = read_toml(FIXES)
    table.schema(SCHEMA)
    fixes = {name: _fix(name, table.table(name)) for name in table.left()}
    table.done()
    return fixes


def _fix(name: str, table: Table) -> Fix:
    fix = Fix(name, table.text("why"), tuple(_edit(edit) for edit in table.tables("edit")))
    table.done()
    return fix


def _edit(table: Table) -> Edit:
    [keyword] = [word for word in ("fn", "const") if word in table.left()]
    edit = Edit(
        file=table.text("file"),
        keyword=keyword,
        name=table.text(keyword),
        body=table.text("body", ""),
        start=table.text("start", ""),
        numbers=table.texts("numbers", []),
        times=table.integer("times", 0),
    )
    table.done()
    return edit


def named(names: Iterable[str]) -> list[Fix]:
    """Return fixes in the order of ``fixes.toml``, each once; all of them where there is no name.

    Raises:
        UsageError: there is no fix of a name.
    """
    fixes, wanted = load_fixes(), set(names)
    for name in sorted(wanted - set(fixes)):
        raise UsageError("there is no fix of this name", expected=", ".join(fixes), found=name)
    return [fix for name, fix in fixes.items() if name in wanted or not wanted]


def repair(tree: Path, names: Iterable[str]) -> None:
    """Write the fixes into a tree that holds the pinned content.

    Raises:
        EngineError: a place is not there.
    """
    fixes = named(names)
    for path, text in _applied(fixes, _read(tree, fixes)).items():
        write_atomic(tree / path, text.encode())


def repair_checkout(checkout: Path, names: Sequence[str] = (), revision: str = "") -> list[Fix]:
    """Write fixes into the user's own checkout; return those that were not there before.

    Args:
        checkout: the work tree of a git repository.
        names: of fixes; all of them by default.
        revision: what has to be checked out, 40 hex digits; the pinned one by default.

    Raises:
        UsageError: an unknown name, or no checkout.
        PinError: another revision is checked out, or something was changed that is no fix.
        EngineError: git is missing, or a place is not there.
    """
    wanted, every = named(names), named(())
    changed = _check_revision(checkout, revision or pinned_revision())
    own = _read(checkout, every)
    clean = {path: _git(checkout, "show", f"HEAD:{path}") for path in own}
    present = [fix for fix in every if fix.done(own)]
    expected = _applied(present, clean)
    foreign = sorted(set(changed) - set(own) | {path for path in own if own[path] != expected[path]})
    if foreign:
        raise PinError(
            "the checkout has changes of its own",
            place=checkout,
            expected="the pinned revision, and nothing changed but by fixes",
            found=", ".join(foreign),
            next_step=f"keep them elsewhere (git -C {checkout} stash), then call again",
        )
    added = [fix for fix in wanted if fix not in present]
    for path, text in _applied([fix for fix in every if fix in present or fix in added], clean).items():
        if text != own[path]:
            write_atomic(checkout / path, text.encode())
    return added


def pinned_revision() -> str:
    """Return the revision of the fork that the fixes are made for, 40 hex digits."""
    [revision] = {pin.source.revision for pin in load_pins().stacks.values() if pin.source is not None}
    return revision


def _read(tree: Path, fixes: Iterable[Fix]) -> dict[str, str]:
    """Return the files that fixes change, path -> content."""
    paths = dict.fromkeys(edit.file for fix in fixes for edit in fix.edits)
    for path in paths:
        if not (tree / path).is_file():
            raise EngineError("a file of the fork is missing", place=tree / path, expected="the pinned revision's")
    return {path: (tree / path).read_text(encoding="utf-8") for path in paths}


def _applied(fixes: Iterable[Fix], texts: Mapping[str, str]) -> dict[str, str]:
    changed = dict(texts)
    for edit in (edit for fix in fixes for edit in fix.edits):
        changed[edit.file] = edit.apply(changed[edit.file])
    return changed


def _check_revision(checkout: Path, revision: str) -> list[str]:
    """Return the tracked files that differ from the revision, weight files left out; refuse another revision."""
    if not (checkout / ".git").exists():
        raise UsageError(
            "fixes are written into a git checkout, where git can undo them",
            place=checkout,
            expected="the top folder of a work tree, with .git",
            found="none",
            next_step="git clone the fork and check out the pinned revision",
        )
    head = _git(checkout, "rev-parse", "HEAD").strip()
    if head != revision:
        raise PinError(
            "another revision is checked out",
            place=checkout,
            expected=revision,
            found=head,
            next_step=f"git -C {checkout} checkout {revision}",
        )
    names = _git(checkout, "diff", "--name-only", "-z", "HEAD").split("\0")
    return [name for name in names if name and not name.endswith(WEIGHTS)]


def _git(checkout: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, check=True)
    except FileNotFoundError as error:
        raise EngineError("there is no git", place="PATH", found=error, next_step="install git") from error
    except subprocess.CalledProcessError as error:
        found = error.stderr.decode(errors="replace").strip()
        raise EngineError("git failed", place=" ".join(words[:2]), expected="status 0", found=found) from error
    return done.stdout.decode()
