"""Values that a notebook leaves for programs: written as scrapbook writes them, and never changed silently.

A record is an output of a cell with the mime type of scrapbook's JSON scraps: ``scrapbook.read_notebook(path).scraps``
reads it, and so does ``read_records``, which needs no library. Differences to ``scrapbook.glue``: numpy values are
taken, a number that is not finite stays one (``{"nonfinite": "nan"}`` in place of the text ``"nan"``), and a value
that has no JSON form is refused by name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parity_lib.base import json_text
from parity_lib.base.errors import RecordError
from parity_lib.records.verdicts import Verdict

MIME = "application/scrapbook.scrap.json+json"
_LINES = 100  # a broken engine has one for each position; all of them stand in divergences.jsonl
MAX_BYTES = 200_000  # larger data belong into an .npz beside the notebook; record its path, shape and hash


def record(name: str, value: object) -> None:
    """Leave a value in the running notebook, under a name.

    Raises:
        RecordError: the value has no JSON form, is too large, or no notebook is running.
    """
    from IPython.core.getipython import get_ipython
    from IPython.display import publish_display_data

    data = encode(value)
    n_bytes = len(json.dumps(data))
    if n_bytes > MAX_BYTES:
        raise RecordError(
            "the value is too large for a notebook",
            place=name,
            expected=f"<= {MAX_BYTES} bytes",
            found=n_bytes,
            next_step="save it beside the notebook and record its path and SHA-256",
        )
    if get_ipython() is None:
        raise RecordError("there is no notebook to record into", place=name, next_step="call it in a notebook cell")
    payload = {"name": name, "data": data, "encoder": "json", "version": 1}
    marks = {"scrapbook": {"name": name, "data": True, "display": False}}
    publish_display_data({MIME: payload}, metadata=marks)  # type: ignore[no-untyped-call]


def record_verdict(verdict: Verdict) -> None:
    """Leave a verdict's numbers in the running notebook: ``outcome``, ``cell``, ``rungs``, ``measured``, ``lines``.

    The record that decides is ``verdict.json``; these are for programs that read many executed notebooks.
    """
    record("outcome", verdict.outcome)
    record("cell", verdict.cell)
    names = ("outcome", "expected", "compared", "worst", "limit", "margin", "unit")
    record("rungs", {r.rung.value: {name: getattr(r, name) for name in names} for r in verdict.rungs})
    record("measured", {"native": verdict.measured.native, "power": verdict.measured.power})
    record("lines", verdict.lines()[:_LINES])


def encode(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value as JSON can hold it; numpy becomes numbers and lists.

    An absent value at the top becomes ``{"none": true}``, because scrapbook's schema knows no null there.

    Raises:
        RecordError: the value has no JSON form.
    """
    return {"none": True} if value is None else json_text.encode(value)


def decode(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Return what ``encode`` was given, arrays as lists."""
    return None if value == {"none": True} else json_text.decode(value)


def read_records(notebook_path: Path | str) -> dict[str, Any]:
    """Return all records of an executed notebook, name to value; a later one replaces an earlier one.

    Raises:
        RecordError: the file is missing or not a notebook.
    """
    path = Path(notebook_path)
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        payloads = [output["data"][MIME] for output in outputs if MIME in output.get("data", {})]
        return {payload["name"]: decode(payload["data"]) for payload in payloads}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            "the records cannot be read",
            place=path,
            expected="an executed .ipynb",
            found=f"{type(error).__name__}: {error}",
        ) from error
