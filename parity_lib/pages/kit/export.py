"""Writes an executed notebook as one HTML file: no script, no external address, readable offline for years."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from parity_lib.base.errors import RecordError, SurroundingsError
from parity_lib.base.files import replacing
from parity_lib.pages.kit.arrange import Banner, arrange, page_title
from parity_lib.pages.kit.fragment import LAB_STYLE, TEMPLATES

__all__ = ["MAX_BYTES", "Banner", "export", "render"]

MAX_BYTES = 1_500_000  # a report is attached to a mail and opened on a phone
_STYLE_FOR_LAB = re.compile(re.escape(LAB_STYLE) + r".*?</style>", re.DOTALL)


def export(notebook_path: Path | str, html_path: Path | str, *, banner: Banner | None = None) -> Path:
    """Write the page of an executed notebook and return its path.

    Args:
        notebook_path: the executed notebook; one that died half-way gives a page that says so.
        html_path: where the page goes; its folder is made, the file is replaced at once or not at all.
        banner: a failure that the runner saw and the notebook could not record.

    Raises:
        RecordError: the notebook is missing or not a notebook.
        SurroundingsError: the page cannot be written.
    """
    source, target = Path(notebook_path), Path(html_path)
    try:
        notebook = json.loads(source.read_text(encoding="utf-8"))
        cells = [_joined(cell) for cell in notebook["cells"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            "the notebook cannot be read",
            place=source,
            expected="an executed .ipynb",
            found=f"{type(error).__name__}: {error}",
            next_step="read the log beside it: papermill stopped before it could save",
        ) from error
    page = render(cells, banner=banner)
    with replacing(target, kind=SurroundingsError) as part:
        part.write_text(page, encoding="utf-8")
    return target


def render(cells: list[dict[str, Any]], *, banner: Banner | None = None) -> str:
    """Return the page of the cells of a notebook, as nbformat 4 writes them."""
    # nbconvert costs two seconds to import; a command that writes no page must not pay for it.
    import nbformat
    from nbconvert.exporters import HTMLExporter

    joined = [_joined(cell) for cell in cells]
    exporter = HTMLExporter(template_name="parity", extra_template_basedirs=[str(TEMPLATES)], exclude_anchor_links=True)
    node = nbformat.from_dict(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"language_info": {"name": "python", "pygments_lexer": "python3"}},
            "cells": arrange(joined, banner),
        }
    )
    body, _ = exporter.from_notebook_node(node, {"metadata": {"name": page_title(joined)}})
    return str(_STYLE_FOR_LAB.sub("", body))


def _joined(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a cell whose texts are strings; on disk nbformat may split each into lines."""
    outputs = [
        {
            **output,
            **({"text": _text(output["text"])} if "text" in output else {}),
            **({"data": {mime: _text(value) for mime, value in output["data"].items()}} if "data" in output else {}),
        }
        for output in cell.get("outputs", [])
    ]
    return {**cell, "source": _text(cell["source"]), **({"outputs": outputs} if cell["cell_type"] == "code" else {})}


def _text(value: Any) -> Any:  # noqa: ANN401 - a mime bundle holds text, lists of lines, or JSON
    is_lines = isinstance(value, list) and all(isinstance(line, str) for line in value)
    return "".join(value) if is_lines else value
