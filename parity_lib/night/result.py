"""Judges an executed notebook: which cells ran, what they raised; marks a run that broke off."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_lib.base.files import write_atomic
from parity_lib.night.job import CELL_RAISED, REPLY_KEY, NotebookEnd, describe_status

ASSERT_ERROR = "ParityFailure"  # what the assert cell raises, in a cell tagged ``raises-exception``
ASSERT_TAG = "raises-exception"
BANNER_TAG = "parity-banner"
MARKER_TAG = "papermill-error-cell-tag"  # cells that papermill adds around an error
NOT_FINISHED_TAG = "not-finished"
LOG_TAIL = 40  # lines


@dataclass(frozen=True, slots=True)
class NotebookResult:
    """Why a run is no evidence, one sentence each; empty if the process ended normally and every cell ran.

    ``asserted`` is True if the only error is the assert cell's own. It is a reason not to be green,
    but no reason to doubt the record that was written before it.
    """

    causes: tuple[str, ...]
    expected: int  # code cells with something in them
    ran: int
    asserted: bool


def inspect_run(end: NotebookEnd) -> NotebookResult:
    """Judge a run by its exit status, its cells' replies and their error outputs; never by papermill's metadata."""
    notebook = _read(end.job.output)
    source = _read(end.job.source)
    cells = _code(notebook if notebook is not None else source)
    causes: list[str] = []
    if end.timed_out:
        causes.append(f"the wall-clock limit of {end.job.limit_s:g} s was reached; every process of the run was ended")
    if notebook is None:
        causes.append("no executed notebook was left behind")
    asserted = False
    for place, cell in cells:
        errors = [output for output in cell.get("outputs", []) if output["output_type"] == "error"]
        if not errors:
            continue
        last = errors[-1]  # the KeyboardInterrupt of a cell past its limit says less than the limit itself
        if last["ename"] == ASSERT_ERROR and ASSERT_TAG in cell["metadata"].get("tags", []):
            asserted = True
        else:
            causes.append(f"{place} {_error_words(last)}")
    missing = [place for place, cell in cells if REPLY_KEY not in cell["metadata"] or notebook is None]
    causes += _status_causes(end, explained=bool(causes) or asserted)
    if missing:
        causes.append(f"{len(missing)} of {len(cells)} code cells did not finish, the first is {missing[0]}")
    if not cells or (source is not None and notebook is not None and len(cells) < len(_code(source))):
        causes.append("the executed notebook holds fewer code cells than its source")
    return NotebookResult(tuple(causes), len(cells), len(cells) - len(missing), asserted)


def repair(end: NotebookEnd, result: NotebookResult) -> None:
    """Mark a broken run in its notebook: a banner with causes and the log's tail, a mark on each cell that did not run.

    Does nothing if there are no causes. Starts from the source if no notebook was left behind.
    """
    if not result.causes:
        return
    notebook = _read(end.job.output) or _read(end.job.source)
    if notebook is None:
        return
    for _, cell in _code(notebook):
        if REPLY_KEY not in cell["metadata"]:
            tags = cell["metadata"].setdefault("tags", [])
            if not cell.get("outputs"):
                cell["outputs"] = [{"output_type": "stream", "name": "stderr", "text": "did not finish\n"}]
            if NOT_FINISHED_TAG not in tags:
                tags.append(NOT_FINISHED_TAG)
            cell["execution_count"] = None  # the dying cell may carry a number all the same
    text = "\n".join(
        [
            "**INCOMPLETE: this run broke off. Nothing on this page is a result.**",
            "",
            *(f"- {_plain(cause)}" for cause in result.causes),
            "",
            "<details open><summary>end of the log</summary>\n\n",
            *(f"    {line}" for line in evidence(end).splitlines()),
            "\n</details>",
        ]
    )
    banner = {
        "cell_type": "markdown",
        "id": "parity-banner",
        "metadata": {"tags": [BANNER_TAG, MARKER_TAG]},
        "source": text,
    }
    cells = [c for c in notebook["cells"] if BANNER_TAG not in c["metadata"].get("tags", [])]
    notebook["cells"] = [*cells[:1], banner, *cells[1:]]  # after the title
    write_atomic(end.job.output, (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())


def evidence(end: NotebookEnd) -> str:
    """Return what the processes of the run left to read: their stacks if they crashed, and the end of the log."""
    stacks = end.crash.strip()
    crash = f"stacks at the end:\n{stacks}\n\nend of the log:\n" if stacks else ""
    return crash + _tail(end.job.log)


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(notebook, dict) and isinstance(notebook.get("cells"), list):
            return notebook
    return None


def _code(notebook: Mapping[str, Any] | None) -> list[tuple[str, dict[str, Any]]]:
    """Return (words that name the cell, cell) for each code cell that holds something."""
    if notebook is None:
        return []
    found = []
    ours = [c for c in notebook["cells"] if not {BANNER_TAG, MARKER_TAG} & set(c["metadata"].get("tags", []))]
    for index, cell in enumerate(ours, start=1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and source.strip():
            lines = [line.strip() for line in source.splitlines() if line.strip()]
            first = next((line for line in lines if not line.startswith("#")), lines[0])
            found.append((f"cell {index} (`{first[:60]}`)", cell))
    return found


def _error_words(output: Mapping[str, Any]) -> str:
    name, value = output["ename"], output["evalue"]
    if name == "SystemExit":
        return f"ended the notebook with sys.exit({value})"
    if name in ("DeadKernelError", "CellTimeoutError"):
        return f"broke off: {value}"
    return f"raised {name}: {value}"


def _status_causes(end: NotebookEnd, *, explained: bool) -> list[str]:
    if end.status == 0 or (end.status == CELL_RAISED and explained):
        return []
    words = f"the notebook's process ended with {describe_status(end.status)}"
    last = _tail(end.job.log).rpartition("\n")[2].strip()
    return [f"{words}; last line of its log: {last}" if last else words]


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL:])


def _plain(text: str) -> str:
    """Return the text as one line of Markdown without markup of its own."""
    line = " ".join(text.split())
    return line.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
