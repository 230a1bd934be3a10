"""The format of a reproducer: a small folder with one op, its inputs, and the value of both engines.

``manifest.json`` names every other file with its SHA-256. Nothing in it points outside: no path, no model file, no
other record. A reproducer is written as a whole or not at all, and read as a whole or refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, convert
from msgspec.structs import asdict

from parity_lib.base.errors import RecordError
from parity_lib.base.files import read_bytes, replacing, write_atomic
from parity_lib.base.record import Count, NotEmpty, Positive, Record, Sha256, Utc, load_record, save_record
from parity_lib.engines.one_op import Input, OneOp, Rows, Sizes
from parity_lib.judge.one_op import Limit
from parity_lib.model_file.facts import RopeScaling
from parity_lib.records.traces import F32
from parity_lib.records.verdicts import CellId

MANIFEST = "manifest.json"
LARGEST = 5_000_000  # bytes of a reproducer
Above0 = Annotated[float, Meta(gt=0)]
Indices = Annotated[tuple[Count, ...], Meta(min_length=1)]
NEXT = "is the folder whole? If it was copied, copy it again"


class At(Record, frozen=True):
    """Where the op was found."""

    site: str  # with its block: ``ffn_out-17``
    op: str  # ggml's name
    settings: str  # of the reference
    phase: str  # prefill or decode
    prompt_idx: int
    token_idx: int
    position: int  # in the sequence
    head: int  # query head inside of attention, else 0
    channel: int  # of the row, or of the head inside of attention
    nmse: float  # of the whole op
    position_nmse: float  # of its worst position
    channel_nmse: float  # of its worst channel


class Side(Record, frozen=True):
    """Which code ran on which file; no host, no path."""

    engine: NotEmpty
    version: str
    commit: str
    isa: NotEmpty
    stack: str
    compute: str
    model_sha256: Sha256
    build: Mapping[str, Any]  # what of the build decides the code: hashes, crates, libraries


class Engines(Record, frozen=True):
    """Both sides."""

    reference: Side
    candidate: Side


@dataclass(frozen=True, slots=True, eq=False)
class Reproducer:
    """One op, reduced, with what both engines gave."""

    cell: CellId
    at: At
    step: str  # of the reduction: how much was kept
    limit: Limit
    op: OneOp
    fault: str  # seeded into the candidate, as the reduced model of one block takes it; empty: none
    asked_fault: str  # as it was seeded into the whole model
    reproduced: bool  # whether the reduced op gave the candidate's value again when the reproducer was made
    reference: F32  # recorded, flat
    candidate: F32
    engines: Engines
    architecture: str  # of the machine: x86_64
    machine_class: str
    created_at: str  # UTC, ISO 8601


class StoredInput(Record, frozen=True):
    """An input of the op, without its values."""

    site: NotEmpty
    rows: Indices
    shape: Annotated[tuple[Positive, ...], Meta(min_length=2, max_length=2)]


class StoredRows(Record, frozen=True):
    """Rows of a weight, without their blocks."""

    tensor: NotEmpty
    type: NotEmpty
    shape: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=2)]
    rows: Indices


class StoredOp(Record, frozen=True):
    """The op, without what lies in other files; the fields are those of ``OneOp``."""

    site: NotEmpty
    arch: NotEmpty
    compute: NotEmpty
    eps: Above0
    rope_base: Above0
    other_eps: Above0
    other_rope_base: Above0
    rope_dim: Positive
    sizes: Sizes
    position: Count
    before: Count
    row: Count
    n_rows: Positive
    buffer: str
    n_kv: Count
    inputs: tuple[StoredInput, ...]
    weight: StoredRows | None
    other_weight: StoredRows | None
    judged: Indices
    rope_scaling: RopeScaling
    other_rope_scaling: RopeScaling


class StoredFile(Record, frozen=True):
    """A file of the reproducer."""

    bytes: Count
    sha256: Sha256


class Manifest(Record, frozen=True, tag_field="schema", tag="parity/reproducer/3"):
    """``manifest.json``."""

    created_at: Utc
    architecture: NotEmpty
    machine_class: NotEmpty
    cell: CellId
    at: At
    step: NotEmpty
    limit: Limit
    fault: str
    asked_fault: str
    reproduced: bool
    engines: Engines
    op: StoredOp
    files: Annotated[Mapping[Annotated[str, Meta(pattern="^[a-z][A-Za-z0-9_.]*$")], StoredFile], Meta(min_length=2)]


def save(reproducer: Reproducer, folder: Path) -> Path:
    """Write a reproducer as a folder, replacing an earlier one, and return the path.

    Raises:
        RecordError: it would be larger than ``LARGEST``, or cannot be written.
    """
    files = _files(reproducer)
    size = sum(map(len, files.values()))
    if size > LARGEST:
        raise RecordError("a reproducer is too large", place=folder, expected=f"at most {LARGEST} bytes", found=size)
    with replacing(folder, next_step="choose another folder") as part:
        for name, data in files.items():
            write_atomic(part / name, data)
        save_record(_manifest(reproducer, files), part / MANIFEST)
    return folder


def load(folder: Path) -> Reproducer:
    """Return a reproducer, every file checked against the manifest's digest.

    Raises:
        RecordError: missing, damaged, of another version, or its parts do not fit each other.
    """
    manifest = load_record(folder / MANIFEST, Manifest)
    contents = {name: _checked(folder / name, entry) for name, entry in manifest.files.items()}
    try:
        return _from_manifest(manifest, contents)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            "the parts of a reproducer do not fit each other",
            place=folder / MANIFEST,
            found=f"{type(error).__name__}: {error}",
            next_step=NEXT,
        ) from error


def _checked(path: Path, entry: StoredFile) -> bytes:
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry.sha256:
        raise RecordError(
            "a file of the reproducer is not the one that was written",
            place=path,
            expected=f"SHA-256 {entry.sha256}, {entry.bytes} bytes",
            found=f"{digest}, {len(content)} bytes",
            next_step=NEXT,
        )
    return content


def _files(reproducer: Reproducer) -> dict[str, bytes]:
    """Return every file but the manifest: raw little-endian float32, or blocks as they lay in the model file."""
    op = reproducer.op
    arrays = {f"input.{given.site}.f32": given.values for given in op.inputs}
    arrays |= {"reference.f32": reproducer.reference, "candidate.f32": reproducer.candidate}
    if op.divisors is not None:
        arrays["divisors.f32"] = op.divisors
    files = {name: np.ascontiguousarray(values, "<f4").tobytes() for name, values in arrays.items()}
    for name, rows in (("weight.blocks", op.weight), ("weight.candidate.blocks", op.other_weight)):
        if rows is not None:
            files[name] = rows.blocks
    return files


def _manifest(reproducer: Reproducer, files: Mapping[str, bytes]) -> Manifest:
    shared = {name: getattr(reproducer, name) for name in _SHARED}
    digests = {name: StoredFile(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
    return Manifest(**shared, op=convert(reproducer.op, StoredOp, from_attributes=True), files=digests)


_SHARED = tuple(name for name in Manifest.__struct_fields__ if name not in ("op", "files"))


def _from_manifest(data: Manifest, contents: Mapping[str, bytes]) -> Reproducer:
    def values(name: str, shape: tuple[int, ...] = (-1,)) -> F32:
        return np.frombuffer(contents[name], "<f4").reshape(shape)

    def rows(found: StoredRows | None, name: str) -> Rows | None:
        return None if found is None else Rows(found.tensor, found.type, found.shape, found.rows, contents[name])

    op = data.op
    parts: dict[str, Any] = asdict(op) | {
        "inputs": tuple(Input(i.site, i.rows, values(f"input.{i.site}.f32", i.shape)) for i in op.inputs),
        "weight": rows(op.weight, "weight.blocks"),
        "other_weight": rows(op.other_weight, "weight.candidate.blocks"),
        "divisors": values("divisors.f32") if "divisors.f32" in contents else None,
    }
    shared: dict[str, Any] = {name: getattr(data, name) for name in _SHARED}
    recorded: dict[str, Any] = {"reference": values("reference.f32"), "candidate": values("candidate.f32")}
    reproducer = Reproducer(**shared, **recorded, op=OneOp(**parts))
    n = len(reproducer.reference)
    if not reproducer.op.row < reproducer.op.n_rows:
        raise ValueError(f"row {reproducer.op.row} of a pass of {reproducer.op.n_rows}")
    if len(reproducer.candidate) != n or not reproducer.op.judged or max(reproducer.op.judged) >= n:
        raise ValueError(f"{n} and {len(reproducer.candidate)} recorded numbers, judged {reproducer.op.judged[:3]}")
    return reproducer
