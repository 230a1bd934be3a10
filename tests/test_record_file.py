"""Files that are whole or absent, schemas that are schemas, lines that survive a crash and each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path

import jsonschema
import pytest

from parity_lib.errors import RecordError
from parity_lib.fixture_file import fixture_path
from parity_lib.names import Kind, Outcome, Rung
from parity_lib.record_file import (
    SCHEMAS,
    append,
    check_schema,
    load_lines,
    load_record,
    save_record,
    to_lines,
    write_atomic,
)

RECEIPT = {
    "schema": "parity/build-receipt/1",
    "binding": "llama-cpp-python",
    "version": "0.3.36",
    "commit": "0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    "sdist_sha256": "ab" * 32,
    "wheel_sha256": "cd" * 32,
    "leg": "avx2",
    "cmake_args": ["-DGGML_NATIVE=OFF"],
    "cpu_flags": ["avx2"],
    "compiler": "c++ 12.2",
    "tools": {"cmake": "4.4"},
    "architecture": "x86_64",
    "libraries": {"libllama.so": "ef" * 32},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_one_and_has_a_name(name: str) -> None:
    content = json.loads(fixture_path(f"schemas/{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(content)
    assert content["$schema"].endswith("2020-12/schema")
    assert content["$id"].startswith("urn:parity:")


@pytest.mark.parametrize(("name", "words"), [("rung", Rung), ("kind", Kind), ("outcome", Outcome)])
def test_schemas_know_every_word_that_a_record_can_hold(name: str, words: type[StrEnum]) -> None:
    common = json.loads(fixture_path("schemas/common.json").read_text("utf-8"))
    assert set(common["$defs"][name]["enum"]) == {str(word) for word in words}


def test_a_record_comes_back_and_its_text_is_always_the_same(tmp_path: Path) -> None:
    first = save_record(RECEIPT, tmp_path / "deep" / "a.json", "receipt")
    second = save_record(dict(reversed(RECEIPT.items())), tmp_path / "b.json", "receipt")
    assert load_record(first, "receipt") == RECEIPT
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"commit": "0c1e570"}, "$.commit"),
        ({"schema": "parity/build-receipt/2"}, "$.schema"),
        ({"libraries": {}}, "$.libraries"),
        ({"libraries": {"a.so": "short"}}, "$.libraries['a.so']"),
        ({"cmake_args": "all of them"}, "$.cmake_args"),
        ({"extra": 1}, "$"),
    ],
)
def test_a_record_that_does_not_match_is_not_written(tmp_path: Path, changes: dict[str, object], place: str) -> None:
    path = tmp_path / "r.json"
    with pytest.raises(RecordError) as caught:
        save_record(RECEIPT | changes, path, "receipt")
    assert f"at {place}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_match_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for text in ("", "{", "[]", json.dumps(RECEIPT | {"leg": "sse"}), json.dumps(RECEIPT)[:-9]):
        path.write_text(text)
        with pytest.raises(RecordError, match=r"r\.json"):
            load_record(path, "receipt")
    with pytest.raises(RecordError, match="No such file"):
        load_record(tmp_path / "none.json", "receipt")


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_atomic(path, b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecordError, match="cannot be written"):
        write_atomic(tmp_path / "folder", b"new")  # a folder cannot be replaced by a file
    with pytest.raises(RecordError, match=r"cannot be written.*--out"):
        write_atomic(path / "below-a-file.json", b"new")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.json", "folder"]


def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(RecordError, match="No space left"):
        append(Path("/dev/full"), b"x\n")


def test_lines_of_several_processes_do_not_tear_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys, pathlib; from parity_lib.record_file import append\n"
        "for i in range(40): append(pathlib.Path(sys.argv[1]), (sys.argv[2] * 3000 + '\\n').encode())"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", code, str(path)]
    running = [
        subprocess.Popen([*command, word], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}) for word in "ab"
    ]
    assert [process.wait() for process in running] == [0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == ["a" * 3000] * 40 + ["b" * 3000] * 40


def test_a_torn_line_costs_no_other_line_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append(path, to_lines([RECEIPT], "receipt", path) + b'{"schema": "par')
    append(path, to_lines([RECEIPT], "receipt", path))
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(RecordError, match=r"lines\.jsonl line 2"):
        load_lines(path, "receipt")


def test_an_empty_file_has_no_lines_and_appending_nothing_makes_one(tmp_path: Path) -> None:
    append(tmp_path / "lines.jsonl", b"")
    assert load_lines(tmp_path / "lines.jsonl", "receipt") == []


def test_the_message_names_the_first_place_that_is_wrong() -> None:
    with pytest.raises(RecordError, match=r"verdict at \$: .*'causes' is a required property"):
        check_schema({"schema": "parity/verdict/1"}, "verdict", "verdict")
