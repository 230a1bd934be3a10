"""One cell of a nightly run: prepare its files and notebook job, judge the executed notebook."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from parity_lib.base.errors import ParityError, PinError
from parity_lib.base.files import put
from parity_lib.base.names import Outcome
from parity_lib.engines import targets
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.model_file.facts import read_facts
from parity_lib.models import ensure
from parity_lib.night.content import cell_key
from parity_lib.night.job import NotebookEnd, NotebookJob
from parity_lib.night.outcome import decide, without_run, worst_margin
from parity_lib.night.pages import Say, banner_of, draw
from parity_lib.night.plan import HOST, Plan, PlanCell
from parity_lib.night.preflight import cell_parameters, machine_lacks
from parity_lib.night.result import inspect_run, repair
from parity_lib.night.screen import PROGRESS_FILE
from parity_lib.night.traced import trace_first
from parity_lib.night.verdict_check import cause_line, rename_inside, sound_verdict
from parity_lib.pages.kit.export import Banner
from parity_lib.records.night_record import CellRecord
from parity_lib.records.pins import Pins
from parity_lib.records.store import load_verdict
from parity_lib.records.verdicts import CellId, Verdict

LINES_KEPT = 200  # of one cell in its record; the log has all of them
NO_TOKENIZER = "none"

Decided = tuple[Outcome, bool, tuple[str, ...]]
"""Outcome, whether the plan expects it, and the causes if not."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A cell that can run: its notebook job, and the folder that it writes to."""

    cell: PlanCell
    identity: CellId
    key: str
    job: NotebookJob
    has_vocabulary: bool
    fresh: bool
    started: datetime

    @property
    def partial(self) -> Path:
        """Return the folder in which it works."""
        return self.job.output.parent


