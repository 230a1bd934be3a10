"""JSON as the records write it: the same record gives the same bytes, and NaN and infinity survive.

JSON has no NaN and no infinity. They are written as ``{"nonfinite": "nan"}``, ``"inf"`` or ``"-inf"``.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from parity_lib.base.errors import RecordError

_MARK = "nonfinite"
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: object) -> Any:  # noqa: ANN401 - a JSON value is of any type
    """Return a record or value as JSON's own types; NaN and infinities become objects.

    Records and dataclasses become objects by field name, enums their word, numpy scalars and arrays numbers and lists.
    An array that is a field of a record becomes base64 of its little-endian numbers.

    Raises:
        RecordError: a type that no record holds, or a key that is no text.

    >>> encode({"worst": float("nan"), "rungs": ("T0", "T1")})
    {'worst': {'nonfinite': 'nan'}, 'rungs': ['T0', 'T1']}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        # float() because numpy.float64 is a float and its repr is not JSON.
        return float(value) if math.isfinite(value) else {_MARK: str(float(value))}
    if isinstance(value, np.generic | np.ndarray):
        return encode(value.tolist())
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        tag = {config.tag_field: config.tag} if config.tag_field else {}
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return tag | {stored: _field(getattr(value, name)) for stored, name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecordError("record keys must be strings", place=key, found=type(key).__name__)
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    raise RecordError("a record cannot hold this type", found=type(value).__name__, place=repr(value)[:80])


def _field(value: object) -> Any:  # noqa: ANN401 - a JSON value is of any type
    if isinstance(value, np.ndarray):
        return base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode()
    return encode(value)


def decode(value: Any) -> Any:  # noqa: ANN401 - a JSON value is of any type
    """Return parsed JSON with NaN and infinities restored.

    >>> decode({"worst": {"nonfinite": "-inf"}})
    {'worst': -inf}
    """
    if isinstance(value, dict):
        if set(value) == {_MARK}:
            word = value[_MARK]
            if word not in _WORDS:
                raise RecordError("an unknown non-finite number", expected=", ".join(_WORDS), found=repr(word))
            return _WORDS[word]
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def dump_line(value: object) -> str:
    """Return a record as one line: sorted keys, no line break inside, UTF-8 letters as they are."""
    return json.dumps(encode(value), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dump_page(value: object) -> str:
    """Return a record as indented text with sorted keys, for files that people open."""
    return json.dumps(encode(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def parse(text: str, place: str) -> Any:  # noqa: ANN401 - a JSON value is of any type
    """Return the JSON value of a text; NaN and infinities stay encoded (see ``decode``).

    Raises:
        RecordError: it is not JSON, or holds a bare NaN or Infinity, which are not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise RecordError("is not valid JSON", place=place, found=error) from error


def _refuse(word: str) -> None:
    raise ValueError(f'{word} is not JSON; records write it as {{"{_MARK}": ..}}')
