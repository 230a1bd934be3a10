"""Refuse an unknown fault before any engine runs; the list comes from the library with faults."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from parity_lib.base.errors import EngineError, PinError, UsageError
from parity_lib.base.toml_table import close_matches
from parity_lib.engines.burn import stacks
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.records.pins import load_pins

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?"
_PLACE = dict.fromkeys("NPRS", r"[0-9]+") | {"X": _NUMBER}  # capitals stand for numbers, all else for itself
_FORM = re.compile(r"(?P<name>[a-z0-9_]+)(?:(?P<optional>\[)?(?P<sign>[@=])(?P<choices>[^\]]+)\]?)?")


def known_faults() -> dict[str, str]:
    """Return every fault that the candidate can seed, by its written form, with its description.

    The receipt of the library with faults has them: all stacks are built from the same sources.

    Raises:
        EngineError, PinError: that library is not built, or not the one that was built.
    """
    return dict(stacks.find(load_pins().stack(CRATES_IO), faults=True).faults)


def check_fault(fault: str, forms: Iterable[str], place: str) -> None:
    """Refuse a fault of an unknown form; the engine checks whether the model has the block that it names.

    Raises:
        UsageError: the fault is unknown, or its value is none.
    """
    forms = tuple(forms)
    if any(_pattern(form).fullmatch(fault) for form in forms):
        return
    raise UsageError(
        f"unknown fault '{fault}'{close_matches(fault, forms)}",
        place=place,
        expected=f"one of {', '.join(forms)} (N, P, R, S, X are numbers)",
        found=fault,
        next_step="correct the name",
    )


def check_faults(faults: Iterable[tuple[str, str]]) -> None:
    """Refuse the unknown ones among (fault, place).

    A library that is not built is not this check's gap: the cells that need it cannot run, and say why.

    Raises:
        UsageError: as ``check_fault``.
    """
    for fault, place in faults:
        try:
            forms = known_faults()
        except (EngineError, PinError):
            continue
        check_fault(fault, forms, place)


@functools.cache
def _pattern(form: str) -> re.Pattern[str]:
    """Return what a form allows: ``eps_x10@blk.N|all``, ``softmax_scale[=X]``, ``dropped_bias=q|k|v``, ``die``."""
    parts = _FORM.fullmatch(form)
    if parts is None:
        raise EngineError("the extension lists a fault in an unknown form", place=form)
    name = re.escape(parts["name"])
    if parts["sign"] is None:
        return re.compile(name)
    choices = ("".join(_PLACE.get(letter, re.escape(letter)) for letter in c) for c in parts["choices"].split("|"))
    value = f"{re.escape(parts['sign'])}(?:{'|'.join(choices)})"
    return re.compile(f"{name}(?:{value})?" if parts["optional"] else name + value)
