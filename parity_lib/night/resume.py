"""Makes the folder of a new nightly run, or finds the one to resume and which of its cells are still valid."""

from __future__ import annotations

import shutil
from pathlib import Path

from msgspec.structs import replace

from parity_lib.base.errors import ParityError, RecordError, UsageError
from parity_lib.base.files import is_held
from parity_lib.night.cells import Cells, is_finished
from parity_lib.night.plan import Plan
from parity_lib.records import store
from parity_lib.records.night_record import FILE_NAME, CellRecord, Night, load_night

NEWEST = "newest"


def new_folder(parent: Path, name: str) -> Path:
    """Make the folder of a new nightly run and return its path.

    Raises:
        UsageError: another run has this name: it was started with the same plan in the same second.
        RecordError: it cannot be made.
    """
    folder = parent.resolve() / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        (folder / "cells").mkdir()
    except FileExistsError as error:
        if not parent.is_dir():
            raise _unmakeable(folder, error) from error
        raise UsageError(
            "another run writes into this folder",
            place=folder,
            expected="a new folder",
            found="one that exists",
            next_step="start again in a second, or give another --out",
        ) from error
    except OSError as error:
        raise _unmakeable(folder, error) from error
    return folder


def _unmakeable(folder: Path, error: OSError) -> RecordError:
    return RecordError(
        "the output folder cannot be made",
        place=folder,
        expected="a folder that can be written",
        found=error.strerror or error,
        next_step="give another --out, or put the folder's permissions right",
    )


def unfinished_night(parent: Path, wanted: str, plan: Plan) -> tuple[Path, Night | None]:
    """Return the folder of an unfinished run of this plan, and its record or None if no cell was finished.

    Args:
        parent: the folder of the nightly runs.
        wanted: ``NEWEST``, or the name or folder of a nightly run.
        plan: today's; another content is another night.

    Raises:
        UsageError: there is no such night, it is finished, still running, or of another plan.
    """
    if wanted != NEWEST:
        folder = next((f for f in (parent / wanted, Path(wanted)) if f.is_dir()), None)
        if folder is None:
            raise UsageError(
                "there is no such nightly run", place=wanted, expected=f"a folder in {parent}", found="none"
            )
        return folder.resolve(), _check(folder, plan)
    for folder in sorted(parent.glob(f"*-{plan.sha256[:8]}"), reverse=True):
        if folder.is_dir() and (is_held(folder) or not _is_finished(folder)):
            return folder.resolve(), _check(folder, plan)
    raise UsageError(
        "there is no unfinished nightly run of this plan",
        place=parent,
        expected=f"a folder *-{plan.sha256[:8]} of an interrupted run",
        found="none; a changed plan starts a new run",
        next_step="leave --resume out",
    )


def _is_finished(folder: Path) -> bool:
    try:
        return not load_night(folder).interrupted
    except RecordError:
        return False  # killed before its first cell was finished, or while nothing could be written


def _check(folder: Path, plan: Plan) -> Night | None:
    if is_held(folder):
        raise UsageError(
            "this nightly run is still running",
            place=folder,
            expected="one that was interrupted",
            found="a process that holds its folder",
            next_step="wait for it, or end it first",
        )
    night = load_night(folder) if (folder / FILE_NAME).exists() else None
    if night is not None and night.plan_sha256 != plan.sha256:
        raise UsageError(
            "this nightly run is of another plan, or the plan was changed since",
            place=folder,
            expected=f"plan {plan.name}, SHA-256 {plan.sha256[:12]}",
            found=f"plan {night.plan}, SHA-256 {night.plan_sha256[:12]}",
            next_step="give the plan that it ran, or leave --resume out",
        )
    if night is not None and not night.interrupted:
        raise UsageError(
            "this nightly run is finished",
            place=folder,
            expected="one that was interrupted",
            found=f"{night.outcome}, exit status {night.exit_status}",
            next_step="leave --resume out; --only runs some cells again",
        )
    return night


def kept_records(night: Night | None, cells: Cells) -> dict[str, CellRecord]:
    """Return the records, by key, of the cells that need not run again.

    A key covers the plan's entry, notebook, fixtures, library, native sources, the reference's build and the machine.
    Only a cell that was finished is kept, and only with its own verdict, whole, in its folder.
    """
    found = {} if night is None else {record.key: record for record in night.cells if is_finished(record)}
    kept = {}
    for cell in cells.plan.cells:
        record = found.get(cells.key(cell))
        if record is not None and _holds(record, cells.folder, cell.notebook):
            kept[record.key] = replace(record, required=cell.required or cells.require_all, kept=True)
    return kept


def _holds(record: CellRecord, folder: Path, notebook: str) -> bool:
    try:
        verdict = store.load_verdict(folder / record.verdict)
    except ParityError:
        return False
    files = [f"{record.folder}/{name}" for name in (f"{notebook}.ipynb", "run.log")]
    files += [page for page in (record.html, record.trace) if page]
    same = (verdict.cell, verdict.control) == (record.cell, record.control)
    return same and all((folder / name).is_file() for name in files)


def clear(folder: Path, kept: dict[str, CellRecord], lines: Path) -> None:
    """Remove the partial output of an interrupted run, and rewrite its divergences from the cells that are kept."""
    for path in (folder / "cells").glob(".*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    (folder / "index.html").unlink(missing_ok=True)
    lines.unlink(missing_ok=True)
    for record in kept.values():
        store.append_divergences(store.load_verdict(folder / record.verdict), lines)
