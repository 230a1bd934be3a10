"""Writes the JSON Schemas of all stored records into fixtures/schemas: ``python -m parity_lib.cli.schemas``.

They are for readers without this library. The library itself decodes a record by its types and validates nothing twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from parity_lib.base.files import write_atomic
from parity_lib.base.record import Record
from parity_lib.base.toml_table import fixture_path
from parity_lib.faults.judge import KillMatrix
from parity_lib.faults.op_judge import TrialTable
from parity_lib.records import store
from parity_lib.records.builds import Receipt, StackReceipt
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.model_receipts import ModelReceipt, TwinReceipt
from parity_lib.records.night_record import StoredNight
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.verdicts import Verdict
from parity_lib.trace.reproducer import format as reproducer

RECORDS: dict[str, type[Record]] = {
    "divergence": store.DivergenceLine,
    "history": store.HistoryEntry,
    "kills": KillMatrix,
    "limits": DriftLimits,
    "model_receipt": ModelReceipt,
    "night": StoredNight,
    "place_trials": TrialTable,
    "receipt": Receipt,
    "reproducer": reproducer.Manifest,
    "spread": SelfSpread,
    "stack_receipt": StackReceipt,
    "trace": store.Manifest,
    "twin_receipt": TwinReceipt,
    "verdict": Verdict,
}
"""Every record that is a file or a line of one, by the name of its schema."""
_NON_FINITE = {
    "title": "a number that is not finite",
    "type": "object",
    "properties": {"nonfinite": {"enum": ["nan", "inf", "-inf"]}},
    "required": ["nonfinite"],
    "additionalProperties": False,
}


def schema_text(kind: type[Record]) -> str:
    """Return the JSON Schema of a record, whole in itself: every field is required, a number may be non-finite."""
    (root,), defined = msgspec.json.schema_components((kind,), schema_hook=_array, ref_template="#/$defs/{name}")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{str(kind.__struct_config__.tag).replace('/', ':')}",
    }
    schema = _stored(root | {"$defs": defined})
    schema["$defs"]["nonfinite"] = _NON_FINITE
    return json.dumps(head | schema, indent=1, ensure_ascii=False) + "\n"


def _array(kind: Any) -> dict[str, Any]:  # noqa: ANN401 - msgspec asks for what it does not know
    """Return the schema of an array of a record."""
    if kind is not np.ndarray:
        raise NotImplementedError(kind)
    return {"type": "string", "contentEncoding": "base64", "description": "little-endian numbers, one dimension"}


def _stored(schema: Any) -> Any:  # noqa: ANN401 - a JSON value is of any type
    """Return a schema of msgspec's as records are stored: nothing left out, non-finite numbers as objects."""
    if isinstance(schema, list | tuple):
        return [_stored(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "number":
        return {"anyOf": [{key: schema[key] for key in schema if key != "default"}, {"$ref": "#/$defs/nonfinite"}]}
    named = ("properties", "$defs")  # keywords whose keys are names and no keywords
    whole = {
        key: {name: _stored(item) for name, item in value.items()} if key in named else _stored(value)
        for key, value in schema.items()
        if key != "default"
    }
    if "properties" not in schema:
        return whole
    return whole | {"required": list(schema["properties"]), "additionalProperties": False}


def main() -> int:
    """Write every schema, and print where."""
    folder = Path(fixture_path("schemas/verdict.json")).parent
    for name, kind in RECORDS.items():
        path = folder / f"{name}.json"
        write_atomic(path, schema_text(kind).encode())
        sys.stdout.write(f"{path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
