"""Open a GGUF file: metadata by key, tensors by name, memory-mapped and checked before they are trusted.

The candidate reads the same files with code of its own (``burn_gguf/src/gguf``). Both check the same things in the same
order and refuse in the same words, so that one file has one answer.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import ModelFileError
from parity_lib.base.surroundings import kind_of
from parity_lib.model_file.cursor import (
    ARRAY,
    BOOL,
    F32,
    F64,
    SCALARS,
    SMALLEST_KEY,
    SMALLEST_TENSOR,
    STRING,
    TYPE_NAMES,
    Cursor,
    Value,
    escaped,
    quoted,
)
from parity_lib.model_file.tensor_list import Entry, check_layout, tensor_list

ALIGNMENT_KEY = "general.alignment"


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor as it lies in the file. ``shape`` is in numpy's order (ggml's ``ne`` reversed)."""

    name: str
    type: str  # ggml's name: "Q4_K"
    shape: tuple[int, ...]
    n_bytes: int
    offset: int  # from the start of the file
    rows: npt.NDArray[Any]  # memory-mapped; F32 and F16 as numbers, all others as bytes; one entry a row

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Return rows ``start:stop`` of the first axis as float32, exactly as ``gguf.dequantize`` makes them."""
        raw = np.ascontiguousarray(self.rows[start:stop])
        return np.asarray(gguf.dequantize(raw, gguf.GGMLQuantizationType[self.type]), dtype=np.float32)


class ModelFile:
    """An open GGUF file, memory-mapped: metadata by key, tensors by name.

    Raises ``ModelFileError`` if the file cannot be read as GGUF version 2 or 3, little-endian.

    >>> from parity_lib.models.synthetic import build
    >>> file = ModelFile(build("llama", "Q8_0", folder / "synthetic.gguf"))
    >>> file.text("general.architecture"), file.tensors["output_norm.weight"].type
    ('llama', 'F32')
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._bytes = _map(self.path)
        self._data = self._bytes.data
        cursor = Cursor(self.path, self._data)
        n_tensors, n_keys = _header(cursor)
        self._values = _metadata(cursor, n_keys)
        alignment = self._alignment(cursor)
        entries = tensor_list(cursor, n_tensors)
        start = -(-cursor.at // alignment) * alignment
        check_layout(cursor, entries, alignment, start)
        self.tensors: dict[str, Tensor] = {entry.name: self._tensor(entry, start) for entry in entries}

    def _alignment(self, cursor: Cursor) -> int:
        found = self._values.get(ALIGNMENT_KEY)
        if found is None:
            return int(gguf.GGUF_DEFAULT_ALIGNMENT)
        if found.type_name != "u32":
            raise cursor.refuse(
                'wrong type of "general.alignment"',
                "u32",
                found.type_name,
                "write the key again with gguf-py's gguf-set-metadata",
            )
        alignment = int(struct.unpack_from("<I", self._data, found.start)[0])
        if alignment.bit_count() != 1:
            raise cursor.refuse(
                'bad "general.alignment"',
                "a power of two",
                alignment,
                "write the file again with a current converter",
            )
        return alignment

    def _tensor(self, entry: Entry, data_start: int) -> Tensor:
        shape, start = tuple(reversed(entry.dims)), data_start + entry.offset
        raw = self._bytes[start : start + entry.n_bytes]
        if entry.type in ("F32", "F16"):
            rows = raw.view("<f4" if entry.type == "F32" else "<f2").reshape(shape)
        else:
            rows = raw.reshape(*shape[:-1], -1) if entry.n_bytes else raw.reshape(*shape[:-1], 0)
        return Tensor(entry.name, entry.type, shape, entry.n_bytes, start, rows)

    def value(self, key: str) -> Any:  # noqa: ANN401  # a file may hold any of twelve types
        """Return the metadata value of ``key``: a number, truth value, text or list of numbers; None if absent.

        Raises ``ModelFileError`` for an array of strings (ask ``strings`` for that), and for text that is not UTF-8.
        """
        found = self._values.get(key)
        if found is None:
            return None
        if found.type == STRING:
            return self._text(key, found)
        if found.type != ARRAY:
            return self._numbers(found, found.type)[0]
        if found.item in (STRING, ARRAY):
            raise ModelFileError(f"a key holds an array of {TYPE_NAMES[found.item]}s", place=f"{self.path}: {key}")
        return self._numbers(found, found.item)

    def _text(self, key: str, found: Value) -> str:
        raw = bytes(self._data[found.start + 8 : found.end])
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise ModelFileError(
                "a text of the metadata is not UTF-8",
                place=f"{self.path}: {key}",
                expected="text",
                found=raw[:32],
                next_step="compare the file's SHA-256 with the source's, and copy it again",
            ) from error

    def _numbers(self, found: Value, kind: int) -> list[Any]:
        letter = "?" if kind == BOOL else SCALARS[kind]
        numbers: list[Any] = np.frombuffer(self._data[found.start : found.end], f"<{letter}").tolist()
        return numbers

    def integer(self, key: str) -> int | None:
        """Return the value of ``key`` if it is an integer of any width that is not negative, else None."""
        found = self._values.get(key)
        if found is None or SCALARS.get(found.type, "f") in "fd":
            return None
        number = int(self._numbers(found, found.type)[0])
        return number if number >= 0 else None

    def float32(self, key: str) -> float | None:
        """Return the value of ``key`` if it is an f32, else None: no other type is converted."""
        found = self._values.get(key)
        return None if found is None or found.type != F32 else float(self._numbers(found, F32)[0])

    def boolean(self, key: str) -> bool | None:
        """Return the value of ``key`` if it is a truth value, else None."""
        found = self._values.get(key)
        return None if found is None or found.type != BOOL else bool(self._data[found.start])

    def text(self, key: str) -> str | None:
        """Return the value of ``key`` if it is a text of valid UTF-8, else None."""
        found = self._values.get(key)
        try:
            return None if found is None or found.type != STRING else self._text(key, found)
        except ModelFileError:
            return None

    def integers(self, key: str) -> list[int] | None:
        """Return the elements of ``key`` if it is an array of integers, else None."""
        found = self._values.get(key)
        if found is None or found.type != ARRAY or SCALARS.get(found.item, "f") in "fd":
            return None
        return self._numbers(found, found.item)

    def is_array(self, key: str) -> bool:
        """Return whether ``key`` is there and an array."""
        return key in self._values and self._values[key].type == ARRAY

    def metadata_keys(self) -> list[str]:
        """Return every metadata key, in the order of the file."""
        return list(self._values)

    def type_name(self, key: str) -> str:
        """Return GGUF's name of the type of a key that is there, in lower case."""
        return self._values[key].type_name

    def shown(self, key: str) -> str:
        """Return the value of a key that is there as a message shows it."""
        found = self._values[key]
        if found.type == STRING:
            return f'"{escaped(bytes(self._data[found.start + 8 : found.end]))}"'
        if found.type == ARRAY:
            numbers = self.integers(key)
            return f"an array of {found.count}" if numbers is None or len(numbers) > 64 else str(numbers)
        number = self._numbers(found, found.type)[0]
        if found.type == BOOL:
            return str(number).lower()
        if found.type in (F32, F64):
            return _decimal(np.float32(number)) if found.type == F32 else f"{_decimal(np.float64(number))} (f64)"
        return str(number) if number >= 0 else f"a negative {found.type_name}"

    def strings(self, key: str) -> Iterator[bytes]:
        """Yield the strings of an array as bytes, in order; empty if the key is absent."""
        found = self._values.get(key)
        if found is None:
            return
        at = found.start
        while at < found.end:
            (length,) = struct.unpack_from("<Q", self._data, at)
            yield bytes(self._data[at + 8 : at + 8 + length])
            at += 8 + length

    def count(self, key: str) -> int | None:
        """Return the number of elements of an array; None if the key is absent or not an array."""
        return self._values[key].count if self.is_array(key) else None

    def write_aligned(self, path: Path) -> None:
        """Write the same metadata and tensors without ``general.alignment``, the data at multiples of 32."""
        alignment = int(gguf.GGUF_DEFAULT_ALIGNMENT)
        kept = [value for key, value in self._values.items() if key != ALIGNMENT_KEY]
        head = bytearray(self._data[:8]) + struct.pack("<QQ", len(self.tensors), len(kept))
        for value in kept:
            head += self._data[value.entry : value.end]
        offset = 0
        for tensor in self.tensors.values():
            name, dims = tensor.name.encode(), tensor.shape[::-1]
            head += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
            head += struct.pack("<IQ", int(gguf.GGMLQuantizationType[tensor.type]), offset)
            offset += -(-tensor.n_bytes // alignment) * alignment
        with Path(path).open("wb") as file:
            file.write(head + bytes(-len(head) % alignment))
            for tensor in self.tensors.values():
                file.write(self._data[tensor.offset : tensor.offset + tensor.n_bytes])
                file.write(bytes(-tensor.n_bytes % alignment))

    def digest(self, prefix: str) -> str:
        """Return the SHA-256 over all metadata whose key starts with ``prefix``.

        Canonical form: each pair as GGUF version 3 writes it (u64 length and bytes of the key, u32 type, value,
        all little-endian), pairs in the order of their keys' bytes, nothing between them. So the digest depends
        neither on the order in a file nor on what else the file says.
        """
        digest = hashlib.sha256()
        for key in sorted((k for k in self._values if k.startswith(prefix)), key=lambda k: k.encode()):
            digest.update(self._data[self._values[key].entry : self._values[key].end])
        return digest.hexdigest()


def require_file(path: Path) -> None:
    """Refuse a pipe, a folder and whatever else is no regular file; opening a pipe without a writer blocks.

    Raises:
        ModelFileError: it is something else. A path where nothing is passes.
    """
    if kind := kind_of(path):
        raise ModelFileError(
            "not a regular file",
            place=path,
            expected="a GGUF file",
            found=kind,
            next_step="give the path of the file itself",
        )


def not_opened(path: Path, error: OSError) -> ModelFileError:
    """Return the refusal of a file that the system does not open, in the words of both readers."""
    return ModelFileError(
        "the file cannot be opened",
        place=path,
        expected="a readable GGUF file",
        found=f"{error.strerror} (os error {error.errno})",
        next_step="check the path and its permissions",
    )


def _map(path: Path) -> npt.NDArray[np.uint8]:
    require_file(path)
    try:
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            return np.zeros(0, np.uint8) if empty else np.memmap(file, np.uint8, "r")
    except OSError as error:
        raise not_opened(path, error) from error


def _header(cursor: Cursor) -> tuple[int, int]:
    """Return the number of tensors and of metadata keys."""
    what = "the header"
    magic = struct.pack("<I", cursor.scalar("I", what))
    if magic != b"GGUF":
        raise cursor.refuse("byte 0: wrong magic", '"GGUF"', f'"{escaped(magic)}"', "give a GGUF file")
    version = cursor.scalar("I", what)
    if version and version & 0xFFFF == 0:
        raise cursor.refuse(
            "byte 4: the file is big-endian",
            "a little-endian version field",
            f"{version:#010x}",
            "convert it with gguf-py's gguf-convert-endian",
        )
    if version not in (2, 3):
        raise cursor.refuse(
            "byte 4: unsupported GGUF version", "2 or 3", version, "convert the model again with a current converter"
        )
    offset = cursor.at
    n_tensors, n_keys = cursor.scalar("Q", what), cursor.scalar("Q", what)
    for at, found, smallest, of in (
        (offset, n_tensors, SMALLEST_TENSOR, "tensors"),
        (offset + 8, n_keys, SMALLEST_KEY, "metadata keys"),
    ):
        room = cursor.left // smallest
        if found > room:
            expected = f"at most {room}, all that the file has room for"
            raise cursor.refuse(f"byte {at}: absurd number of {of}", expected, found)
    return n_tensors, n_keys


def _metadata(cursor: Cursor, n: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(n):
        offset = cursor.at
        key = cursor.name("a metadata key")
        if not key:
            again = "write the file again with a current converter"
            raise cursor.refuse(f"byte {offset}: empty metadata key", "a name", '""', again)
        if key in values:
            raise cursor.refuse(
                f"byte {offset}: duplicate metadata key",
                "each key once",
                f"{quoted(key)} again",
                "remove one of the two with gguf-py's gguf-new-metadata",
            )
        values[key] = cursor.value(key, offset)
    return values


def _decimal(number: np.floating[Any]) -> str:
    """Return the shortest decimal number that reads back as the same, without an exponent."""
    if not np.isfinite(number):
        return "NaN" if np.isnan(number) else "inf" if number > 0 else "-inf"
    return np.format_float_positional(number, unique=True, trim="-")
