"""Open a GGUF file: metadata by key, tensors by name, memory-mapped and checked before they are trusted."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.errors import ModelFileError

# Of the format, ggml/include/gguf.h: where the two counts stand, the shortest metadata entry and tensor entry, and
# how many dimensions and elements ggml counts.
_COUNTS_AT, _SMALLEST_KEY, _SMALLEST_TENSOR = 8, 8 + 4 + 1, 8 + 4 + 4 + 8
_MAX_DIMS, _MAX_COUNT = 4, (1 << 63) - 1


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


class _Header(gguf.GGUFReader):  # type: ignore[misc]  # gguf publishes no types
    """``GGUFReader`` that keeps an array as one span of bytes, and refuses what does not lie in the file.

    The parent makes three numpy objects for each string: 1.7 s for a vocabulary of 49,152 tokens, 9 s for Llama 3's.
    It also reads on where a slice came back short, and lets tensors overlap. Every refusal here is a ``ValueError``
    that names the byte.
    """

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: str | None = None) -> Any:  # noqa: ANN401  # as the parent
        wanted, left = int(count) * np.dtype(dtype).itemsize, len(self.data) - int(offset)
        if not 0 <= wanted <= left:
            raise ValueError(f"byte {offset}: {wanted} bytes asked for, {max(left, 0)} left in the file")
        return super()._get(int(offset), dtype, int(count), override_order)

    def _build_fields(self, offs: int, count: int) -> int:
        room = (len(self.data) - offs) // _SMALLEST_KEY
        if count > room:
            raise ValueError(f"byte {_COUNTS_AT + 8}: {count} metadata keys, room for {room}")
        return int(super()._build_fields(offs, count))

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[Any]]:
        room = (len(self.data) - offs) // _SMALLEST_TENSOR
        if count > room:
            raise ValueError(f"byte {_COUNTS_AT}: {count} tensors, room for {room}")
        info: tuple[int, list[Any]] = super()._build_tensor_info(offs, count)
        return info

    def _get_tensor_info_field(self, orig_offs: int) -> Any:  # noqa: ANN401  # as the parent
        length = int(self._get(orig_offs, np.uint64)[0])
        at = orig_offs + 8 + length
        n_dims = int(self._get(at, np.uint32)[0])
        if n_dims > _MAX_DIMS:
            raise ValueError(f"byte {at}: a tensor of {n_dims} dimensions, at most {_MAX_DIMS}")
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
        spans = sorted(_span(field, start_offs, int(self.alignment), len(self.data)) for field in fields)
        for (_, end, before), (start, _, name) in itertools.pairwise(spans):
            if start < end:
                raise ValueError(f"byte {start}: tensor {name!r} begins before {before!r} ends, at byte {end}")
        super()._build_tensors(start_offs, fields)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return parts
        item, count = struct.unpack_from("<IQ", self.data, orig_offs)
        kind = gguf.GGUFValueType(item)
        start = orig_offs + 12
        if count > len(self.data):  # an element has at least a byte; without this, a loop over 2^62 strings would start
            raise ValueError(f"byte {orig_offs + 4}: an array of {count} elements, {len(self.data) - start} bytes left")
        dtype = self.gguf_scalar_to_np.get(kind)
        if dtype is not None:
            end = start + count * np.dtype(dtype).itemsize
        elif kind == gguf.GGUFValueType.STRING:
            end = start
            for _ in range(count):
                end += 8 + struct.unpack_from("<Q", self.data, end)[0]
        else:
            raise ValueError(f"an array of {kind.name} is not supported")
        if end > len(self.data):
            raise ValueError(f"an array ends at byte {end}, behind the end of the file")
        span = self.data[start:end] if dtype is None else self.data[start:end].view(dtype)
        return end - orig_offs, [self.data[orig_offs:start], span], [1], [gguf.GGUFValueType.ARRAY, kind]


def _span(field: Any, data_start: int, alignment: int, n_file: int) -> tuple[int, int, str]:  # noqa: ANN401
    """Return first byte, end and name of a tensor, in Python's own integers: numpy's would wrap around."""
    _, _, _, dims, raw_type, offset = field.parts
    kind, n_elements = int(raw_type[0]), math.prod(map(int, dims))
    if kind not in gguf.GGMLQuantizationType.__members__.values():
        raise ValueError(f"tensor {field.name!r} has the type number {kind}, which ggml does not know")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    start = data_start + int(offset[0])
    end = start + n_elements // block * size
    if int(offset[0]) % alignment:
        raise ValueError(f"byte {start}: tensor {field.name!r} is not aligned to {alignment} bytes")
    if n_elements > _MAX_COUNT or end > n_file:
        raise ValueError(f"tensor {field.name!r} of {dims.tolist()} ends at byte {end}, behind the end at {n_file}")
    return start, end, field.name


class ModelFile:
    """An open GGUF file, memory-mapped: metadata by key, tensors by name.

    Raises ``ModelFileError`` if the file cannot be read as GGUF version 2 or 3, little-endian.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._header = _open(self.path)
        self.tensors: dict[str, Tensor] = {
            t.name: Tensor(
                t.name,
                t.tensor_type.name,
                tuple(int(n) for n in reversed(t.shape.tolist())),
                int(t.n_bytes),
                int(t.data_offset),
                t.data,
            )
            for t in self._header.tensors
        }

    def value(self, key: str) -> Any:  # noqa: ANN401  # a file may hold any of twelve types
        """Return the metadata value of ``key``: a number, truth value, text or list of numbers; None if absent.

        Raises ``ModelFileError`` for an array of strings: ask ``strings`` for that.
        """
        field = self._header.fields.get(key)
        if field is None:
            return None
        if list(field.types) == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]:
            raise ModelFileError("a key holds an array of strings", place=f"{self.path}: {key}")
        try:
            return field.contents()
        except UnicodeDecodeError as error:
            raise ModelFileError(
                "a text of the metadata is not UTF-8",
                place=f"{self.path}: {key}",
                expected="text",
                found=bytes(error.object[:32]),
                next_step="compare the file's SHA-256 with the source's, and copy it again",
            ) from error

    def strings(self, key: str) -> Iterator[bytes]:
        """Yield the strings of an array, undecoded, in order; nothing if the key is absent."""
        field = self._header.fields.get(key)
        if field is None:
            return
        span = bytes(field.parts[field.data[0]])
        at = 0
        while at < len(span):
            (length,) = struct.unpack_from("<Q", span, at)
            yield span[at + 8 : at + 8 + length]
            at += 8 + length

    def count(self, key: str) -> int | None:
        """Return the number of elements of an array, or None if the key is absent or no array."""
        field = self._header.fields.get(key)
        if field is None or field.types[0] != gguf.GGUFValueType.ARRAY:
            return None
        return int(struct.unpack_from("<Q", field.parts[field.data[0] - 1], 4)[0])

    def digest(self, prefix: str) -> str:
        """Return the SHA-256 over all metadata whose key starts with ``prefix``.

        Canonical form: each pair as GGUF version 3 writes it (u64 length and bytes of the key, u32 type, value,
        all little-endian), pairs in the order of their keys' bytes, nothing between them. So the digest depends
        neither on the order in a file nor on what else the file says.
        """
        digest = hashlib.sha256()
        for key in sorted((k for k in self._header.fields if k.startswith(prefix)), key=lambda k: k.encode()):
            field = self._header.fields[key]
            size = sum(int(part.nbytes) for part in field.parts)
            digest.update(self._header.data[field.offset : field.offset + size].tobytes())
        return digest.hexdigest()


def _open(path: Path) -> _Header:
    try:
        with path.open("rb") as file:
            magic, version = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if magic != b"GGUF" or version not in (2, 3):
            raise ModelFileError(
                "not a GGUF file that can be read here",
                place=path,
                expected="magic 'GGUF' and version 2 or 3, little-endian",
                found=f"magic {magic!r} and version {version}"
                + (" (big-endian?)" if version and version & 0xFFFF == 0 else ""),
                next_step="check that the file was copied completely; convert a big-endian one with gguf-py",
            )
        return _Header(path)
    except OSError as error:
        raise ModelFileError(
            "the model file cannot be opened",
            place=path,
            expected="a GGUF file that can be read",
            found=error.strerror or error,
            next_step="correct the path or its permissions",
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise ModelFileError(
            "the GGUF file is damaged or cut off",
            place=path,
            expected="a header and tensors that lie inside of the file",
            found=error if type(error) is ValueError else f"{type(error).__name__}: {error}",
            next_step="compare its size and SHA-256 with the source's, and copy it again",
        ) from error
