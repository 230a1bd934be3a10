"""Rung T0: are these the pinned files, engines and inputs? After a mismatch no other rung is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity_lib.base.names import Outcome, Rung
from parity_lib.records.verdicts import RungResult

_SHORTEST_COMMIT = 7  # digits; git's own abbreviation


@dataclass(frozen=True, slots=True)
class PinCheck:
    """One pin: its name, what was expected, what was found."""

    name: str
    expected: str
    found: str
    ok: bool

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.found}"


def check_equal(name: str, expected: object, found: object) -> PinCheck:
    """Return a check that two values are equal as text; None and an empty text are never equal.

    >>> print(check_equal("prompts", "85e4442e", "0badcafe"))
    prompts: expected 85e4442e, found 0badcafe
    >>> check_equal("prompts", None, None).ok
    False
    """
    known = None not in (expected, found) and "" not in (str(expected), str(found))
    return PinCheck(name, _shown(expected), _shown(found), known and str(expected) == str(found))


def check_any(name: str, expected: Sequence[str], found: object) -> PinCheck:
    """Return a check that a value is one of several known ones, as for a file made on more than one machine class."""
    words = [word for word in expected if word]
    return PinCheck(name, _shown(" or ".join(words)), _shown(found), str(found) in words)


def check_commit(name: str, expected: str, found: str | None) -> PinCheck:
    """Return a check of the commit that a library reports about itself.

    It is abbreviated, and ``-dirty`` when it was built from the sdist: the pinned commit has to start with it.

    >>> check_commit("llama.cpp commit", "0c1e57098bba43ac29e6e3b677cdceebdd22334f", "0c1e570-dirty").ok
    True
    """
    short = (found or "").removesuffix("-dirty")
    ok = len(short) >= _SHORTEST_COMMIT and expected.startswith(short)
    return PinCheck(name, expected, _shown(found), ok)


def check_package(name: str, expected: str, version: str, *, own: bool, origin: str) -> PinCheck:
    """Return a check of a Python package: of the pinned version, and loaded from where that version is installed.

    Args:
        name: of the package.
        expected: its pinned version.
        version: the installed one; "" where there is none.
        own: whether the module that an import gives belongs to that installation.
        origin: the module's file.
    """
    found = version if own or not version else f"{version} installed, but another one imported from {origin}"
    return PinCheck(f"package {name}", _shown(expected), _shown(found), bool(expected) and found == expected)


def _shown(value: object) -> str:
    return "nothing" if value is None or str(value) == "" else str(value)


def judge_pins(checks: Sequence[PinCheck], *, required: Sequence[str]) -> RungResult:
    """Return T0's result: PARITY if every required check was made and every check holds.

    Args:
        checks: all checks that were made, in any order.
        required: names that must be among them; a check that was forgotten must not pass.

    Returns:
        INCOMPLETE with every cause in the note otherwise, never DIVERGED: with other files or engines
        nothing about parity was learnt.
    """
    names = [check.name for check in checks]
    causes = [f"{name} was not checked" for name in required if name not in names]
    causes += [f"{name} was checked twice" for name in sorted(set(names)) if names.count(name) > 1]
    causes += [str(check) for check in checks if not check.ok]
    if not required and not checks:
        causes.append("no pin was checked")
    return RungResult(
        rung=Rung.T0,
        outcome=Outcome.INCOMPLETE if causes else Outcome.PARITY,
        expected=len(set(required) | set(names)),
        compared=len(set(names)),
        worst=None,
        limit=None,
        unit="pins",
        source="fixtures/gguf_parity.toml",
        note="; ".join(causes),
    )
