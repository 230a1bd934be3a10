"""Read a frozen input under ``fixtures/``: strict TOML, where an unknown key is an error."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from parity_lib.base.errors import FixtureError
from parity_lib.base.surroundings import kind_of

T = TypeVar("T")

_ROOT = Path(__file__).resolve().parents[2] / "fixtures"
_HEX = re.compile(r"[0-9a-f]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def fixture_path(name: str) -> Path:
    """Return the path of a file that this repository ships under ``fixtures/``.

    Raises:
        FixtureError: the file is not there.
    """
    path = _ROOT / name
    if not path.is_file():
        raise FixtureError("no such fixture", place=path, next_step="run from a checkout of the whole repository")
    return path


def read_toml(path: Path) -> tuple[Table, str]:
    """Return a TOML file as a table, and the SHA-256 of its bytes (64 hex digits).

    Raises:
        FixtureError: the file cannot be read, is not UTF-8 or is not TOML.
    """
    if kind := kind_of(path):
        raise FixtureError(
            "cannot be read",
            place=path,
            expected="a TOML file",
            found=kind,
            next_step="give the path of a file",
        )
    try:
        raw = path.read_bytes()
        data = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise FixtureError(
            "cannot be read",
            place=path,
            expected="a TOML file",
            found=error.strerror or error,
            next_step="correct the path or its permissions",
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FixtureError("is not valid TOML in UTF-8", place=path, expected="TOML", found=error) from error
    return Table(data, str(path)), hashlib.sha256(raw).hexdigest()


def close_matches(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ..?)`` for names that resemble ``word``, or an empty string.

    >>> close_matches("smolm2-135m", ["smollm2-135m", "synthetic-llama"])
    ' (did you mean smollm2-135m?)'
    """
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class Table:
    """A strict reader of one TOML table: take each key by type, then ``done`` refuses every key that was not taken.

    Args:
        data: the parsed table.
        place: file and position of the table, for messages.
    """

    def __init__(self, data: Mapping[str, Any], place: str) -> None:
        self._left = dict(data)
        self._asked: set[str] = set()
        self.place = place

    def _take(self, key: str, kind: type[T], words: str, default: T | None) -> T:
        """Return a value of the right type, or the default; no default means that the key is required."""
        self._asked.add(key)
        if key not in self._left:
            if default is None:
                raise FixtureError(f"the key '{key}' is missing", place=self.place, expected=words)
            return default
        value = self._left.pop(key)
        # bool is an int in Python, but `bytes = true` in a pin is a mistake.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FixtureError(f"'{key}' has the wrong type", place=self.place, expected=words, found=repr(value))
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string that is not empty."""
        value = self._take(key, str, "a text", default)
        if not value.strip() and value is not default:
            raise FixtureError(f"'{key}' is empty", place=self.place, expected="a text")
        return value

    def word(self, key: str, default: str | None = None) -> str:
        """Return a name that becomes part of file names."""
        value = self.text(key, default)
        if not _WORD.fullmatch(value):
            raise FixtureError(f"'{key}' is no plain word", place=self.place, expected=_WORD.pattern, found=value)
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return a whole number, at least ``least``."""
        value = self._take(key, int, "a whole number", default)
        if value is not default and value < least:
            raise FixtureError(f"'{key}' is too small", place=self.place, expected=f">= {least}", found=value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number; a whole number counts as one."""
        if type(self._left.get(key)) is int:
            self._left[key] = float(self._left[key])
        value = self._take(key, float, "a number", default)
        if value is not default and not abs(value) < float("inf"):
            raise FixtureError(f"'{key}' is not finite", place=self.place, expected="a finite number", found=value)
        return value

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        return self._take(key, bool, "true or false", default)

    def one_of(self, key: str, allowed: Iterable[str], default: str | None = None) -> str:
        """Return a text that is one of the allowed words."""
        words = [str(word) for word in allowed]
        value = self.text(key, default)
        if value not in words:
            raise FixtureError(
                f"'{key}' has an unknown value",
                place=self.place,
                expected=f"one of {', '.join(words)}",
                found=f"{value!r}{close_matches(value, words)}",
            )
        return value

    def hex(self, key: str, digits: int, default: str | None = None) -> str:
        """Return a digest of exactly ``digits`` lower-case hex digits."""
        value = self.text(key, default)
        if value is not default:
            check_hex(value, digits, f"{self.place} '{key}'")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._take(key, list, "a list of texts", default)
        if value is not default and not all(isinstance(item, str) and item for item in value):
            raise FixtureError(f"'{key}' holds something else", place=self.place, expected="texts", found=value)
        return tuple(value)

    def strings(self, key: str, default: dict[str, str] | None = None) -> Mapping[str, str]:
        """Return a table whose values are all strings."""
        value = self._take(key, dict, "a table of texts", default)
        if not all(isinstance(item, str) and item for item in value.values()):
            raise FixtureError(f"'{key}' holds something else", place=self.place, expected="texts", found=value)
        return MappingProxyType(dict(value))

    def table(self, key: str, default: dict[str, Any] | None = None) -> Table:
        """Return a table inside this one."""
        return Table(self._take(key, dict, "a table", default), f"{self.place} [{key}]")

    def tables(self, key: str, default: list[dict[str, Any]] | None = None) -> list[Table]:
        """Return an array of tables, in the file's order."""
        value = self._take(key, list, "an array of tables", default)
        if not all(isinstance(item, dict) for item in value):
            raise FixtureError(f"'{key}' holds something else", place=self.place, expected="tables", found=value)
        return [Table(item, f"{self.place} [[{key}]] number {i + 1}") for i, item in enumerate(value)]

    def left(self) -> tuple[str, ...]:
        """Return the keys that were not taken yet."""
        return tuple(self._left)

    def schema(self, expected: str) -> None:
        """Take ``schema`` and refuse another version than the expected one."""
        found = self.text("schema")
        if found != expected:
            raise FixtureError("is of another version", place=self.place, expected=expected, found=found)

    def done(self) -> None:
        """Refuse every key that was not taken: a misspelt key must not silently become a default."""
        for key in self._left:
            raise FixtureError(
                f"unknown key '{key}'{close_matches(key, self._asked)}",
                place=self.place,
                expected=f"one of {', '.join(sorted(self._asked))}",
            )


def check_hex(value: str, digits: int, place: str) -> None:
    """Refuse anything but exactly ``digits`` lower-case hex digits.

    Raises:
        FixtureError: another length, or another character.
    """
    if len(value) != digits or not _HEX.fullmatch(value):
        raise FixtureError("is no digest", place=place, expected=f"{digits} lower-case hex digits", found=repr(value))


def toml_value(value: str | float) -> str:
    """Return a text or a number as TOML writes it.

    >>> toml_value("a text"), toml_value(1)
    ('"a text"', '1.0')
    """
    # JSON's escapes are TOML's, but for DEL, which TOML refuses.
    text = json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return text if isinstance(value, str) else repr(float(value))
