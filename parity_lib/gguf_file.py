"""Open a GGUF file: metadata by key, tensors by name, memory-mapped and checked before they are trusted."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.errors import ModelFileError


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
    """``GGUFReader`` that keeps an array as one span of bytes.

    The parent makes three numpy objects for each string: 1.7 s for a vocabulary of 49,152 tokens, 9 s for Llama 3's.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
        if raw_type != gguf.GGUFValueType.ARRAY:
            parts: tuple[int, list[Any], list[int], list[Any]] = super()._get_field_parts(orig_offs, raw_type)
            return parts
        item, count = struct.unpack_from("<IQ", self.data, orig_offs)
        kind = gguf.GGUFValueType(item)
        start = orig_offs + 12
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
        return field.contents()

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
                found=f"magic {magic!r} and version {version}" + (" (big-endian?)" if version & 0xFFFF == 0 else ""),
                next_step="check that the file was copied completely; convert a big-endian one with gguf-py",
            )
        return _Header(path)
    except OSError as error:
        raise ModelFileError("the model file cannot be opened", place=path, found=error.strerror or error) from error
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, struct.error) as error:
        raise ModelFileError(
            "the GGUF file is damaged or cut off",
            place=path,
            expected="a header and tensors that lie inside of the file",
            found=f"{type(error).__name__}: {error}",
            next_step="compare its size and SHA-256 with the source's, and copy it again",
        ) from error
