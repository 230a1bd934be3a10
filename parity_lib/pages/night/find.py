"""Find a night on disk: the folder, its record, and the verdicts of its cells."""

from __future__ import annotations

import contextlib
from pathlib import Path

from parity_lib.base.errors import RecordError
from parity_lib.records.night_record import FILE_NAME, Night, load_night
from parity_lib.records.store import load_verdict
from parity_lib.records.verdicts import Verdict

REPORTS = Path(__file__).resolve().parents[3] / "reports"
RUNS = REPORTS / "nightly"


def open_night(run_dir: str | Path = "") -> Night | None:
    """Return the night of a folder; without one the newest of ``reports/nightly``, or None where there is none.

    Raises:
        RecordError: the folder was named and holds no readable night.
    """
    if run_dir:
        return load_night(run_dir)
    folders = sorted(path.parent for path in RUNS.glob(f"*/{FILE_NAME}"))
    return load_night(folders[-1]) if folders else None


def night_folder(night: Night, run_dir: str | Path = "") -> Path:
    """Return where a night lies: the folder that was named, else its own among the nights."""
    return Path(run_dir) if run_dir else RUNS / night.run_id


def cell_verdicts(night: Night, run_dir: str | Path = "") -> dict[str, Verdict]:
    """Return the record of each cell that has a readable one, by the cell's key."""
    folder, found = night_folder(night, run_dir), {}
    for record in night.cells:
        if record.verdict:
            with contextlib.suppress(RecordError):  # a page of an old night must still open; its row says so
                found[record.key] = load_verdict(folder / record.verdict)
    return found
