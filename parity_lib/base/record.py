"""Records: typed, frozen, checked where they are read and where they are written; their JSON Schemas follow from them.

A record that is read is held to its types by msgspec, which is the one check: nothing else validates it. Beyond that it
must be whole, so that a field with a default cannot be lost in silence: written again it has to give the same JSON.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
import numpy as np

from parity_lib.base.errors import RecordError
from parity_lib.base.files import read_bytes, write_atomic
from parity_lib.base.json_text import decode, dump_line, dump_page, encode, parse

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
NotEmpty = Annotated[str, msgspec.Meta(min_length=1)]
Commit = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Utc = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")]

_SAID = re.compile(r"(?P<what>.*?)(?: - at `(?P<place>[^`]*)`)?", re.DOTALL)
_WRONG = re.compile(r"Expected (?P<expected>.+?), got (?P<found>.+)")
NEXT = "was it written by another version? If so, read it with that version, or run the cell again"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored: fields of known types, never changed after it is made.

    A record that is a file or a line has its version as its tag, ``schema``.
    """


R = TypeVar("R", bound=Record)


def decode_record(data: object, kind: type[R], place: object) -> R:
    """Return the record of a JSON value, numbers that are not finite back in place.

    Args:
        data: parsed JSON.
        kind: what it has to be.
        place: of the JSON value, for messages.

    Raises:
        RecordError: another version, an unknown, missing or wrong field; the message names its path.
    """
    version, key = kind.__struct_config__.tag, kind.__struct_config__.tag_field
    stated = data.get(key, "none") if isinstance(data, dict) else "no object"
    if version is not None and stated != version:
        raise RecordError(
            f"is of another {key}", place=f"{place} at $.{key}", expected=version, found=stated, next_step=NEXT
        )
    try:
        record = msgspec.convert(decode(data), kind, dec_hook=_unpack)
    except msgspec.ValidationError as error:
        raise _refused(str(error), kind, place) from error
    lost = _difference(data, encode(record), "$")
    if lost is not None:
        raise RecordError(
            f"lacks fields of {kind.__name__}", place=f"{place} at {lost}", expected="all of them", next_step=NEXT
        )
    return record


def _refused(said: str, kind: type[Record], place: object) -> RecordError:
    match = _SAID.fullmatch(said)
    assert match is not None, "the pattern takes any text"
    wrong = _WRONG.fullmatch(match["what"])
    return RecordError(
        f"is no {kind.__name__}",
        place=f"{place} at {match['place'] or '$'}",
        expected=wrong["expected"] if wrong else f"the fields of {kind.__struct_config__.tag or kind.__name__}",
        found=wrong["found"] if wrong else match["what"],
        next_step=NEXT,
    )


def _difference(data: Any, whole: Any, path: str) -> str | None:  # noqa: ANN401 - JSON values are of any type
    """Return the path of the first object that has other fields than the record's own JSON, or None."""
    if isinstance(data, dict) and isinstance(whole, dict):
        if set(data) != set(whole):
            return f"{path}.{min(set(whole) ^ set(data))}"
        found = (_difference(data[key], whole[key], f"{path}.{key}") for key in whole)
    elif isinstance(data, list) and isinstance(whole, list):
        found = (_difference(*pair, f"{path}[{i}]") for i, pair in enumerate(zip(data, whole, strict=True)))
    else:
        return None
    return next((place for place in found if place is not None), None)


def _unpack(kind: Any, data: Any) -> Any:  # noqa: ANN401 - msgspec asks for what it does not know
    """Return the array of a text of base64: little-endian numbers of the annotated type, one dimension."""
    if get_origin(kind) is not np.ndarray:
        raise NotImplementedError(kind)
    dtype = np.dtype(get_args(get_args(kind)[1])[0]).newbyteorder("<")
    try:
        return np.frombuffer(base64.b64decode(data, validate=True), dtype).copy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected an array of {dtype.str}, got {error}") from error


def save_record(record: Record, path: Path) -> Path:
    """Write a record as a file of its own, checked as on the way in. Returns the path.

    Raises:
        RecordError: a field is not of its type, or the file cannot be written.
    """
    data = encode(record)
    decode_record(data, type(record), path)
    write_atomic(path, dump_page(data).encode())
    return path


def load_record(path: Path, kind: type[R]) -> R:
    """Return the record of a file.

    Raises:
        RecordError: missing, unreadable, no JSON, or not such a record.
    """
    return decode_record(parse(read_bytes(path).decode("utf-8", "replace"), str(path)), kind, path)


def to_lines(records: Iterable[Record], path: Path) -> bytes:
    """Return records as JSON lines, each checked as on the way in."""
    text = []
    for record in records:
        data = encode(record)
        decode_record(data, type(record), path)
        text.append(dump_line(data) + "\n")
    return "".join(text).encode()


def load_lines(path: Path, kind: type[R]) -> list[R]:
    """Return the records of a file of JSON lines, oldest first.

    Raises:
        RecordError: missing, or a line is damaged; the message names it.
    """
    lines = read_bytes(path).decode("utf-8", "replace").splitlines()
    places = [f"{path} line {number}" for number in range(1, len(lines) + 1)]
    return [decode_record(parse(line, place), kind, place) for line, place in zip(lines, places, strict=True)]
