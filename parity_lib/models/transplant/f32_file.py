"""Copy an F32 GGUF file with other facts and other tensors: every other key stays as it is, byte for byte."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.header import ModelFile

F32 = npt.NDArray[np.float32]

_SCALAR_BYTES: Mapping[int, int] = {
    int(kind): size
    for kind, size in {
        gguf.GGUFValueType.UINT8: 1,
        gguf.GGUFValueType.INT8: 1,
        gguf.GGUFValueType.BOOL: 1,
        gguf.GGUFValueType.UINT16: 2,
        gguf.GGUFValueType.INT16: 2,
        gguf.GGUFValueType.UINT32: 4,
        gguf.GGUFValueType.INT32: 4,
        gguf.GGUFValueType.FLOAT32: 4,
        gguf.GGUFValueType.UINT64: 8,
        gguf.GGUFValueType.INT64: 8,
        gguf.GGUFValueType.FLOAT64: 8,
    }.items()
}
_STRING, _ARRAY = int(gguf.GGUFValueType.STRING), int(gguf.GGUFValueType.ARRAY)


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor of the file to be written: ``make`` is called when its turn comes, so that one is held at a time."""

    name: str
    shape: tuple[int, ...]  # numpy order
    make: Callable[[], F32]


def raw_pairs(path: Path) -> dict[str, bytes]:
    """Return all metadata of a file that ``ModelFile`` has opened: key -> its u32 type and value as they lie there.

    Raises ``ModelFileError`` for an array of arrays, which no key of the two architectures is.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (count,) = struct.unpack_from("<Q", data, 16)  # after magic, version and the number of tensors
    pairs: dict[str, bytes] = {}
    at = 24
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        key = data[at + 8 : at + 8 + length].decode("utf-8")
        start = at + 8 + length
        (kind,) = struct.unpack_from("<I", data, start)
        at = _end_of_value(data, start + 4, kind, f"{path}: {key}")
        pairs[key] = data[start:at]
    return pairs


def _end_of_value(data: mmap.mmap, at: int, kind: int, place: str) -> int:
    if kind in _SCALAR_BYTES:
        return at + _SCALAR_BYTES[kind]
    if kind == _STRING:
        return int(at + 8 + struct.unpack_from("<Q", data, at)[0])
    item, count = struct.unpack_from("<IQ", data, at)
    if kind != _ARRAY or item == _ARRAY:
        raise ModelFileError("metadata of this type cannot be copied", place=place, found=f"type {kind} of {item}")
    at += 12
    if item != _STRING:
        return int(at + count * _SCALAR_BYTES[item])
    for _ in range(count):
        at += 8 + struct.unpack_from("<Q", data, at)[0]
    return int(at)


def text_value(value: str) -> bytes:
    """Return a text as GGUF has it: type, length, UTF-8."""
    data = value.encode()
    return struct.pack("<IQ", _STRING, len(data)) + data


def u32_value(value: int) -> bytes:
    """Return a whole number as an unsigned 32-bit value, type first."""
    return struct.pack("<II", int(gguf.GGUFValueType.UINT32), value)


def f32_value(value: float) -> bytes:
    """Return a number rounded to float32, type first."""
    return struct.pack("<If", int(gguf.GGUFValueType.FLOAT32), value)


def write_f32(path: Path, pairs: Mapping[str, bytes], tensors: Sequence[NewTensor]) -> None:
    """Write an F32 GGUF file, version 3: the pairs in their order, then the tensors in theirs.

    Nothing in it depends on the machine or the time. The caller gives a path beside the final one.

    Raises:
        ModelFileError: a tensor came out in another shape than it was announced with.
    """
    alignment = gguf.GGUF_DEFAULT_ALIGNMENT
    if "general.alignment" in pairs:
        (alignment,) = struct.unpack_from("<I", pairs["general.alignment"], 4)
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs)))
        for key, value in pairs.items():
            name = key.encode()
            file.write(struct.pack("<Q", len(name)) + name + value)
        offset = 0
        for tensor in tensors:
            name = tensor.name.encode()
            dims = tuple(reversed(tensor.shape))
            file.write(struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", int(gguf.GGMLQuantizationType.F32), offset))
            offset += -(-4 * int(np.prod(tensor.shape)) // alignment) * alignment
        for tensor in tensors:
            file.write(b"\0" * (-file.tell() % alignment))
            values = tensor.make()
            if values.shape != tensor.shape:
                raise ModelFileError(
                    "a tensor has another shape than announced",
                    place=f"{path}: {tensor.name}",
                    expected=tensor.shape,
                    found=values.shape,
                )
            file.write(np.ascontiguousarray(values, "<f4").data.cast("B"))
        file.write(b"\0" * (-file.tell() % alignment))


def require_f32(file: ModelFile) -> None:
    """Raise ``ModelFileError`` unless every tensor is F32: a transplant works on numbers, not on blocks."""
    other = sorted({tensor.type for tensor in file.tensors.values()} - {"F32"})
    if other:
        raise ModelFileError(
            "a transplant starts from an F32 file",
            place=file.path,
            expected="F32 tensors only",
            found=", ".join(other),
            next_step="start from the file's F32 twin",
        )
