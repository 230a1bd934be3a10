"""One record or many lines of them in a file: written whole or not at all, checked against their schema both ways."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parity_lib.errors import RecordError
from parity_lib.fixture_file import fixture_path
from parity_lib.json_text import decode, dump_line, dump_page, encode, parse

if TYPE_CHECKING:
    import jsonschema

SCHEMAS = (
    "capsule",
    "common",
    "divergence",
    "history",
    "kills",
    "night",
    "place_trials",
    "plan",
    "receipt",
    "spread",
    "trace",
    "verdict",
)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file that is either all there or not there at all, also after a power cut.

    Raises:
        RecordError: the folder cannot be made or written, or the disk is full; an older file stays as it was.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well; else the first error is the one to tell
            part.unlink()


def _unwritable(path: Path, error: OSError) -> RecordError:
    return RecordError(
        "cannot be written",
        place=path,
        found=error.strerror or error,
        next_step="choose another folder with --out, or free some space",
    )


@functools.cache
def _validator(schema: str) -> jsonschema.Draft202012Validator:
    # Over a second to import: a night must have begun to compute by then.
    import jsonschema
    from referencing import Registry, Resource

    contents = {name: json.loads(fixture_path(f"schemas/{name}.json").read_text("utf-8")) for name in SCHEMAS}
    resources = [(content["$id"], Resource.from_contents(content)) for content in contents.values()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return jsonschema.Draft202012Validator(contents[schema], registry=registry)


def check_schema(data: object, schema: str, place: object) -> None:
    """Refuse a JSON value that does not match ``fixtures/schemas/<schema>.json``; the message names the first place.

    Raises:
        RecordError: with the path inside of the record, what was expected there and what was found.
    """
    error = min(_validator(schema).iter_errors(data), key=lambda e: (len(e.path), e.json_path), default=None)
    if error is not None:
        raise RecordError(
            f"does not match the schema {schema}: {error.message[:300]}",
            place=f"{place} at {error.json_path}",
            next_step="was it written by another version? If so, read it with that version, or run the cell again",
        )


def save_record(data: object, path: Path, schema: str) -> Path:
    """Write one JSON record, checked against its schema. Returns the path."""
    plain = encode(data)
    check_schema(plain, schema, path)
    write_atomic(path, dump_page(plain).encode())
    return path


def load_record(path: Path, schema: str) -> Any:  # noqa: ANN401 - a JSON value is of any type
    """Return one JSON record, checked against its schema, non-finite numbers still as they are written.

    Raises:
        RecordError: missing, unreadable, no JSON, or not of this schema.
    """
    data = parse(read_bytes(path).decode("utf-8", "replace"), str(path))
    check_schema(data, schema, path)
    return data


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises ``RecordError`` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError("cannot be read", place=path, found=error.strerror or error) from error


def to_lines(records: Iterable[Mapping[str, Any]], schema: str, path: Path) -> bytes:
    """Return records as JSON lines, each checked against the schema."""
    text = []
    for record in records:
        check_schema(record, schema, path)
        text.append(dump_line(record) + "\n")
    return "".join(text).encode()


def append(path: Path, data: bytes) -> None:
    """Append whole lines under a lock, in one write. A line that a crash tore is closed first: no other is lost.

    Raises:
        RecordError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end and data:
                file.seek(end - 1)
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _unwritable(path, error) from error


def load_lines(path: Path, schema: str) -> list[dict[str, Any]]:
    """Return the records of a file of JSON lines, oldest first, non-finite numbers back in place.

    Raises:
        RecordError: missing, or a line is damaged; the message names it.
    """
    records = []
    for number, line in enumerate(read_bytes(path).decode("utf-8", "replace").splitlines(), start=1):
        place = f"{path} line {number}"
        record = parse(line, place)
        check_schema(record, schema, place)
        records.append(decode(record))
    return records
