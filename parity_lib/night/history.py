"""Append a night to the history of all nights: one line for each cell that came to a verdict."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from parity_lib import store
from parity_lib.night.record import CellRecord

FILE_NAME = "history.jsonl"


def remember(folder: Path, records: Iterable[CellRecord], *, resumed: bool) -> None:
    """Append the cells of a night to ``history.jsonl`` beside its folder; a resumed night adds only what is not there.

    Args:
        folder: the night's.
        records: its cells, in the order of the plan.
        resumed: whether an earlier part of this night may have been here.

    Raises:
        RecordError: a verdict or the history is damaged, or the history cannot be written.
    """
    path = folder.parent / FILE_NAME
    verdicts = [(r, store.load_verdict(folder / r.verdict)) for r in records if r.verdict]
    entries = [store.history_entry(folder.name, v) | {"outcome": r.outcome.value} for r, v in verdicts]
    there = [entry for entry in store.load_history(path) if entry["run_id"] == folder.name] if resumed else []
    known = {(str(entry["cell"]), entry["control"], entry["created_at"]) for entry in there}
    new = [e for e in entries if (str(e["cell"]), e["control"], e["created_at"]) not in known]
    store.append_history(new, path)
