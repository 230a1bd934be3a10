"""The record of a nightly run, and the rules that turn its cells into one outcome and one exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace

from parity_lib.base.errors import RecordError
from parity_lib.base.names import Outcome, Rung
from parity_lib.base.record import Count, NotEmpty, Record, Seconds, Sha256, Utc, load_record, save_record
from parity_lib.records import store
from parity_lib.records.verdicts import CellId

HISTORY = "history.jsonl"

FILE_NAME = "night.json"
# What may catch a red control. T0 would only see that a file was exchanged, T7 which kernels ran.
# SPREAD accuses the reference's own settings, which know nothing of the fault.
NUMERIC_RUNGS = (Rung.T2, Rung.T3, Rung.T4, Rung.T5, Rung.T6)
STATUS_PARITY: Literal[0] = 0
STATUS_DIVERGED: Literal[1] = 1
STATUS_INCOMPLETE: Literal[3] = 3


class CellRecord(Record, frozen=True):
    """One cell of a nightly run: request, outcome, where to read it. Paths are relative to the run's folder."""

    key: NotEmpty  # name and the hash of everything that can change the result
    cell: CellId
    required: bool
    expect: Annotated[str, Meta(pattern="^(parity|diverged)$")]
    reason: str
    fault: str
    control: bool
    outcome: Outcome  # in the nightly run: a control that was caught stays DIVERGED, one that was not is INVALID
    good: bool  # came out as the plan expects
    causes: tuple[str, ...]
    lines: tuple[str, ...]  # greppable
    worst_margin: float | None  # smallest limit/worst of its gated rungs; None where nothing differed
    lowest_broken: str  # rung, or ""
    folder: str  # "" where nothing ran
    html: str
    verdict: str  # "" where none was written
    seconds: Seconds
    peak_rss_bytes: Count
    fresh: bool = False  # the reference was computed again and held to the stored bits
    trace: str = ""  # page of the trace of its first divergence
    traced: str = ""  # what that trace says, or why there is none
    kept: bool = False  # finished before the night was interrupted, and not run again


class PageRecord(Record, frozen=True):
    """A page of a nightly run that is not a cell (machine, overview)."""

    name: NotEmpty
    html: str
    outcome: Outcome  # PARITY: it ran to its end; INCOMPLETE: it did not
    causes: tuple[str, ...]


class Night(Record, frozen=True):
    """Everything a reader of ``index.html`` learns, and what ``history`` keeps."""

    run_id: NotEmpty  # UTC time and the first digits of the plan's hash
    plan: NotEmpty
    title: NotEmpty
    headline: str
    plan_sha256: Sha256
    started_at: Utc  # UTC, ISO 8601
    seconds: Seconds
    host: NotEmpty
    machine_class: NotEmpty
    interrupted: bool
    cells: tuple[CellRecord, ...]
    pages: tuple[PageRecord, ...] = ()
    resumed: tuple[Utc, ...] = ()  # when the run was resumed, UTC, ISO 8601

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of the nightly run: the worst of its cells, in the order of the exit statuses."""
        status = self.exit_status
        if any(record.outcome is Outcome.INVALID for record in self.cells):
            return Outcome.INVALID
        return {STATUS_PARITY: Outcome.PARITY, STATUS_DIVERGED: Outcome.DIVERGED}.get(status, Outcome.INCOMPLETE)

    @property
    def exit_status(self) -> Literal[0, 1, 3]:
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

    def save(self, folder: Path) -> Path:
        """Write ``night.json`` into ``folder`` atomically."""
        return save_record(StoredNight(self, self.outcome, self.exit_status), folder / FILE_NAME)


class StoredNight(Record, frozen=True, tag_field="schema", tag="parity/night/2"):
    """``night.json``: a nightly run with its outcome and exit status, for readers without this library."""

    night: Night
    outcome: Outcome
    exit_status: Literal[0, 1, 3]


def load_night(folder: Path | str) -> Night:
    """Return the record of a nightly run, from its folder.

    Raises:
        RecordError: missing, damaged, of another version, or its outcome does not follow from its cells.
    """
    path = Path(folder) / FILE_NAME
    stored = load_record(path, StoredNight)
    night = stored.night
    if (night.outcome, night.exit_status) != (stored.outcome, stored.exit_status):
        raise RecordError(
            "the outcome of the nightly run does not follow from its cells",
            place=path,
            expected=f"{night.outcome}, exit status {night.exit_status}",
            found=f"{stored.outcome}, exit status {stored.exit_status}",
        )
    return night


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
    entries = [replace(store.history_entry(folder.name, v), outcome=r.outcome) for r, v in verdicts]
    there = [entry for entry in store.load_history(path) if entry.run_id == folder.name] if resumed else []
    known = {(entry.cell, entry.control, entry.created_at) for entry in there}
    store.append_history([e for e in entries if (e.cell, e.control, e.created_at) not in known], path)
