"""Shows records: boxes, tables, figures, whole pages. Judges nothing and reads no engine.

Every name is imported when it is first used, so that a command line that shows nothing never loads matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "verdict_box": "box",
    "cell_links": "box",
    "rung_table": "ladder",
    "SECTIONS": "ladder",
    "positions": "position_data",
    "judged_positions": "position_data",
    "spread_pin_table": "fixture_tables",
    "difference_table": "fixture_tables",
    "drift": "drift_plot",
    "heatmap": "position_map",
    "position_tables": "places",
    "around": "places",
    "anchors": "places",
    "native_section": "native",
    "text_section": "texts",
    "weight_table": "tensors",
    "op_kinds": "op_summary",
    "self_table": "relations",
    "isa_table": "instructions",
    "literal_table": "literal",
    "trace_conclusion": "trace_words",
    "traced_positions": "trace_words",
    "record_trace": "trace_headline",
    "trace_box": "trace_headline",
    "layer_map": "trace_maps",
    "head_map": "trace_maps",
    "layer_profile": "trace_plots",
    "falls": "trace_plots",
    "top_table": "trace_tables",
    "layer_table": "trace_tables",
    "op_table": "trace_tables",
    "native_blame": "trace_blame",
    "trace_commands": "trace_tables",
    "split_table": "trace_split",
    "traced_tokens": "trace_slider",
    "run_table": "runs",
    "lines_block": "lines",
    "machine_header": "machine_page",
    "check_table": "machine_page",
    "leg_table": "machine_page",
    "file_table": "machine_page",
    "stack_table": "machine_page",
    "origin_table": "recipe_table",
    "open_night": "nights",
    "night_header": "night",
    "night_matrix": "night_squares",
    "gap_table": "night",
    "cost_table": "night",
    "night_traces": "night",
    "night_lines": "night",
    "sure_table": "night_sure",
    "step_table": "steps",
    "trend": "trend_plot",
    "token_table": "tokens_page",
    "case_table": "tokens_page",
    "token_differences": "tokens_page",
    "prompt_pieces": "tokens_page",
    "type_table": "tokens_tensors",
    "tensor_table": "tokens_tensors",
    "weight_figure": "tokens_tensors",
    "record": "records",
    "record_verdict": "records",
    "read_records": "records",
    "REPORTS": "nights",
    "export": "html",
    "Banner": "arrange",
    "Words": "text",
    "words_of": "text",
    "Fragment": "page",
    "Picture": "page",
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
