"""Choose among named things by a shell pattern: what ``--only`` does in every command."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import TypeVar

from parity_lib.base.errors import UsageError
from parity_lib.base.toml_table import close_matches

Thing = TypeVar("Thing")


def choose(
    only: str,
    named: Sequence[tuple[str, Thing]],
    what: str,
    place: object,
    misfit: Callable[[Thing], str] = lambda _: "",
) -> tuple[tuple[Thing, ...], dict[str, str]]:
    """Return the things that match ``only`` and fit, and for each match that does not fit its name and the reason.

    Args:
        only: a shell pattern; a plain word matches anywhere in a name.
        named: all things, each with its name; several may have the same.
        what: they are, in words.
        place: what they belong to.
        misfit: returns why a thing does not fit; empty where it fits.

    Raises:
        UsageError: nothing is left.

    >>> choose("eps*", [("eps_x10@all", 1), ("die", 2)], "fault", "fixtures/faults.toml")
    ((1,), {})
    """
    pattern = only if any(c in only for c in "*?[") else f"*{only}*"
    matching = [(name, thing) for name, thing in named if fnmatch.fnmatchcase(name, pattern)]
    misfits = {name: reason for name, thing in matching if (reason := misfit(thing))}
    fitting = tuple(thing for name, thing in matching if name not in misfits)
    if not fitting:
        names = [name for name, thing in named if not misfit(thing)]
        raise UsageError(
            f"no {what} matches --only{close_matches(only, names)}",
            place=place,
            expected=", ".join(names),
            found=only + "".join(f"; {name}: {reason}" for name, reason in misfits.items()),
            next_step="give a part of a name, or a shell pattern",
        )
    return fitting, misfits
