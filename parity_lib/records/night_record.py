"""The record of a nightly run, and the rules that turn its cells into one outcome and one exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_lib.base.errors import RecordError
from parity_lib.base.files import load_record, save_record
from parity_lib.base.json_text import decode, encode
from parity_lib.base.names import Outcome, Rung
from parity_lib.records import store
from parity_lib.records.verdicts import CellId

HISTORY = "history.jsonl"

SCHEMA = "parity/night/1"
FILE_NAME = "night.json"
# What may catch a red control. T0 would only see that a file was exchanged, T7 which kernels ran.
# SPREAD accuses the reference's own settings, which know nothing of the fault.
NUMERIC_RUNGS = (Rung.T2, Rung.T3, Rung.T4, Rung.T5, Rung.T6)
STATUS_PARITY, STATUS_DIVERGED, STATUS_INCOMPLETE = 0, 1, 3


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One cell of a nightly run: request, outcome, where to read it. Paths are relative to the run's folder."""

    key: str  # name and the hash of everything that can change the result
    cell: CellId
    required: bool
    expect: str
    reason: str
    fault: str
    control: bool
    outcome: Outcome  # of the night: a control that was caught stays DIVERGED, one that was not is INVALID
    good: bool  # came out as the plan expects
    causes: tuple[str, ...]
    lines: tuple[str, ...]  # greppable
    worst_margin: float | None  # smallest limit/worst of its gated rungs; None where nothing differed
    lowest_broken: str  # rung, or ""
    folder: str  # "" where nothing ran
    html: str
    verdict: str  # "" where none was written
    seconds: float
    peak_rss_bytes: int
    fresh: bool = False  # the reference was computed again and held to the stored bits
    trace: str = ""  # page of the trace of its first divergence
    traced: str = ""  # what that trace says, or why there is none
    kept: bool = False  # finished before the night was interrupted, and not run again


@dataclass(frozen=True, slots=True)
class PageRecord:
    """A page of a nightly run that is not a cell (machine, overview)."""

    name: str
    html: str
    outcome: Outcome  # PARITY: it ran to its end; INCOMPLETE: it did not
    causes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Night:
    """Everything a reader of ``index.html`` learns, and what ``history`` keeps."""

    run_id: str  # UTC time and the first digits of the plan's hash
    plan: str
    title: str
    headline: str
    plan_sha256: str
    started_at: str  # UTC, ISO 8601
    seconds: float
    host: str
    machine_class: str
    interrupted: bool
    cells: tuple[CellRecord, ...]
    pages: tuple[PageRecord, ...] = ()
    resumed: tuple[str, ...] = ()  # when the run was resumed, UTC, ISO 8601
    schema: str = SCHEMA

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of the nightly run: the worst of its cells, in the order of the exit statuses."""
        status = self.exit_status
        if any(record.outcome is Outcome.INVALID for record in self.cells):
            return Outcome.INVALID
        return {STATUS_PARITY: Outcome.PARITY, STATUS_DIVERGED: Outcome.DIVERGED}.get(status, Outcome.INCOMPLETE)

    @property
    def exit_status(self) -> int:
        """Return 3 for an uncaught control, else 1 for a divergence or a broken expect, else 3 for a gap, else 0."""
        if any(record.outcome is Outcome.INVALID for record in self.cells):
            return STATUS_INCOMPLETE
        if any(not record.good and record.outcome in (Outcome.DIVERGED, Outcome.PARITY) for record in self.cells):
            return STATUS_DIVERGED
        gap = any(not record.good for record in self.cells) or any(
            page.outcome is not Outcome.PARITY for page in self.pages
        )
        compared = any(record.outcome in (Outcome.PARITY, Outcome.DIVERGED) for record in self.cells)
        # A run whose cells all were NOT_RUN compared nothing, so it is not at parity.
        return STATUS_INCOMPLETE if gap or self.interrupted or not compared else STATUS_PARITY

    def counts(self) -> dict[str, int]:
        """Return how many cells have each outcome, controls apart."""
        return dict(Counter(record.outcome.value for record in self.cells if not record.control))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of ``night.json``."""
        data = encode(self)
        assert isinstance(data, dict)
        return data | {"outcome": self.outcome.value, "exit_status": self.exit_status}

    def save(self, folder: Path) -> Path:
        """Write ``night.json`` into ``folder`` atomically."""
        return save_record(self.to_json(), folder / FILE_NAME, "night")


def load_night(folder: Path | str) -> Night:
    """Return the record of a nightly run, from its folder.

    Raises:
        RecordError: missing, damaged, of another version, or its outcome does not follow from its cells.
    """
    path = Path(folder) / FILE_NAME
    data = load_record(path, "night")
    stated = (data.pop("outcome"), data.pop("exit_status"))
    data["cells"] = tuple(_cell(decode(cell)) for cell in data["cells"])
    data["pages"] = tuple(_page(page) for page in data["pages"])
    data["resumed"] = tuple(data.get("resumed", ()))
    night = Night(**data | {"seconds": decode(data["seconds"])})
    if (night.outcome.value, night.exit_status) != stated:
        raise RecordError(
            "the outcome of the nightly run does not follow from its cells",
            place=path,
            expected=f"{night.outcome}, exit status {night.exit_status}",
            found=f"{stated[0]}, exit status {stated[1]}",
        )
    return night


def _cell(data: Mapping[str, Any]) -> CellRecord:
    fields = dict(data) | {"cell": CellId(**data["cell"]), "outcome": Outcome(data["outcome"])}
    return CellRecord(**fields | {"causes": tuple(data["causes"]), "lines": tuple(data["lines"])})


def _page(data: Mapping[str, Any]) -> PageRecord:
    return PageRecord(**dict(data) | {"outcome": Outcome(data["outcome"]), "causes": tuple(data["causes"])})


def remember(folder: Path, records: Iterable[CellRecord], *, resumed: bool) -> None:
    """Append the cells of a nightly run to ``history.jsonl`` beside its folder, each once, also when it was resumed.

    Args:
        folder: the night's.
        records: its cells, in the order of the plan.
        resumed: whether an earlier part of this night may have been here.

    Raises:
        RecordError: a verdict or the history is damaged, or the history cannot be written.
    """
    path = folder.parent / HISTORY
    verdicts = [(r, store.load_verdict(folder / r.verdict)) for r in records if r.verdict]
    entries = [store.history_entry(folder.name, v) | {"outcome": r.outcome.value} for r, v in verdicts]
    there = [entry for entry in store.load_history(path) if entry["run_id"] == folder.name] if resumed else []
    known = {(str(entry["cell"]), entry["control"], entry["created_at"]) for entry in there}
    new = [e for e in entries if (str(e["cell"]), e["control"], e["created_at"]) not in known]
    store.append_history(new, path)
