"""What is pinned of a stack under the candidate: its crates, the fork's source, and what is repaired in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Isa
from parity_lib.base.toml_table import Table

OPS, MODULES = "ops", "modules"  # the candidate calls burn op by op, or through the modules of burn-nn
WITHOUT = "-without-"  # between a stack's id and the fix that is left out


@dataclass(frozen=True, slots=True)
class SourcePin:
    """The pinned revision and content digest of the fork's source that a stack is built with."""

    repository: str
    revision: str  # 40 hex digits
    sha256: str  # of the files, see ``fork/source.py``


@dataclass(frozen=True, slots=True)
class StackPin:
    """What a stack consists of: crate names and exact versions below the candidate."""

    id: str
    what: str
    crates: Mapping[str, str]
    isa: str = ""  # the only ISA target that the build can run, or "" for the widest one
    source: SourcePin | None = None  # None: everything comes from crates.io
    fixes: tuple[str, ...] = ()  # that the build writes into its copy of the source, see ``fork/fixes.toml``
    implementation: str = OPS  # how the candidate calls burn

    def without(self, fix: str) -> StackPin:
        """Return this stack with one of its fixes left out, under an id of its own; it has no entry in the file.

        Raises:
            UsageError: the stack has no such fix.
        """
        if fix not in self.fixes:
            raise UsageError(
                f"the stack {self.id} has no fix '{fix}'", expected=", ".join(self.fixes) or "a stack with fixes"
            )
        fixes = tuple(name for name in self.fixes if name != fix)
        return replace(self, id=f"{self.id}{WITHOUT}{fix}", what=f"{self.what}; without the fix {fix}", fixes=fixes)


def read_stack(table: Table) -> StackPin:
    """Take one ``[[stack]]``.

    Raises:
        FixtureError: a missing or unknown key, an id that is no plain word, or a digest that is none.
    """
    source = _source(table.table("source")) if "source" in table.left() else None
    isa = table.one_of("isa", list(Isa)) if "isa" in table.left() else ""
    fixes = table.texts("fixes", [])
    implementation = table.one_of("implementation", [OPS, MODULES]) if "implementation" in table.left() else OPS
    stack = StackPin(table.word("id"), table.text("what"), table.strings("crates"), isa, source, fixes, implementation)
    table.done()
    return stack


def _source(table: Table) -> SourcePin:
    pin = SourcePin(table.text("repository"), table.hex("revision", 40), table.hex("sha256", 64))
    table.done()
    return pin