@dataclass(frozen=True, slots=True)
class Executed:
    """The notebook of a decided cell, as its page and its trace need it."""

    notebook: Path
    parameters: Mapping[str, Any]
    banner: Banner | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A cell that is decided: record, lines, and its verdict if that is sound."""

    record: CellRecord
    lines: tuple[str, ...]
    verdict: Verdict | None
    executed: Executed | None = None  # None where nothing ran

    @property
    def keepable(self) -> bool:
        """Return whether a resumed run may keep it: the comparison was made and its record is sound."""
        return is_finished(self.record)


def is_finished(record: CellRecord) -> bool:
    """Return whether a cell has a result that a second run would only repeat."""
    return bool(record.verdict) and record.outcome in (Outcome.PARITY, Outcome.DIVERGED, Outcome.INVALID)


@dataclass(frozen=True, slots=True)
class Cells:
    """What the cells of one nightly run have in common."""

    plan: Plan
    pins: Pins
    notebooks: Path
    folder: Path  # of the nightly run
    source: str  # digest of everything that results depend on
    require_all: bool
    full: bool = False  # every prompt is replayed and made again, not a part of them
    day: int = 0  # chooses the prompt that is replayed beside the first

    def isa(self, cell: PlanCell) -> str:
        """Return the ISA target that a cell runs on."""
        if cell.isa != HOST:
            return cell.isa
        return targets.host(self.pins, cell.stack if cell.stack in self.pins.stacks else CRATES_IO)

    def require_isa(self, cell: PlanCell) -> bool:
        """Return whether a cell requires its target to be proven: if the plan says so, or with ``--require-all``."""
        return cell.require_isa or self.require_all

    def key(self, cell: PlanCell) -> str:
        """Return the cell's name with the target filled in, and 8 digits over everything that can change its result."""
        source = f"{self.source} full" if self.full else self.source
        return cell_key(cell, self.isa(cell), self.notebooks, source)

    def prepare(self, cell: PlanCell, say: Say, *, fresh: bool) -> Ready | Done:
        """Make or find the cell's files and its working folder; a cell that cannot run here is done at once."""
        lacks = machine_lacks(cell, self.isa(cell), self.plan, self.pins)
        if lacks:
            return self.not_run(cell, "; ".join(map(str, lacks)))
        try:
            path = ensure.ensure(cell.model, cell.quant, self.pins, say=say)
            ensure.ensure_twin(path, self.pins, say=say)
            has_vocabulary = read_facts(path).tokenizer != NO_TOKENIZER
        except PinError as error:
            return self.not_run(cell, str(error), excusable=False)  # a wrong file is a finding
        except ParityError as error:
            return self.not_run(cell, str(error))
        return self._ready(cell, has_vocabulary=has_vocabulary, fresh=fresh)

    def _ready(self, cell: PlanCell, *, has_vocabulary: bool, fresh: bool) -> Ready:
        isa, key = self.isa(cell), self.key(cell)
        partial = self.folder / "cells" / f".{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        partial.mkdir(parents=True)
        (partial / PROGRESS_FILE).write_text("{}")  # its existence asks the cell to report progress there
        notebook = self.notebooks / f"{cell.notebook}.ipynb"
        run_wide = {"fresh": fresh, "full": self.full, "day": self.day, "require_isa": self.require_isa(cell)}
        parameters = cell_parameters(cell, isa, notebook, partial, run_wide)
        job = NotebookJob(notebook, partial / notebook.name, parameters, partial / "run.log", cell.limit_s)
        identity = CellId(cell.model, cell.quant, isa, cell.stack, cell.compute)
        return Ready(cell, identity, key, job, has_vocabulary, parameters.get("fresh", False), datetime.now(UTC))

    def judge(self, ready: Ready, end: NotebookEnd) -> Done:
        """Decide a cell whose notebook has ended; rename its folder when all but its pages is complete."""
        cell, partial, final = ready.cell, ready.partial, self.folder / "cells" / ready.key
        rename_inside(partial, final)
        result = inspect_run(end)
        verdict, wrong = sound_verdict(
            partial,
            ready.identity,
            cell,
            has_vocabulary=ready.has_vocabulary,
            require_isa=self.require_isa(cell),
            since=ready.started,
        )
        outcome, good, causes = decide(cell, verdict, [*result.causes, *wrong], asserted=result.asserted)
        repair(end, result)
        (partial / PROGRESS_FILE).unlink(missing_ok=True)
        shutil.rmtree(partial / ".spool", ignore_errors=True)  # a killed kernel could not remove its rows
        put(partial, final, sync=False)  # perhaps in the place of an attempt that was interrupted
        executed = Executed(final / ready.job.output.name, ready.job.parameters, banner_of(end, result))
        return self._done(ready, verdict, (outcome, good, causes), end.seconds, executed)

    def kept(self, cell: PlanCell, record: CellRecord) -> Done:
        """Return a cell that was decided before this run was interrupted. Its pages may be missing."""
        folder = self.folder / record.folder
        notebook = folder / f"{cell.notebook}.ipynb"
        parameters = cell_parameters(cell, self.isa(cell), self.notebooks / notebook.name, folder, {})
        return Done(record, (), load_verdict(folder), Executed(notebook, parameters))

    def show(self, done: Done, say: Say) -> CellRecord:
        """Draw the page of a decided cell; return its record with it. A page that cannot be drawn is left out."""
        if done.executed is None or done.record.html:
            return done.record
        notebook = done.executed.notebook
        page = draw(notebook, notebook.with_suffix(".html"), done.executed.banner, say)
        return done.record if page is None else replace(done.record, html=str(page.relative_to(self.folder)))

    def trace(self, done: Done, record: CellRecord, say: Say) -> CellRecord:
        """Trace the first divergence of a decided cell; return its record with that.

        Red controls are not traced: they diverge on purpose.
        """
        if done.executed is None or done.verdict is None or record.control or record.traced:
            return record
        if record.outcome is not Outcome.DIVERGED:
            return record
        folder = self.folder / record.folder
        traced = trace_first(done.verdict, folder, done.executed.parameters, self.notebooks, say)
        page = traced.page and f"{record.folder}/{traced.page}"
        return replace(record, trace=page, traced=traced.sentence)

    def _done(
        self, ready: Ready, verdict: Verdict | None, decided: Decided, seconds: float, executed: Executed
    ) -> Done:
        broken = verdict.lowest_broken if verdict is not None else None
        lines = all_lines(ready.identity, decided, verdict)
        record = replace(
            self._record(ready.cell, ready.identity, decided, lines),
            key=ready.key,
            worst_margin=worst_margin(verdict),
            lowest_broken=broken.rung.value if broken is not None else "",
            folder=f"cells/{ready.key}",
            verdict="" if verdict is None else f"cells/{ready.key}/verdict.json",
            seconds=seconds,
            peak_rss_bytes=max((run.peak_rss_bytes for run in verdict.runs.values()), default=0) if verdict else 0,
            fresh=ready.fresh,
        )
        return Done(record, lines, verdict, executed)

    def not_run(self, cell: PlanCell, reason: str, *, excusable: bool = True) -> Done:
        """Return the record of a cell that did not run: NOT_RUN, or INCOMPLETE if it is required."""
        identity = CellId(cell.model, cell.quant, self.isa(cell), cell.stack, cell.compute)
        decided = without_run(cell, reason, require_all=self.require_all or not excusable)
        lines = all_lines(identity, decided, None)
        return Done(self._record(cell, identity, decided, lines), lines, None)

    def _record(self, cell: PlanCell, identity: CellId, decided: Decided, lines: tuple[str, ...]) -> CellRecord:
        """Return the record of a cell that did not run; what a run adds is put into it."""
        outcome, good, causes = decided
        return CellRecord(
            key=self.key(cell),
            cell=identity,
            required=cell.required or self.require_all,
            expect=cell.expect,
            reason=cell.reason,
            fault=cell.fault,
            control=cell.control,
            outcome=outcome,
            good=good,
            causes=causes,
            lines=lines[:LINES_KEPT],
            worst_margin=None,
            lowest_broken="",
            folder="",
            html="",
            verdict="",
            seconds=0.0,
            peak_rss_bytes=0,
        )


def all_lines(identity: CellId, decided: Decided, verdict: Verdict | None) -> tuple[str, ...]:
    """Return the greppable lines of a cell: those of its verdict, then one for each cause that is not among them."""
    outcome, _, causes = decided
    lines = [] if verdict is None else verdict.lines()
    said = () if verdict is None else verdict.causes
    return (*lines, *(cause_line(outcome, identity, cause) for cause in causes if cause not in said))
