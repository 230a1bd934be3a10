"""The night: a plan in; a folder with verdicts, pages and one record out. A cell is a notebook in a child process."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from parity_lib import store
from parity_lib.capture import models
from parity_lib.engines import machine
from parity_lib.errors import ParityError, PinError, RecordError, UsageError
from parity_lib.fixture_file import fixture_path
from parity_lib.names import Outcome
from parity_lib.night.cell import cause_line, cell_key, rename_inside, sound_verdict
from parity_lib.night.job import NotebookEnd, NotebookJob, run_notebook
from parity_lib.night.plan import HOST, NOTEBOOKS, Plan, PlanCell, load_plan, plan_path
from parity_lib.night.record import CellRecord, Night, PageRecord, decide, without_run, worst_margin
from parity_lib.night.result import NotebookResult, evidence, inspect_run, repair
from parity_lib.night.screen import PROGRESS_FILE, Screen
from parity_lib.pins import Pins, load_pins
from parity_lib.reference_recipe import host_leg
from parity_lib.verdicts import CellId, Verdict, margin_words

RUNS = Path(__file__).resolve().parents[1] / "reports" / "nightly"
LOG, LINES, INDEX, HISTORY = "night.log", "divergences.jsonl", "index.html", "history.jsonl"
MACHINE_PAGE, NIGHT_PAGE = "00_machine_and_pins", "06_night"
PAGE_LIMIT_S = 300
LINES_SHOWN, LINES_KEPT = 20, 200  # of one cell, on the screen and in its record; the log has all of them


@dataclass(frozen=True, slots=True)
class NightOptions:
    """What the command line may choose."""

    plan: str = "smoke"  # a file, or the name of a shipped plan
    out: Path | None = None  # folder in which the run's folder is made
    only: str = ""
    require_all: bool = False
    notebooks: Path = NOTEBOOKS


def run_night(options: NightOptions, stream: TextIO | None = None) -> tuple[Night, Path]:
    """Run a plan; return its record and its folder. What was finished is kept, also on Ctrl-C.

    Raises:
        UsageError: the plan, a model id, a stack or ``only`` is unknown. Nothing was run.
        RecordError: the output folder cannot be written.
    """
    plan = load_plan(plan_path(options.plan), options.notebooks)
    cells = plan.only(options.only) if options.only else plan.cells
    pins = load_pins()
    for cell in cells:
        pins.model(cell.model, cell.quant)
        pins.stack(cell.stack)
        if cell.prompts:
            fixture_path(cell.prompts)
        if cell.isa != HOST:
            pins.llama_cpp.leg(cell.isa)
    started = datetime.now(UTC)
    folder = _make_folder(options.out or RUNS, f"{started:%Y%m%dT%H%M%SZ}-{plan.sha256[:8]}")
    run = _Run(plan, pins, folder, started, options, Screen(folder / LOG, len(cells), stream))
    try:
        return run.all(cells), folder
    finally:
        run.screen.close()


def _make_folder(parent: Path, name: str) -> Path:
    folder = parent.resolve() / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            raise UsageError(
                "another run writes into this folder",
                place=folder,
                expected="a new folder",
                found="one that exists",
                next_step="start again in a second, or give another --out",
            )
        (folder / "cells").mkdir(parents=True)
    except OSError as error:
        raise RecordError(
            "the output folder cannot be made",
            place=folder,
            expected="a folder that can be written",
            found=error.strerror or error,
            next_step="give another --out, or put the folder's permissions right",
        ) from error
    return folder


class _Run:
    """One night under way: the plan, where it writes, what it has so far."""

    def __init__(
        self, plan: Plan, pins: Pins, folder: Path, started: datetime, options: NightOptions, screen: Screen
    ) -> None:
        self.plan, self.pins, self.folder, self.started = plan, pins, folder, started
        self.require_all, self.notebooks, self.screen = options.require_all, options.notebooks, screen
        self.host_leg = str(host_leg(pins.llama_cpp))
        self.records: list[CellRecord] = []
        self.pages: list[PageRecord] = []
        self._clock = time.monotonic()

    def all(self, cells: Sequence[PlanCell]) -> Night:
        """Run every cell, then the pages of the night."""
        self.screen.say(f"night {self.folder.name}: {self.plan.title}")
        self.screen.say(f"{self.plan.headline}; machine class {machine.machine_class()}")
        interrupted = False
        try:
            for number, cell in enumerate(cells, start=1):
                self._finish(self._cell(number, cell))
            self._page(MACHINE_PAGE, f"{MACHINE_PAGE}.html", {})
        except KeyboardInterrupt:
            interrupted = True
            self.screen.say("interrupted: what was finished is kept")
            for cell in cells[len(self.records) :]:
                self._finish(self._not_run(cell, "interrupted before it was finished", hole=False))
        self._save(interrupted=interrupted)
        if not interrupted:
            self._page(NIGHT_PAGE, INDEX, {"run_dir": str(self.folder)})
        night = self._save(interrupted=interrupted)
        self._summary(night)
        return night

    def _save(self, *, interrupted: bool) -> Night:
        night = Night(
            run_id=self.folder.name,
            plan=self.plan.name,
            title=self.plan.title,
            headline=self.plan.headline,
            plan_sha256=self.plan.sha256,
            started_at=self.started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - self._clock,
            host=machine.host(),
            machine_class=machine.machine_class(),
            interrupted=interrupted,
            cells=tuple(self.records),
            pages=tuple(self.pages),
        )
        night.save(self.folder)
        return night

    def _finish(self, record: CellRecord) -> None:
        self.records.append(record)
        word = "control caught" if record.control and record.good else record.outcome.value
        margin = "" if record.worst_margin is None else f", {margin_words(record.worst_margin)}"
        broken = f", lowest broken rung {record.lowest_broken}" if record.lowest_broken else ""
        self.screen.say(f"{len(self.records)}: {record.key}: {word}{margin}{broken}, {record.seconds:.0f} s")

    # ---- one cell

    def _cell(self, number: int, cell: PlanCell) -> CellRecord:
        self.screen.begin()
        isa = self._isa(cell)
        lacking = machine.missing_flags(self.pins.llama_cpp.leg(isa).cpu_flags)
        if lacking:
            return self._not_run(cell, f"this machine cannot run the leg {isa}: it lacks {', '.join(lacking)}")
        try:
            path = models.ensure(cell.model, cell.quant, self.pins, say=self.screen.say)
            models.ensure_twin(path, self.pins, say=self.screen.say)
        except PinError as error:
            return self._not_run(cell, str(error), hole=False)  # a file that is there and is another one is no hole
        except ParityError as error:
            return self._not_run(cell, str(error))
        return self._compare(number, cell, isa)

    def _isa(self, cell: PlanCell) -> str:
        return self.host_leg if cell.isa == HOST else cell.isa

    def _compare(self, number: int, cell: PlanCell, isa: str) -> CellRecord:
        """Run the cell's notebook in a folder of its own, which gets its name when everything in it is there."""
        key = cell_key(cell, isa, self.notebooks)
        partial, final = self.folder / "cells" / f".{key}.partial", self.folder / "cells" / key
        partial.mkdir()
        (partial / PROGRESS_FILE).write_text("{}")  # tells the cell that somebody reads it there
        parameters = {
            "model": cell.model,
            "quant": cell.quant,
            "isa": isa,
            "stack": cell.stack,
            "compute": cell.compute,
            "prompts": cell.prompts and str(fixture_path(cell.prompts)),
            "fault": cell.fault,
            "control": cell.control,
            "out_dir": str(partial),
        }
        job = NotebookJob(
            self.notebooks / f"{cell.notebook}.ipynb",
            partial / f"{cell.notebook}.ipynb",
            parameters,
            partial / "run.log",
            cell.limit_s,
        )
        end = run_notebook(job, lambda: self.screen.tick(number, key, partial))
        rename_inside(partial, final)
        result = inspect_run(end)
        identity = CellId(cell.model, cell.quant, isa, cell.stack, cell.compute)
        verdict, wrong = sound_verdict(partial, identity, cell)
        outcome, good, causes = decide(cell, verdict, [*result.causes, *wrong], asserted=result.asserted)
        repair(end, result)
        (partial / PROGRESS_FILE).unlink(missing_ok=True)
        shutil.rmtree(partial / ".spool", ignore_errors=True)  # a killed kernel could not remove its rows
        partial.replace(final)
        page = self._export(final / f"{cell.notebook}.ipynb", final / f"{cell.notebook}.html", end, result)
        return self._record(cell, key, identity, verdict, (outcome, good, causes), end.seconds, page)

    def _record(
        self,
        cell: PlanCell,
        key: str,
        identity: CellId,
        verdict: Verdict | None,
        decided: tuple[Outcome, bool, tuple[str, ...]],
        seconds: float,
        page: Path | None,
    ) -> CellRecord:
        outcome, good, causes = decided
        lines = [] if verdict is None else verdict.lines()
        said = () if verdict is None else verdict.causes
        lines += [cause_line(outcome, identity, cause) for cause in causes if cause not in said]
        for number, line in enumerate(lines):
            (self.screen.say if number < LINES_SHOWN else self.screen.note)(line)
        if len(lines) > LINES_SHOWN:
            self.screen.say(f"... and {len(lines) - LINES_SHOWN} more lines of this cell in {LOG}")
        if verdict is not None:
            store.append_divergences(verdict, self.folder / LINES)
            entry = store.history_entry(self.folder.name, verdict) | {"outcome": outcome.value}
            store.append_history([entry], self.folder.parent / HISTORY)
        broken = verdict.lowest_broken if verdict is not None else None
        folder = self.folder / "cells" / key
        has_verdict = verdict is not None and folder.is_dir()
        return CellRecord(
            key=key,
            cell=identity,
            required=cell.required or self.require_all,
            expect=cell.expect,
            reason=cell.reason,
            fault=cell.fault,
            control=cell.control,
            outcome=outcome,
            good=good,
            causes=causes,
            lines=tuple(lines[:LINES_KEPT]),
            worst_margin=worst_margin(verdict),
            lowest_broken=broken.rung.value if broken is not None else "",
            folder=f"cells/{key}" if folder.is_dir() else "",
            html="" if page is None else str(page.relative_to(self.folder)),
            verdict=f"cells/{key}/verdict.json" if has_verdict else "",
            seconds=seconds,
            peak_rss_bytes=max((run.peak_rss_bytes for run in verdict.runs.values()), default=0) if verdict else 0,
        )

    def _not_run(self, cell: PlanCell, reason: str, *, hole: bool = True) -> CellRecord:
        isa = self._isa(cell)
        identity = CellId(cell.model, cell.quant, isa, cell.stack, cell.compute)
        decided = without_run(cell, reason, require_all=self.require_all or not hole)
        return self._record(cell, cell_key(cell, isa, self.notebooks), identity, None, decided, 0.0, None)

    # ---- pages

    def _page(self, notebook: str, html: str, parameters: dict[str, str]) -> None:
        """Run a notebook that judges nothing; a failure is a gap of the night, never its end."""
        self.screen.begin()
        source = self.notebooks / f"{notebook}.ipynb"
        job = NotebookJob(source, self.folder / source.name, parameters, self.folder / f"{notebook}.log", PAGE_LIMIT_S)
        try:
            end = run_notebook(job, lambda: self.screen.tick(len(self.records), notebook, self.folder))
        except UsageError as error:
            self.pages.append(PageRecord(notebook, "", Outcome.INCOMPLETE, (str(error),)))
            return
        result = inspect_run(end)
        repair(end, result)
        page = self._export(job.output, self.folder / html, end, result)
        causes = result.causes + (("the assert cell raised",) if result.asserted else ())
        outcome = Outcome.INCOMPLETE if causes or page is None else Outcome.PARITY
        for cause in causes:
            self.screen.say(f"INCOMPLETE page={notebook} cause={cause}")
        self.pages.append(PageRecord(notebook, html if page is not None else "", outcome, causes))

    def _export(self, notebook: Path, html: Path, end: NotebookEnd, result: NotebookResult) -> Path | None:
        from parity_lib.display.html import Banner, export

        banner = None
        if result.causes:
            first, *more = result.causes
            banner = Banner(title=first, text=". ".join(more), log_tail=evidence(end))
        try:
            with contextlib.suppress(RecordError):
                return export(notebook, html, banner=banner)
        except Exception as error:  # noqa: BLE001 - a page that cannot be drawn must not end the night
            self.screen.say(f"INCOMPLETE page={html.name} cause={type(error).__name__}: {error}")
        self.pages.append(PageRecord(html.stem, "", Outcome.INCOMPLETE, ("its page could not be written",)))
        return None

    def _summary(self, night: Night) -> None:
        counts = ", ".join(f"{n} {word.lower()}" for word, n in sorted(night.counts().items()))
        controls = [record for record in night.cells if record.control]
        caught = sum(record.good for record in controls)
        red = f"; red control {caught}/{len(controls)} caught" if controls else ""
        self.screen.say(f"{night.outcome}: {counts}{red}; {night.seconds:.0f} s; exit status {night.exit_status}")
        self.screen.say(str(self.folder / INDEX) if (self.folder / INDEX).exists() else str(self.folder))
