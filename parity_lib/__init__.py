"""Compares two GGUF inference engines logit by logit: llama.cpp is the reference, burn the candidate.

Every public name is imported when it is first used (PEP 562): who only judges stored traces loads no engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    # one cell, step by step
    "CellRequest": "capture.cell_request",
    "Cell": "capture.cell_request",
    "open_cell": "capture.cell_request",
    "check_pins": "capture.cell",
    "compare_tokens": "capture.cell",
    "check_cases": "capture.file_check",
    "judge_file": "capture.file_check",
    "save_file_verdict": "capture.file_check",
    "cut_prompts": "capture.file_check",
    "measure_tensors": "capture.file_check",
    "compare_weights": "capture.cell",
    "capture_reference": "capture.cell",
    "capture_twin": "capture.cell",
    "capture_spread": "capture.cell",
    "capture_candidate": "capture.cell",
    "replay_ops": "capture.cell",
    "check_self": "capture.cell",
    "prove_isa": "capture.cell",
    "judge": "capture.cell",
    "save": "capture.cell",
    "run_cell": "capture.cell",
    "trace_token": "capture.trace",
    # records
    "load_verdict": "store",
    "load_pair": "store",
    "load_trace": "store",
    "load_words": "capture.tokens",
    "rejudge": "rejudge",
    "load_night": "night_record",
    "Verdict": "verdicts",
    "PairTrace": "traces",
    "LogitTrace": "traces",
    # fixtures
    "load_pins": "pins",
    "load_prompts": "prompts",
    "load_tolerances": "tolerances",
    "examine": "doctor",
    # names and errors
    "Outcome": "names",
    "Rung": "names",
    "ParityError": "errors",
    "ParityFailure": "errors",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list of strings, made from the table above


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name of the package
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
