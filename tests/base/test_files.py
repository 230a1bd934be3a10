"""Files that are whole or absent, and lines that survive a crash and each other."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError, ModelFileError, RecordError, UsageError
from parity_lib.base.files import (
    LOCK,
    append,
    hold,
    hold_folder,
    is_held,
    put,
    replacing,
    write_atomic,
)


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


def test_what_another_program_made_takes_the_place_of_a_file_or_folder(tmp_path: Path) -> None:
    old, made = tmp_path / "old", tmp_path / "made"
    old.mkdir()
    (old / "stale").write_bytes(b"old")
    made.mkdir()
    (made / "inner").write_bytes(b"new")
    assert put(made, old) == old
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["inner", "old"]
    assert put(old / "inner", tmp_path / "file", sync=False).read_bytes() == b"new"
    with pytest.raises(FileNotFoundError):
        put(made, old)
    assert old.is_dir()


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
