"""What each step of a cell found, or why it could not: one step that fails leaves all steps that do not need it."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, Union

from parity_lib.base.errors import ParityError
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.judge.t0_pins import PinCheck
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.measured import Measured
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.verdicts import Divergence, RungResult

R = TypeVar("R")
NOTHING = Measured()
LOG = "steps"  # name of the log that gets the traceback of an error outside of the hierarchy


@dataclass(frozen=True, slots=True)
class Finding:
    """What a step found that is a rung of its own."""

    rung: RungResult
    divergences: tuple[Divergence, ...]
    measured: Measured = NOTHING  # numbers for the verdict


@dataclass(frozen=True, slots=True, eq=False)
class Bf16Rows:
    """What a cell in bf16 is reported against, in place of a self-spread."""

    twin: Rows  # llama.cpp on the BF16 twin
    plain: Rows  # burn in f32


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a step has no result; a step that needs this result has the same failure."""

    step: str  # the function that failed
    reason: str

    def __str__(self) -> str:
        return f"{self.step}: {self.reason}"


Found = Union[R, Failed, None]  # noqa: UP007 - an alias with a parameter; None: the step was not run


@dataclass(frozen=True, slots=True, eq=False)
class Climbed:
    """The result of each step of a cell, or its failure. None for a step that was not run: its rung is left out."""

    pins: Found[tuple[PinCheck, ...]]  # T0, of the files; if they failed, no other step was run
    tokens: Found[Finding] = None  # T1; None also for a file without a vocabulary
    weights: Found[Finding] = None  # T2
    reference: Found[Reference] = None
    twin: Found[Rows] = None  # the reference on the F32 twin
    limits: Found[DriftLimits] = None  # what T4 is judged by; none in a cell in bf16
    spread: Found[SelfSpread | Bf16Rows] = None  # what T5 is judged by
    candidate: Found[Rows] = None
    ops: Found[Finding] = None  # T3
    itself: Found[Finding] = None  # T6
    isa: Found[Finding] = None  # T7


def attempt(cell: Cell, step: Callable[..., R], *found: object) -> Found[R]:
    """Return what a step of a cell finds, or its failure; the diary gets its seconds.

    Args:
        cell: first argument of the step.
        step: a function of the cell and of what earlier steps found.
        found: what earlier steps found. The first failure among them is returned in place of running the step; a
            result that is None was not asked for, and neither is this step.
    """
    for failed in found:
        if isinstance(failed, Failed):
            return failed
    if any(one is None for one in found):
        return None
    began = time.monotonic()
    try:
        return step(cell, *found)
    except ParityError as error:
        return Failed(step.__name__, str(error))
    except Exception as error:  # noqa: BLE001 - one step must not take the other rungs with it
        _log(cell)
        words = "".join(traceback.format_exception_only(error)).strip()
        return Failed(step.__name__, f"{words}; next: read the traceback in {cell.log(LOG)}")
    finally:
        cell.diary.seconds[step.__name__] = time.monotonic() - began


def _log(cell: Cell) -> None:
    """Append the traceback of the current exception to the cell's log of steps."""
    with contextlib.suppress(OSError), cell.log(LOG).open("a", encoding="utf-8") as log:
        log.write(traceback.format_exc())
