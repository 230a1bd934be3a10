"""Shows records: boxes, tables, figures, whole pages. Does not judge, and loads no engine.

Every name is imported when it is first used, so that a command line that shows nothing never loads matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "verdict_box": "cell.box",
    "cell_links": "cell.box",
    "rung_table": "cell.ladder",
    "SECTIONS": "cell.ladder",
    "positions": "cell.positions",
    "judged_positions": "cell.positions",
    "spread_pin_table": "files.fixtures",
    "difference_table": "files.fixtures",
    "drift": "cell.drift",
    "heatmap": "cell.position_map",
    "position_tables": "cell.position_tables",
    "around": "cell.position_tables",
    "anchors": "cell.position_tables",
    "native_section": "cell.t5_native",
    "text_section": "cell.t1_texts",
    "weight_table": "cell.t2_weights",
    "op_kinds": "cell.t3_ops",
    "hardness_table": "cell.hardness",
    "self_table": "cell.t6_self",
    "isa_table": "cell.t7_isa",
    "literal_table": "cell.t5_literal",
    "trace_conclusion": "trace.conclusion",
    "traced_positions": "trace.conclusion",
    "record_trace": "trace.headline",
    "trace_box": "trace.headline",
    "layer_map": "trace.maps",
    "head_map": "trace.maps",
    "layer_profile": "trace.figures",
    "falls": "trace.figures",
    "top_table": "trace.tables",
    "layer_table": "trace.tables",
    "op_table": "trace.tables",
    "native_blame": "trace.blame",
    "trace_commands": "trace.tables",
    "split_table": "trace.split",
    "traced_tokens": "trace.slider",
    "run_table": "cell.runs",
    "lines_block": "kit.lines",
    "machine_header": "files.machine",
    "check_table": "files.machine",
    "target_table": "files.machine",
    "file_table": "files.machine",
    "stack_table": "files.machine",
    "origin_table": "files.recipes",
    "open_night": "night.find",
    "night_header": "night.headline",
    "night_matrix": "night.matrix",
    "gap_table": "night.headline",
    "cost_table": "night.headline",
    "night_traces": "night.headline",
    "night_lines": "night.headline",
    "sure_table": "night.sure",
    "step_table": "cell.steps",
    "trend": "night.trend",
    "token_table": "files.tokens",
    "case_table": "files.tokens",
    "token_differences": "files.tokens",
    "prompt_pieces": "files.tokens",
    "type_table": "files.tensors",
    "tensor_table": "files.tensors",
    "weight_figure": "files.tensors",
    "record": "kit.scraps",
    "record_verdict": "kit.scraps",
    "read_records": "kit.scraps",
    "REPORTS": "night.find",
    "export": "kit.export",
    "Banner": "kit.arrange",
    "Words": "kit.text",
    "words_of": "kit.text",
    "Fragment": "kit.fragment",
    "Picture": "kit.figures",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - a list of strings, made from the table above


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public name of the package
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in set(_HOME.values()):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
