"""Files that are whole or absent, schemas that are schemas, lines that survive a crash and each other."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

import jsonschema
import pytest

from parity_lib.base.errors import EngineError, ModelFileError, RecordError, UsageError
from parity_lib.base.files import (
    LOCK,
    SCHEMAS,
    append,
    check_schema,
    hold,
    hold_folder,
    is_held,
    load_lines,
    load_record,
    replacing,
    save_record,
    to_lines,
    write_atomic,
)
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.base.toml_table import fixture_path

RECEIPT = {
    "schema": "parity/build-receipt/1",
    "binding": "llama-cpp-python",
    "version": "0.3.36",
    "commit": "0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    "sdist_sha256": "ab" * 32,
    "wheel_sha256": "cd" * 32,
    "target": "avx2",
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
    for text in ("", "{", "[]", json.dumps(RECEIPT | {"target": "sse"}), json.dumps(RECEIPT)[:-9]):
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


def test_a_block_that_fails_leaves_the_old_file_or_folder_and_no_part(tmp_path: Path) -> None:
    def write_and_raise(path: Path, error: BaseException) -> None:
        with replacing(path, kind=EngineError, what="no room", next_step="free some") as part:
            if path.is_dir():
                part.mkdir()
                (part / "inner").write_bytes(b"new")
            else:
                part.write_bytes(b"new")
            raise error

    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_bytes(b"old")
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    for path in (file, folder):
        with pytest.raises(KeyboardInterrupt):
            write_and_raise(path, KeyboardInterrupt())
        with pytest.raises(EngineError, match=f"{path.name}: no room; found No space left.*next: free some"):
            write_and_raise(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert file.read_bytes() == (folder / "old").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "old"]


@pytest.mark.parametrize("sync", [True, False])
def test_a_folder_replaces_a_folder_as_a_whole(sync: bool, tmp_path: Path) -> None:
    folder = tmp_path / "above" / "folder"
    for name in ("first", "second"):
        with replacing(folder, sync=sync) as part:
            part.mkdir()
            (part / name).write_text(name)
        assert [path.name for path in folder.iterdir()] == [name]
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    path, both = tmp_path / "file", threading.Barrier(2)

    def write(word: str) -> None:
        with replacing(path) as part:
            part.write_text(word)
            both.wait(60)  # both parts are there
            assert part.read_text() == word

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(write, ["one", "two"])) == [None, None]
    assert path.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_is_waited_for_or_refused_and_names_its_holder(tmp_path: Path) -> None:
    path, asked, seen = tmp_path / "deep" / LOCK, threading.Event(), list[str]()

    def wait(holder: str) -> None:
        seen.append(holder)
        asked.set()

    def second() -> None:
        with hold(path, wait):
            seen.append("held")

    with hold(path):
        assert is_held(path.parent)
        with pytest.raises(UsageError, match=f"found process {os.getpid()}, still running; next: wait for it"):
            hold_folder(path.parent, "wait for it")
        thread = threading.Thread(target=second)
        thread.start()
        assert asked.wait(60)
        assert seen == [str(os.getpid())]
    thread.join(60)
    assert seen == [str(os.getpid()), "held"]
    assert not is_held(path.parent)


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    code = "import sys, pathlib, time; from parity_lib.base.files import hold\n"
    code += "file = hold(pathlib.Path(sys.argv[1]) / '.lock'); print('held', flush=True); time.sleep(600)"
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(UsageError, match=f"process {holder.pid}, still running"):
            hold_folder(tmp_path, "wait for it")
        holder.kill()
        holder.wait()
        assert not is_held(tmp_path)
        hold_folder(tmp_path, "wait for it").close()


def test_a_lock_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelFileError, match=r"file/\.lock: cannot be locked; .*next: another cache"):
        hold(tmp_path / "file" / LOCK, kind=ModelFileError, next_step="another cache")
    assert not is_held(tmp_path / "none")


def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(RecordError, match="No space left"):
        append(Path("/dev/full"), b"x\n")


def test_lines_of_several_processes_do_not_tear_each_other(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    code = (
        "import sys, pathlib; from parity_lib.base.files import append\n"
        "for i in range(40): append(pathlib.Path(sys.argv[1]), (sys.argv[2] * 3000 + '\\n').encode())"
    )
    root = Path(__file__).resolve().parents[2]
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
