"""Traces the first divergence of a cell automatically, by notebook 03, beside the cell's page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_lib.base.errors import ParityError
from parity_lib.judge.first_divergence import TRACE_PAGE, first_position, is_traced, self_broken
from parity_lib.night.job import NotebookJob, run_notebook
from parity_lib.night.pages import banner_of, draw
from parity_lib.night.preflight import declared_names
from parity_lib.night.result import inspect_run, repair
from parity_lib.pages.kit.scraps import read_records
from parity_lib.records.verdicts import Verdict

NOTEBOOK = "03_trace.ipynb"
LIMIT_S = 1800.0  # a longer trace is made by hand: parity trace

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Traced:
    """The result of a trace: its page, relative to the cell's folder, and its sentence, or why there is none."""

    page: str
    sentence: str


def trace_first(verdict: Verdict, folder: Path, parameters: Mapping[str, Any], notebooks: Path, say: Say) -> Traced:
    """Trace the first divergence of a cell. A trace that fails changes no outcome; its reason takes its place.

    Args:
        verdict: of the cell.
        folder: the cell's, absolute; the trace gets a folder of its own in it.
        parameters: what the cell's notebook was given.
        notebooks: folder of the notebooks.
        say: gets a line before and after.
    """
    at = first_position(verdict)
    if at is None or not is_traced(verdict):
        return Traced("", "")
    source, out = notebooks / NOTEBOOK, (folder / TRACE_PAGE).parent
    say(f"  tracing prompt {at.prompt_idx} token {at.token_idx} of {verdict.cell}")
    try:
        out.mkdir(exist_ok=True)
        given = {**parameters, "prompt": str(at.prompt_idx), "token": at.token_idx, "out_dir": str(out)}
        given["broken"] = self_broken(verdict)
        known = {name: value for name, value in given.items() if name in declared_names(source)}
        end = run_notebook(NotebookJob(source, out / source.name, known, out / "run.log", LIMIT_S))
        result = inspect_run(end)
        repair(end, result)
        page = draw(out / source.name, folder / TRACE_PAGE, banner_of(end, result), say)
        shutil.rmtree(out / ".spool", ignore_errors=True)
        sentence = "; ".join(result.causes) or read_records(out / source.name)["sentence"]
    except (ParityError, OSError, KeyError) as error:
        page, sentence = None, f"the trace could not be made: {error}"
    say(f"  traced: {sentence}")
    return Traced(TRACE_PAGE if page is not None else "", sentence)
