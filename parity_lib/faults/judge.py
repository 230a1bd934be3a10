"""The kill matrix: which rung caught each seeded fault, whether it ended as it has to, and which faults survived."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from parity_lib.base.errors import FixtureError
from parity_lib.base.names import Outcome, Rung
from parity_lib.base.record import Count, NotEmpty, Positive, Record, Utc
from parity_lib.base.toml_table import Table, fixture_path, read_toml
from parity_lib.records.verdicts import CellId, Verdict

LIST_SCHEMA = "parity/faults/1"
ENGINE, RECORD = "engine", "record"


@dataclass(frozen=True, slots=True)
class SeededFault:
    """One fault to seed, and how a cell with it has to end."""

    fault: str  # as the engine takes it, or the name of a change of records
    what: str
    outcome: Outcome  # DIVERGED or INCOMPLETE
    words: tuple[str, ...]  # all of them must stand in one of the lines
    at: str  # ENGINE or RECORD
    needs_bias: bool  # only for a model whose projections have biases
    blind: str = ""  # why this fault may go unseen in this model; empty: it must be caught


@dataclass(frozen=True, slots=True)
class Blind:
    """A known blind spot: patterns of fault, model and quantisation, and the reason."""

    fault: str
    model: str
    quant: str
    reason: str

    def covers(self, fault: str, cell: CellId) -> bool:
        """Return whether this fault may go unseen in that cell."""
        pairs = ((fault, self.fault), (cell.model, self.model), (cell.quant, self.quant))
        return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in pairs)


class Kill(Record, frozen=True):
    """What became of one fault."""

    fault: NotEmpty
    what: NotEmpty
    at: Annotated[str, Meta(pattern=f"^({ENGINE}|{RECORD})$")]
    expected: Outcome  # DIVERGED or INCOMPLETE
    outcome: Outcome
    caught_by: tuple[Rung, ...]  # rungs that diverged, lowest first
    rows_changed: Count | None  # rows of the candidate whose bits are others than without the fault; None: not compared
    lowest: str  # the lowest rung that was not at parity; empty where the comparison was not reached
    line: str  # the line that says what was expected, else the first one, else nothing
    worst_margin: float | None  # of T4, limit over worst: below 1 is outside; None where T4 was not reached
    problem: str  # why this is not how it has to end; empty if it is
    blind: str  # the reason of a known blind spot
    seconds: float

    def __post_init__(self) -> None:
        if self.expected not in (Outcome.DIVERGED, Outcome.INCOMPLETE):
            raise ValueError(f"Expected an outcome of a fault, got {self.expected}")

    @property
    def survived(self) -> bool:
        """Return whether no rung caught the fault."""
        return self.outcome is Outcome.PARITY

    @property
    def word(self) -> str:
        """Return what became of it in one word, as a table prints it."""
        if self.survived:
            return "SURVIVED"
        return "UNEXPECTED" if self.problem else "caught"


class KillMatrix(Record, frozen=True, tag_field="schema", tag="parity/kills/1"):
    """Every fault that was seeded into one cell, after the cell without a fault was found at parity."""

    cell: CellId
    positions: Positive  # that each fault was judged at
    rungs: Annotated[tuple[Rung, ...], Meta(min_length=1)]  # that judged; a rung that only reports is none of them
    baseline_margin: float | None  # of T4, without a fault
    same_rows: Positive  # of synthetic models without a fault, equal in every bit in both libraries
    kills: Annotated[tuple[Kill, ...], Meta(min_length=1)]
    not_seeded: Mapping[str, NotEmpty]  # fault -> why it does not fit this model
    machine_class: NotEmpty
    created_at: Utc
    seconds: float

    @property
    def survivors(self) -> tuple[Kill, ...]:
        """Return the faults that no rung caught, known blind spots included."""
        return tuple(kill for kill in self.kills if kill.survived)

    @property
    def problems(self) -> tuple[Kill, ...]:
        """Return the faults that did not end as they have to."""
        return tuple(kill for kill in self.kills if kill.problem)

    def caught(self) -> dict[Rung, int]:
        """Return how many faults each judging rung saw as a divergence."""
        return {rung: sum(rung in kill.caught_by for kill in self.kills) for rung in self.rungs}


def load_faults(cell: CellId, names: Mapping[str, object], path: Path | None = None) -> tuple[SeededFault, ...]:
    """Return every fault of ``fixtures/faults.toml`` with its expected end, named for one model.

    Args:
        cell: which known blind spots count.
        names: what ``{..}`` in names and words stands for.
        path: another list, for tests.

    Raises:
        FixtureError: the list cannot be read, or a fault stands in it twice or says nothing that must be seen.
    """
    path = fixture_path("faults.toml") if path is None else path
    table, _ = read_toml(path)
    table.schema(LIST_SCHEMA)
    spots = tuple(_blind(entry) for entry in table.tables("blind", []))
    listed = tuple(_read(entry, names, cell, spots) for entry in table.tables("fault"))
    table.done()
    twice = [fault for fault, count in Counter(seeded.fault for seeded in listed).items() if count > 1]
    mute = [seeded.fault for seeded in listed if not seeded.words]
    if twice or mute or not listed:
        raise FixtureError(
            "the list of faults lacks the expected end of a fault",
            place=path,
            expected="each fault once, with the words that its line must contain",
            found=f"twice: {', '.join(twice) or 'none'}; without words: {', '.join(mute) or 'none'}",
        )
    return listed


def _blind(table: Table) -> Blind:
    spot = Blind(table.text("fault"), table.text("model"), table.text("quant"), table.text("reason"))
    table.done()
    return spot


def _read(table: Table, names: Mapping[str, object], cell: CellId, spots: Sequence[Blind]) -> SeededFault:
    fault, words = table.text("name"), table.texts("words")
    try:
        fault, words = fault.format_map(names), tuple(word.format_map(names) for word in words)
    except (KeyError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in names)
        raise FixtureError("an unknown place in a name", place=table.place, expected=known, found=error) from error
    seeded = SeededFault(
        fault=fault,
        what=table.text("what"),
        outcome=Outcome(table.one_of("outcome", (Outcome.DIVERGED, Outcome.INCOMPLETE))),
        words=words,
        at=table.one_of("at", (ENGINE, RECORD), ENGINE),
        needs_bias=table.one_of("needs", ("bias", "nothing"), "nothing") == "bias",
        blind=next((spot.reason for spot in spots if spot.covers(fault, cell)), ""),
    )
    table.done()
    return seeded


def judge_kill(seeded: SeededFault, verdict: Verdict, rows_changed: int | None, seconds: float) -> Kill:
    """Return what became of a fault: the verdict of its cell, held against how it has to end.

    Args:
        seeded: the fault.
        verdict: of the cell with the fault.
        rows_changed: rows of the candidate whose bits are others than without the fault; None where that was not
            compared. A fault of the engine that changes no bit was not seeded, and is no proof of anything.
        seconds: what it took.
    """
    lines = verdict.lines()
    said = next((line for line in lines if all(word in line for word in seeded.words)), None)
    broken = verdict.lowest_broken
    return Kill(
        fault=seeded.fault,
        what=seeded.what,
        at=seeded.at,
        expected=seeded.outcome,
        outcome=verdict.outcome,
        caught_by=tuple(sorted(result.rung for result in verdict.rungs if result.outcome is Outcome.DIVERGED)),
        rows_changed=rows_changed,
        lowest=broken.rung.value if broken is not None else "",
        line=said if said is not None else next(iter(lines), ""),
        worst_margin=gate_margin(verdict),
        problem=_problem(seeded, verdict.outcome, said is not None, rows_changed),
        blind=seeded.blind,
        seconds=seconds,
    )


def gate_margin(verdict: Verdict) -> float | None:
    """Return how far a cell is inside of the whole-model gate (T4), limit over worst: the one scale of a matrix.

    A worst case that is not finite is outside of any limit: 0. None where T4 was not reached or nothing differed.
    """
    gate = verdict.rung(Rung.T4)
    if gate is None:
        return None
    return 0.0 if gate.worst is not None and not math.isfinite(gate.worst) else gate.margin


def _problem(seeded: SeededFault, outcome: Outcome, said: bool, rows_changed: int | None) -> str:
    if rows_changed == 0 and seeded.outcome is Outcome.DIVERGED and seeded.at == ENGINE:
        return "changed no row of the candidate: it was not seeded"
    if outcome is Outcome.PARITY:
        return "" if seeded.blind else f"survived: expected {seeded.outcome}, and no rung saw it"
    if outcome is not seeded.outcome:
        return f"ended {outcome}, expected {seeded.outcome}"
    return "" if said else f"no line says {' and '.join(repr(word) for word in seeded.words)}"
