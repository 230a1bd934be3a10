"""The nightly run: takes a plan, leaves a folder with verdicts, pages and one record. A cell is a child process."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from parity_lib.base.files import hold_folder
from parity_lib.engines import machine
from parity_lib.night.cells import Cells, Done, Ready
from parity_lib.night.content import source_digest
from parity_lib.night.junit import write_junit
from parity_lib.night.pages import missing_page, run_page
from parity_lib.night.plan import NOTEBOOKS, PlanCell, load_plan, plan_path
from parity_lib.night.pool import Pool
from parity_lib.night.preflight import check_plan, limits_lack, listing, machine_lacks
from parity_lib.night.resume import clear, kept_records, new_folder, unfinished_night
from parity_lib.night.screen import Screen
from parity_lib.night.summary import headline, last_line, write_summary
from parity_lib.records import store
from parity_lib.records.night_record import CellRecord, Night, PageRecord, remember
from parity_lib.records.pins import load_pins
from parity_lib.records.verdicts import margin_words

RUNS = Path(__file__).resolve().parents[2] / "reports" / "nightly"
LOG, LINES, INDEX = "night.log", "divergences.jsonl", "index.html"
MACHINE_PAGE, NIGHT_PAGE = "00_machine_and_pins", "06_night"
LINES_SHOWN, CONTROL_LINES_SHOWN = 20, 3  # of one cell on the screen; the log has all of them


@dataclass(frozen=True, slots=True)
class NightOptions:
    """What the command line may choose."""

    plan: str = "smoke"  # a file, or the name of a shipped plan
    out: Path | None = None  # folder in which the run's folder is made
    only: str = ""
    require_all: bool = False
    notebooks: Path | None = None  # None: those of this checkout
    jobs: int | None = None  # cells at once; None: as many as the plan says
    full: bool = False  # rungs T3 and T6 on every prompt of every cell
    resume: str = ""  # "newest", or the name or folder of an unfinished night


def run_night(options: NightOptions, stream: TextIO | None = None) -> tuple[Night, Path]:
    """Run a plan, or go on with one; return its record and its folder. What was finished is kept, also on Ctrl-C.

    Raises:
        UsageError: the plan, an id, a fault, a notebook's parameter, ``only``, ``jobs`` or ``resume`` is unknown or
            impossible, or another process writes into the folder. Nothing was run.
        RecordError, OSError: the output folder cannot be written; what was finished before is kept.
    """
    notebooks = options.notebooks or NOTEBOOKS
    plan = load_plan(plan_path(options.plan), notebooks)
    cells = plan.only(options.only) if options.only else plan.cells
    pins = load_pins()
    check_plan(plan, cells, pins, notebooks)
    pool: Pool[tuple[int, Ready]] = Pool(plan.jobs if options.jobs is None else options.jobs)
    started, before = datetime.now(UTC), None
    parent = options.out or RUNS
    if options.resume:
        folder, before = unfinished_night(parent, options.resume, plan)
    else:
        folder = new_folder(parent, f"{started:%Y%m%dT%H%M%SZ}-{plan.sha256[:8]}")
    day = datetime.fromisoformat(before.started_at) if before is not None else started
    with hold_folder(folder, "wait for it, or start another run without --resume"):
        common = Cells(
            plan,
            pins,
            notebooks,
            folder,
            source_digest(),
            options.require_all,
            options.full,
            day.toordinal(),
        )
        screen = Screen(folder / LOG, len(cells), stream)
        try:
            return _Run(common, started, screen, pool, before, resumed=bool(options.resume)).all(cells), folder
        finally:
            screen.close()


class _Run:
    """A nightly run in progress: its records so far, saved after each cell."""

    def __init__(
        self,
        cells: Cells,
        started: datetime,
        screen: Screen,
        pool: Pool[tuple[int, Ready]],
        before: Night | None,
        *,
        resumed: bool,
    ) -> None:
        self.cells, self.plan, self.folder, self.screen, self.pool = cells, cells.plan, cells.folder, screen, pool
        self.records: dict[int, CellRecord] = {}  # by place in the plan
        self._undrawn: list[tuple[int, Done]] = []  # decided, and their pages not drawn yet
        self.pages: list[PageRecord] = []
        now = started.isoformat(timespec="seconds")
        self.started = before.started_at if before is not None else now
        self.resumed = (*(before.resumed if before is not None else ()), *([now] if resumed else []))
        self._clock = time.monotonic() - (before.seconds if before is not None else 0.0)
        self._kept = kept_records(before, cells) if resumed else {}

    def all(self, chosen: Sequence[PlanCell]) -> Night:
        """Run every chosen cell, then draw the pages of the nightly run."""
        self.screen.say(f"nightly run {self.folder.name}: {self.plan.title}")
        self.screen.say(f"{self.plan.headline}; machine class {machine.machine_class()}")
        try:
            with self.pool:
                self._run(chosen)
            self._page(MACHINE_PAGE, f"{MACHINE_PAGE}.html", {})
            remember(self.folder, self._records(), resumed=bool(self.resumed))
            (self.folder / LINES).touch()
            self._save(interrupted=False)  # the night's page shows it
            self._page(NIGHT_PAGE, INDEX, {"run_dir": str(self.folder)})
            night = self._save(interrupted=False)
        except KeyboardInterrupt:
            with _deaf():
                self.pool.stop()
                self._draw(trace=False)
                self._give_up(chosen)
                night = self._save(interrupted=True)
        self._say_end(night)
        return night

    def _run(self, chosen: Sequence[PlanCell]) -> None:
        """Run what is not kept, as many at once as the pool takes: in the plan's order, but for the fresh cell."""
        self._keep()
        waiting = [(n, cell) for n, cell in enumerate(self.plan.cells) if cell in chosen and n not in self.records]
        if self.plan.complete and self._refuse(waiting):
            return
        fresh = self._fresh(chosen)
        if len(self.pool.shares) > 1:  # it takes longest: begun last, it would run alone
            waiting.sort(key=lambda item: item[1] != fresh)
        for number, cell in waiting:
            while self.pool.full:
                self._take()
            item = self.cells.prepare(cell, self.screen.say, fresh=cell == fresh)
            if isinstance(item, Done):
                self._finish(number, item)
                continue
            self.screen.begin(item.key)
            self.pool.start((number, item), item.job, partial(self.screen.tick, item.key, item.partial))
            self._draw()
        while self.pool.busy:
            self._take()
            self._draw()
        self._draw()  # of a resumed night that had nothing left to run

    def _keep(self) -> None:
        """Keep the cells that were finished before the run was interrupted."""
        if not self.resumed:
            return
        clear(self.folder, self._kept, self.folder / LINES)
        for number, cell in enumerate(self.plan.cells):
            record = self._kept.get(self.cells.key(cell))
            if record is not None:
                self.records[number] = record
                self._undrawn.append((number, self.cells.kept(cell, record)))
        self.screen.say(f"resumed {self.resumed[-1]}: {len(self.records)} finished cells are kept")

    def _refuse(self, waiting: Sequence[tuple[int, PlanCell]]) -> bool:
        """If a required cell cannot run here, print one list of what is missing, refuse all cells and return True."""
        lacks = {
            cell.name: [*machine_lacks(cell, self.cells.isa(cell), self.plan, self.cells.pins), *limits_lack(cell)]
            for _, cell in waiting
            if cell.required or self.cells.require_all
        }
        if not any(lacks.values()):
            return False
        self.screen.say(*listing(lacks))
        for number, cell in waiting:
            own = "; ".join(map(str, lacks.get(cell.name, [])))
            reason = own or "not run: the plan is refused as a whole while another of its cells cannot run"
            self.records[number] = self.cells.not_run(cell, reason, excusable=False).record
            for line in self.records[number].lines:
                self.screen.note(line)
        return True

    def _fresh(self, chosen: Sequence[PlanCell]) -> PlanCell | None:
        """Return the cell whose reference this run recomputes: another one each day, all of them in turn."""
        able = [
            cell
            for cell in chosen
            if not cell.control and not machine_lacks(cell, self.cells.isa(cell), self.plan, self.cells.pins)
        ]
        return able[datetime.fromisoformat(self.started).toordinal() % len(able)] if able else None

    def _take(self) -> None:
        """Wait for one notebook to end, and decide its cell."""
        finished = self.pool.wait()
        number, ready = finished.item
        self.screen.end(ready.key)
        if finished.end is None:  # its request was refused: the notebook was changed since the plan was checked
            shutil.rmtree(ready.partial, ignore_errors=True)
            self._finish(number, self.cells.not_run(ready.cell, str(finished.error), excusable=False))
        else:
            done = self.cells.judge(ready, finished.end)
            self._finish(number, done)
            self._undrawn.append((number, done))

    def _draw(self, *, trace: bool = True) -> None:
        """Draw the pages of decided cells, and trace what diverged, while the next ones already run."""
        while self._undrawn:
            number, done = self._undrawn[0]
            record = self.cells.show(done, self.screen.say)
            if not record.html:
                self.pages.append(missing_page(record.key))
            self.records[number] = self.cells.trace(done, record, self.screen.say) if trace else record
            self._save(interrupted=True)
            del self._undrawn[0]

    def _finish(self, number: int, done: Done) -> None:
        record = done.record
        self.records[number] = record
        word = "control caught" if record.control and record.good else record.outcome.value
        margin = "" if record.worst_margin is None else f", {margin_words(record.worst_margin)}"
        broken = f", lowest broken rung {record.lowest_broken}" if record.lowest_broken else ""
        n_shown = CONTROL_LINES_SHOWN if record.control and record.good else LINES_SHOWN
        shown, more = done.lines[:n_shown], done.lines[n_shown:]
        for line in more:
            self.screen.note(line)
        said = [f"... and {len(more)} more lines of this cell in {LOG}"] if more else []
        said.append(f"{number + 1}: {record.key}: {word}{margin}{broken}, {record.seconds:.0f} s")
        self.screen.say(*shown, *said)
        if done.verdict is not None:
            store.append_divergences(done.verdict, self.folder / LINES)
        self._save(interrupted=True)  # a run that is killed now keeps this cell

    def _give_up(self, chosen: Sequence[PlanCell]) -> None:
        """Mark every unfinished cell as interrupted, and remove its partial output."""
        self.screen.say("interrupted: finished cells are kept; next: parity nightly --resume")
        for number, cell in enumerate(self.plan.cells):
            if cell in chosen and number not in self.records:
                record = self.cells.not_run(cell, "interrupted before it was finished", excusable=False).record
                self.records[number] = record
                self.screen.say(*record.lines)
        for path in (self.folder / "cells").glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    # ---- what is written

    def _records(self) -> tuple[CellRecord, ...]:
        return tuple(self.records[number] for number in sorted(self.records))

    def _save(self, *, interrupted: bool) -> Night:
        records = self._records()
        night = Night(
            run_id=self.folder.name,
            plan=self.plan.name,
            title=self.plan.title,
            headline=headline(self.plan, records, self.cells.pins),
            plan_sha256=self.plan.sha256,
            started_at=self.started,
            seconds=time.monotonic() - self._clock,
            host=machine.host(),
            machine_class=machine.machine_class(),
            interrupted=interrupted,
            cells=records,
            pages=tuple(self.pages),
            resumed=self.resumed,
        )
        night.save(self.folder)
        write_junit(night, self.folder)
        write_summary(night, self.folder)
        return night

    def _page(self, notebook: str, html: str, parameters: dict[str, str]) -> None:
        self.screen.begin(notebook)
        tick = partial(self.screen.tick, notebook, self.folder)
        source = self.cells.notebooks / f"{notebook}.ipynb"
        self.pages.append(run_page(source, self.folder / html, parameters, self.screen.say, tick))
        self.screen.end(notebook, counts=False)

    def _say_end(self, night: Night) -> None:
        self.screen.say(last_line(night))
        self.screen.say(str(self.folder / INDEX) if (self.folder / INDEX).exists() else str(self.folder))


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Ignore further Ctrl-C while shutting down: a second one would leave the record unwritten."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
