"""Records on disk: what is read is what was written, and nothing else is read or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import RecordError
from parity_lib.base.files import append
from parity_lib.base.json_text import encode
from parity_lib.base.record import load_lines, load_record, save_record, to_lines
from parity_lib.records.builds import Receipt

RECEIPT = Receipt(
    binding="llama-cpp-python",
    version="0.3.36",
    commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    sdist_sha256="ab" * 32,
    wheel_sha256="cd" * 32,
    target="avx2",
    cmake_args=("-DGGML_NATIVE=OFF",),
    cpu_flags=("avx2",),
    compiler="c++ 12.2",
    tools={"cmake": "4.4"},
    architecture="x86_64",
    libraries={"libllama.so": "ef" * 32},
)


def test_a_record_comes_back_and_its_text_is_always_the_same(tmp_path: Path) -> None:
    first = save_record(RECEIPT, tmp_path / "deep" / "a.json")
    second = save_record(load_record(first, Receipt), tmp_path / "b.json")
    assert load_record(first, Receipt) == RECEIPT
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"commit": "0c1e570"}, "$.commit"),
        ({"libraries": {}}, "$.libraries"),
        ({"libraries": {"a.so": "short"}}, "$.libraries[...]"),
        ({"cmake_args": "all of them"}, "$.cmake_args"),
    ],
)
def test_a_record_that_is_not_sound_is_not_written(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(RecordError) as caught:
        save_record(replace(RECEIPT, **changes), tmp_path / "r.json")
    assert f"r.json at {place}: is no Receipt; expected " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not valid JSON"),
        ("{", "is not valid JSON"),
        ("[]", "another schema; expected parity/build-receipt/1; found no object"),
        (json.dumps(encode(RECEIPT))[:-9], "is not valid JSON"),
        (json.dumps(encode(RECEIPT) | {"target": "sse"}), r"at \$\.target: is no Receipt"),
        (json.dumps(encode(RECEIPT) | {"extra": 1}), "found Object contains unknown field `extra`; next: "),
        (json.dumps(encode(RECEIPT) | {"schema": "parity/build-receipt/2"}), "found parity/build-receipt/2; next: "),
    ],
)
def test_a_file_that_is_no_such_record_is_not_read(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=rf"r\.json.*{words}"):
        load_record(path, Receipt)
    with pytest.raises(RecordError, match="No such file"):
        load_record(tmp_path / "none.json", Receipt)


def test_a_torn_line_costs_no_other_line_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append(path, to_lines([RECEIPT], path) + b'{"schema": "par')
    append(path, to_lines([RECEIPT], path))
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(RecordError, match=r"lines\.jsonl line 2"):
        load_lines(path, Receipt)


def test_an_empty_file_has_no_lines_and_appending_nothing_makes_one(tmp_path: Path) -> None:
    append(tmp_path / "lines.jsonl", b"")
    assert load_lines(tmp_path / "lines.jsonl", Receipt) == []
