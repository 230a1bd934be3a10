"""Read the fields of a GGUF file that is not trusted: every length is checked before it is used."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parity_lib.base.errors import ModelFileError

# Of the format, ggml/include/gguf.h: the shortest metadata entry and tensor entry. Arrays within arrays are followed as
# deep as the candidate follows them.
SMALLEST_KEY, SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
_MAX_DEPTH = 8
SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 10, 11, 12), "BbHhIifQqd", strict=True))  # type number -> struct's letter
BOOL, STRING, ARRAY = 7, 8, 9
TYPE_NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
F32, F64 = 6, 12
AGAIN = "fetch the file again"


@dataclass(frozen=True, slots=True)
class Value:
    """Byte offsets of a metadata value: its entry spans ``entry`` to ``end``, its content begins at ``start``."""

    type: int
    entry: int
    start: int
    end: int
    item: int = -1  # type of an array's elements
    count: int = 0  # of an array's elements

    @property
    def type_name(self) -> str:
        """Return the name of the type, as a message shows it."""
        return TYPE_NAMES[self.type]


class Cursor:
    """Reads little-endian fields of bytes that are not trusted: every length is checked before it is used."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path, self.data, self.at = path, data, 0

    @property
    def left(self) -> int:
        """Return the number of bytes that were not read yet."""
        return len(self.data) - self.at

    def refuse(self, what: str, expected: object, found: object, next_step: str = AGAIN) -> ModelFileError:
        """Return the error of this file with these words; the caller raises it."""
        return ModelFileError(what, place=self.path, expected=expected, found=found, next_step=next_step)

    def take(self, n: int, what: str) -> int:
        """Return where the next ``n`` bytes begin, and go behind them."""
        if n > self.left:
            raise self.refuse(
                f"byte {self.at}: the file ends inside {what}",
                f"{n} more bytes",
                self.left,
                f"{AGAIN} and compare its SHA-256",
            )
        self.at += n
        return self.at - n

    def scalar(self, letter: str, what: str) -> Any:  # noqa: ANN401 - an int or a float
        """Read one number, ``letter`` as ``struct`` names it."""
        return struct.unpack_from(f"<{letter}", self.data, self.take(struct.calcsize(f"<{letter}"), what))[0]

    def string(self, what: str) -> bytes:
        """Read a u64 length and as many bytes."""
        offset = self.at
        length = self.scalar("Q", what)
        if length > self.left:
            expected = f"at most {self.left} bytes, all that the file has left"
            raise self.refuse(f"byte {offset}: absurd length of {what}", expected, length)
        start = self.take(length, what)
        return bytes(self.data[start : start + length])

    def name(self, what: str) -> str:
        """Read a string that has to be UTF-8."""
        offset = self.at
        raw = self.string(what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.refuse(f"byte {offset}: {what} is not UTF-8", "text", f'"{escaped(raw)}"') from None

    def value(self, key: str, entry: int) -> Value:
        """Read over a value and return its byte offsets."""
        what, offset = "a metadata value", self.at
        kind = self.scalar("I", what)
        start = self.at
        if kind in SCALARS:
            self.scalar(SCALARS[kind], what)
        elif kind == BOOL:
            self._bool(key)
        elif kind == STRING:
            self.string(what)
        elif kind == ARRAY:
            item, count = self._array(key, 1)
            return Value(kind, entry, start + 12, self.at, item, count)
        else:
            raise self._unknown(key, offset, kind)
        return Value(kind, entry, start, self.at)

    def _bool(self, key: str) -> None:
        offset = self.at
        found = self.scalar("B", "a metadata value")
        if found > 1:
            raise self.refuse(f"byte {offset}: bad bool in {quoted(key)}", "0 or 1", found)

    def _array(self, key: str, depth: int) -> tuple[int, int]:
        offset = self.at
        if depth > _MAX_DEPTH:
            raise self.refuse(
                f"byte {offset}: arrays nested too deep in {quoted(key)}",
                f"at most {_MAX_DEPTH} levels",
                "more",
                "remove the key with gguf-py's gguf-new-metadata",
            )
        item, count = self.scalar("I", "an array"), self.scalar("Q", "an array")
        if item in SCALARS:
            size = struct.calcsize(f"<{SCALARS[item]}")
            self._check_count(key, count, size)
            self.take(count * size, "an array")
        elif item == BOOL:
            self._check_count(key, count, 1)
            for _ in range(count):
                self._bool(key)
        elif item == STRING:
            self._check_count(key, count, 8)
            self._strings(count)
        elif item == ARRAY:
            self._check_count(key, count, 12)
            for _ in range(count):
                self._array(key, depth + 1)
        else:
            raise self._unknown(key, offset, item)
        return item, count

    def _strings(self, count: int) -> None:
        """Read over ``n`` strings; a vocabulary has 150,000, so the usual case is a short loop."""
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end or at + 8 + unpack(data, at)[0] > end:
                break
            at += 8 + unpack(data, at)[0]
            count -= 1
        self.at = at
        if count:
            self.string("an array")  # raises

    def _check_count(self, key: str, count: int, size: int) -> None:
        room = self.left // size
        if count > room:
            expected = f"at most {room} elements, all that the file has room for"
            raise self.refuse(f"byte {self.at - 8}: absurd length of the array {quoted(key)}", expected, count)

    def _unknown(self, key: str, offset: int, found: int) -> ModelFileError:
        return self.refuse(f"byte {offset}: unknown value type of {quoted(key)}", "0 to 12", found)


_ESCAPES = {9: "\\t", 10: "\\n", 13: "\\r", 34: '\\"', 39: "\\'", 92: "\\\\"}


def escaped(raw: bytes) -> str:
    """Return bytes as printable ASCII."""
    return "".join(_ESCAPES.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in raw)


def quoted(text: str) -> str:
    """Return a name in double quotes, as a message shows it: what cannot be printed is escaped."""
    special = {"\0": "\\0", "\t": "\\t", "\n": "\\n", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
    shown = (special.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text)
    return f'"{"".join(shown)}"'
