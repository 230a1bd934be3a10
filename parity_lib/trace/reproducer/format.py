"""The format of a reproducer: a small folder with one op, its inputs, and the value of both engines.

``manifest.json`` names every other file with its SHA-256. Nothing in it points outside: no path, no model file, no
other record. A reproducer is written as a whole or not at all, and read as a whole or refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from parity_lib.base.errors import RecordError
from parity_lib.base.files import load_record, read_bytes, replacing, save_record, write_atomic
from parity_lib.base.json_text import decode
from parity_lib.engines.one_op import Input, OneOp, Rows, Sizes
from parity_lib.judge.one_op import Limit
from parity_lib.model_file.facts import UNSCALED, RopeScaling
from parity_lib.records.traces import F32
from parity_lib.records.verdicts import CellId

SCHEMA = "parity/reproducer/2"
MANIFEST = "manifest.json"
_SCALINGS = ("rope_scaling", "other_rope_scaling")  # stated where RoPE is stretched
LARGEST = 5_000_000  # bytes of a reproducer
NEXT = "is the folder whole? If it was copied, copy it again"


@dataclass(frozen=True, slots=True)
class At:
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
    engines: Mapping[str, Any]  # versions and pins of both sides
    architecture: str  # of the machine: x86_64
    machine_class: str
    created_at: str  # UTC, ISO 8601


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
        save_record(_manifest(reproducer, files), part / MANIFEST, "reproducer")
    return folder


def load(folder: Path) -> Reproducer:
    """Return a reproducer, every file checked against the manifest's digest.

    Raises:
        RecordError: missing, damaged, of another version, or its parts do not fit each other.
    """
    data = decode(load_record(folder / MANIFEST, "reproducer"))
    contents = {name: _checked(folder / name, entry) for name, entry in data["files"].items()}
    try:
        return _from_manifest(data, contents)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(
            "the parts of a reproducer do not fit each other",
            place=folder / MANIFEST,
            found=f"{type(error).__name__}: {error}",
            next_step=NEXT,
        ) from error


def _checked(path: Path, entry: Mapping[str, Any]) -> bytes:
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise RecordError(
            "a file of the reproducer is not the one that was written",
            place=path,
            expected=f"SHA-256 {entry['sha256']}, {entry['bytes']} bytes",
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


def _manifest(reproducer: Reproducer, files: Mapping[str, bytes]) -> dict[str, Any]:
    op = reproducer.op
    plain = {f.name: getattr(op, f.name) for f in fields(op) if isinstance(getattr(op, f.name), str | int | float)}
    return {
        "schema": SCHEMA,
        "created_at": reproducer.created_at,
        "architecture": reproducer.architecture,
        "machine_class": reproducer.machine_class,
        "cell": structs.asdict(reproducer.cell),
        "at": asdict(reproducer.at),
        "step": reproducer.step,
        "limit": asdict(reproducer.limit),
        "fault": reproducer.fault,
        "asked_fault": reproducer.asked_fault,
        "reproduced": reproducer.reproduced,
        "engines": dict(reproducer.engines),
        "op": plain
        | {
            "sizes": asdict(op.sizes),
            "judged": list(op.judged),
            "inputs": [
                {"site": given.site, "rows": list(given.rows), "shape": list(given.values.shape)} for given in op.inputs
            ],
            "weight": _rows(op.weight),
            "other_weight": _rows(op.other_weight),
        }
        | {name: asdict(getattr(op, name)) for name in _SCALINGS if getattr(op, name) != UNSCALED},
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }


def _rows(rows: Rows | None) -> dict[str, Any] | None:
    if rows is None:
        return None
    return {"tensor": rows.tensor, "type": rows.type, "shape": list(rows.shape), "rows": list(rows.rows)}


def _from_manifest(data: Mapping[str, Any], contents: Mapping[str, bytes]) -> Reproducer:
    def values(name: str, shape: tuple[int, ...] = (-1,)) -> F32:
        return np.frombuffer(contents[name], "<f4").reshape(shape)

    def rows(key: str, name: str) -> Rows | None:
        found = data["op"][key]
        if found is None:
            return None
        return Rows(found["tensor"], found["type"], tuple(found["shape"]), tuple(found["rows"]), contents[name])

    op = dict(data["op"])
    inputs = [
        Input(one["site"], tuple(one["rows"]), values(f"input.{one['site']}.f32", tuple(one["shape"])))
        for one in op["inputs"]
    ]
    op |= {
        "sizes": Sizes(**op["sizes"]),
        "judged": tuple(op["judged"]),
        "inputs": tuple(inputs),
        "weight": rows("weight", "weight.blocks"),
        "other_weight": rows("other_weight", "weight.candidate.blocks"),
        "divisors": values("divisors.f32") if "divisors.f32" in contents else None,
    }
    op |= {name: RopeScaling(**op[name]) for name in _SCALINGS if name in op}
    reproducer = Reproducer(
        cell=CellId(**data["cell"]),
        at=At(**data["at"]),
        step=data["step"],
        limit=Limit(**data["limit"]),
        op=OneOp(**op),
        fault=data["fault"],
        asked_fault=data["asked_fault"],
        reproduced=data["reproduced"],
        reference=values("reference.f32"),
        candidate=values("candidate.f32"),
        engines=data["engines"],
        architecture=data["architecture"],
        machine_class=data["machine_class"],
        created_at=data["created_at"],
    )
    n = len(reproducer.reference)
    if not reproducer.op.row < reproducer.op.n_rows:
        raise ValueError(f"row {reproducer.op.row} of a pass of {reproducer.op.n_rows}")
    if len(reproducer.candidate) != n or not reproducer.op.judged or max(reproducer.op.judged) >= n:
        raise ValueError(f"{n} and {len(reproducer.candidate)} recorded numbers, judged {reproducer.op.judged[:3]}")
    return reproducer
