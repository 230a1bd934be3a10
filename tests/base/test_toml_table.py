"""Strict TOML: what is misspelt, missing or of the wrong type is refused with file, place, expected and found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity_lib.base.errors import FixtureError
from parity_lib.base.toml_table import Table, close_matches, fixture_path, read_toml


def table(**data: Any) -> Table:
    return Table(data, "f.toml")


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    entry = table(model="a", qaunt="b")
    entry.text("model")
    entry.text("quant", "Q8_0")
    with pytest.raises(FixtureError, match=r"qaunt.*did you mean quant"):
        entry.done()


@pytest.mark.parametrize(
    ("data", "read", "words"),
    [
        ({}, lambda t: t.text("x"), "is missing"),
        ({"x": " "}, lambda t: t.text("x"), "is empty"),
        ({"x": 3}, lambda t: t.text("x"), "wrong type"),
        ({"x": True}, lambda t: t.integer("x"), "wrong type"),
        ({"x": True}, lambda t: t.number("x"), "wrong type"),
        ({"x": "1"}, lambda t: t.number("x"), "wrong type"),
        ({"x": float("nan")}, lambda t: t.number("x"), "not finite"),
        ({"x": float("inf")}, lambda t: t.number("x"), "not finite"),
        ({"x": 0}, lambda t: t.integer("x", least=1), "too small"),
        ({"x": 1}, lambda t: t.boolean("x"), "wrong type"),
        ({"x": "ab"}, lambda t: t.hex("x", 4), "no digest"),
        ({"x": "ABCD"}, lambda t: t.hex("x", 4), "no digest"),
        ({"x": "ab\n1"}, lambda t: t.hex("x", 4), "no digest"),
        ({"x": "avx3"}, lambda t: t.one_of("x", ["avx2", "neon"]), "did you mean avx2"),
        ({"x": ["a", 1]}, lambda t: t.texts("x"), "something else"),
        ({"x": {"a": 1}}, lambda t: t.strings("x"), "something else"),
        ({"x": [1]}, lambda t: t.tables("x"), "something else"),
        ({"schema": "parity/pins/2"}, lambda t: t.schema("parity/pins/1"), "another version"),
    ],
)
def test_a_wrong_value_is_refused(data: dict[str, Any], read: Callable[[Table], object], words: str) -> None:
    with pytest.raises(FixtureError, match=words) as caught:
        read(table(**data))
    assert str(caught.value.place).startswith("f.toml")
    assert caught.value.exit_status == 2


def test_right_values_come_back() -> None:
    entry = table(t="a", i=3, n=2, f=2.5, b=False, h="ab", l=["x"], s={"k": "v"}, o={"p": 1}, a=[{"q": 2}])
    assert (entry.text("t"), entry.integer("i", least=3), entry.number("n"), entry.number("f")) == ("a", 3, 2.0, 2.5)
    assert (entry.boolean("b"), entry.hex("h", 2), entry.texts("l"), entry.strings("s")["k"]) == (
        False,
        "ab",
        ("x",),
        "v",
    )
    assert entry.table("o").integer("p") == 1
    assert entry.tables("a")[0].integer("q") == 2
    assert entry.left() == ()
    entry.done()


def test_defaults_are_taken_only_where_the_key_is_absent() -> None:
    entry = table(n=0, z=0)
    assert entry.integer("z") == 0
    assert (entry.text("t", ""), entry.number("n", 5.0), entry.texts("l", []), entry.tables("a", [])) == (
        "",
        0.0,
        (),
        [],
    )


def test_a_digest_stays_text(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('sha = "85e12345"\nnumber = 85e12345\n')
    entry, digest = read_toml(tmp_path / "f.toml")
    assert entry.hex("sha", 8) == "85e12345"
    assert len(digest) == 64
    with pytest.raises(FixtureError, match="wrong type"):
        entry.text("number")


@pytest.mark.parametrize("content", [b"x = ", b"x = 1\nx = 2", b'x = "\xff"'])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.toml").write_bytes(content)
    with pytest.raises(FixtureError, match=r"f\.toml: is not valid TOML"):
        read_toml(tmp_path / "f.toml")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match="No such file"):
        read_toml(tmp_path / "f.toml")
    with pytest.raises(FixtureError, match="no such fixture"):
        fixture_path("nothing.toml")


def test_close_matches_are_silent_where_nothing_is_close() -> None:
    assert close_matches("smolm2", ["smollm2", "qwen"]) == " (did you mean smollm2?)"
    assert close_matches("zzz", ["smollm2"]) == ""
