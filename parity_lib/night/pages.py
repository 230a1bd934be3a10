"""Draws executed notebooks as pages, and runs the notebooks of a nightly run that are not cells."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from parity_lib.base.errors import RecordError, UsageError
from parity_lib.base.names import Outcome
from parity_lib.night.job import NotebookEnd, NotebookJob, run_notebook
from parity_lib.night.result import NotebookResult, evidence, inspect_run, repair
from parity_lib.pages.kit.export import Banner, export
from parity_lib.records.night_record import PageRecord

Say = Callable[[str], None]

LIMIT_S = 300


def banner_of(end: NotebookEnd, result: NotebookResult) -> Banner | None:
    """Return the banner for the page of a run that broke off; None if it ended normally."""
    if not result.causes:
        return None
    first, *more = result.causes
    return Banner(title=first, text=". ".join(more), log_tail=evidence(end))


def draw(notebook: Path, html: Path, banner: Banner | None, say: Say) -> Path | None:
    """Write the page of an executed notebook; None if it cannot be written."""
    try:
        with contextlib.suppress(RecordError):
            return export(notebook, html, banner=banner)
    except Exception as error:  # noqa: BLE001 - a page that cannot be drawn must not end the run
        say(f"INCOMPLETE page={html.name} cause={type(error).__name__}: {error}")
    return None


def missing_page(name: str) -> PageRecord:
    """Return the gap that a page leaves which could not be written."""
    return PageRecord(name, "", Outcome.INCOMPLETE, ("its page could not be written",))


def run_page(
    source: Path, html: Path, parameters: Mapping[str, str], say: Say, on_tick: Callable[[], None]
) -> PageRecord:
    """Run a notebook that is not a cell, and draw its page; a failure leaves a gap and does not end the run."""
    folder = html.parent
    job = NotebookJob(source, folder / source.name, parameters, folder / f"{source.stem}.log", LIMIT_S)
    try:
        end = run_notebook(job, on_tick)
    except UsageError as error:
        say(f"INCOMPLETE page={source.stem} cause={error}")
        return PageRecord(source.stem, "", Outcome.INCOMPLETE, (str(error),))
    result = inspect_run(end)
    repair(end, result)
    page = draw(job.output, html, banner_of(end, result), say)
    causes = result.causes + (("the assert cell raised",) if result.asserted else ())
    causes += missing_page(source.stem).causes if page is None else ()
    for cause in causes:
        say(f"INCOMPLETE page={source.stem} cause={cause}")
    outcome = Outcome.INCOMPLETE if causes else Outcome.PARITY
    return PageRecord(source.stem, html.name if page is not None else "", outcome, causes)
