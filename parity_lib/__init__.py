"""Compares two GGUF inference engines logit by logit: llama.cpp is the reference, burn the candidate.

Every public name is imported when it is first used (PEP 562): judging stored traces does not load an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    # one cell, step by step
    "CellRequest": "cell.request",
    "Cell": "cell.request",
    "open_cell": "cell.request",
    "check_pins": "cell.steps",
    "compare_tokens": "cell.steps",
    "check_file": "cell.file_check",
    "save_file_verdict": "cell.file_check",
    "cut_prompts": "cell.file_check",
    "measure_tensors": "cell.file_check",
    "compare_weights": "cell.steps",
    "capture_reference": "cell.steps",
    "capture_twin": "cell.steps",
    "capture_spread": "cell.steps",
    "capture_candidate": "cell.steps",
    "replay_ops": "cell.steps",
    "check_self": "cell.steps",
    "prove_isa": "cell.steps",
    "climb": "cell.steps",
    "conclude": "cell.steps",
    "save": "cell.steps",
    "run_cell": "cell.steps",
    "trace_token": "trace.token",
    # records
    "load_verdict": "records.store",
    "load_pair": "records.store",
    "load_trace": "records.store",
    "load_words": "cell.prompt_tokens",
    "rejudge": "judge.again",
    "load_night": "records.night_record",
    "Verdict": "records.verdicts",
    "PairTrace": "records.traces",
    "LogitTrace": "records.traces",
    # fixtures
    "load_pins": "records.pins",
    "load_prompts": "records.prompts",
    "load_tolerances": "records.tolerances",
    "examine": "cli.doctor",
    # names and errors
    "Outcome": "base.names",
    "Rung": "base.names",
    "ParityError": "base.errors",
    "ParityFailure": "base.errors",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list of strings, made from the table above


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name of the package
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
