"""Two stacks under the same candidate on the same tokens: every logit of every position, bit by bit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from parity_lib.base.errors import EngineError
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.reference import Reference, score
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.engines.targets import candidate_side
from parity_lib.engines.worker.client import Worker
from parity_lib.numerics.bits import BitDifference, compare_bits
from parity_lib.records.traces import Position


@dataclass(frozen=True, slots=True)
class Side:
    """One build of the candidate: its stack, and what of burn is replaced by plain twins."""

    stack: str
    plain: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.stack + (f" with plain {', '.join(self.plain)}" if self.plain else "")


def compare_sides(
    cell: Cell, reference: Reference, first: Side, others: Sequence[Side]
) -> list[tuple[Side, BitDifference]]:
    """Score the reference's tokens with each side, and compare each of ``others`` with ``first``, bit by bit.

    Raises:
        EngineError: a stack is not built, or delivered fewer rows than it was fed.
        PinError: a build is stale, or cannot run on this machine.
    """
    try:
        base = score_side(cell, reference, first, 0)
        found = []
        for number, other in enumerate(others, start=1):
            rows = score_side(cell, reference, other, number)
            found.append((other, compare_bits(base.open(), rows.open(), base.positions)))
            rows.spool.unlink()
        return found
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)


def score_side(cell: Cell, reference: Reference, side: Side, number: int) -> Rows:
    """Score the reference's tokens with one side; its rows go to the cell's spool ``number``.

    Raises:
        EngineError: it is not built, or delivered fewer rows than it was fed.
        PinError: its build is stale, or cannot run on this machine.
    """
    with open_side(cell, side, "burn") as engine:
        rows = score(cell, engine, reference, f"side-{number}", f"burn on {side}")
    expected = _all(reference)
    if rows.positions != expected:
        raise EngineError(
            "the candidate did not deliver a row for each token",
            place=str(side),
            expected=f"{len(expected)} rows",
            found=len(rows.positions),
        )
    return rows


def _all(reference: Reference) -> tuple[Position, ...]:
    return tuple(
        Position(prompt, row - (n_prompt - 1))
        for prompt, (fed, n_prompt) in enumerate(zip(reference.sequences, reference.prompt_lengths, strict=True))
        for row in range(len(fed))
    )


def open_side(cell: Cell, side: Side, kind: str, compute: str = "") -> Worker:
    """Return a worker with the candidate on a stack, on the widest ISA target that the stack has of the cell's."""
    isa, compute = candidate_side(cell.pins.stack(side.stack), cell.id.isa).isa, compute or cell.id.compute
    return open_burn(cell, kind, isa=isa, stack=side.stack, compute=compute, plain=side.plain, fault=None)
