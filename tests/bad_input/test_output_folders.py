"""Output folders that cannot be written, are full, or belong to another run: status, words, nothing half-written."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from parity_lib.base.files import LOCK
from parity_lib.base.names import Outcome
from parity_lib.cell.reference_cache import traces_dir
from parity_lib.cli.app import main
from parity_lib.records import store

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
PARITY = [sys.executable, "-m", "parity_lib.cli.app"]
RUN = ["run", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--threads", "1"]
# Mounts a file system of its own on $2 with the options $1, runs the rest, and lists what that left there.
MOUNTED = 'mount -t tmpfs -o "$1" none "$2" && d="$2" && shift 2 && { "$@"; s=$?; find "$d" -type f; exit $s; }'
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
Clear = Callable[[str, str], None]


def can_mount() -> bool:
    """Return whether a process of this machine may mount a file system in a name space of its own."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def on_small_disk(n_bytes: int, folder: Path, *words: str) -> tuple[int, str, list[str]]:
    """Run ``parity`` with ``folder`` on a disk of so many bytes; return status, what was said, and the files left.

    Where nothing may be mounted, no file can grow beyond that size instead: the error has another number.
    """
    folder.mkdir()
    if can_mount():
        command = ["unshare", "-rm", "sh", "-c", MOUNTED, "sh", f"size={n_bytes}", str(folder), *PARITY, *words]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
        left = [line for line in done.stdout.splitlines() if line.startswith(str(folder))]
        assert "No space left on device" in done.stdout + done.stderr
    else:
        limit = (n_bytes, n_bytes)
        command = [*PARITY, *words]
        done = subprocess.run(
            command,
            env=ENV,
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        left = [str(path) for path in folder.rglob("*") if path.is_file()]
        assert "File too large" in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr, left


def test_full_output_folder_without_room_for_the_rows(tmp_path: Path) -> None:
    """There is room for a record, not for rows: it says INCOMPLETE and why, and no row and no part of a file stays.

    What is kept of the reference is not thrown away because of a disk that it does not lie on.
    """
    assert main([*RUN, "--out", str(tmp_path / "sound")]) == 0
    kept = {path.name for path in traces_dir().iterdir()}
    for name, n_bytes in (("smaller", 128 << 10), ("small", 400 << 10)):
        out = tmp_path / name
        status, text, left = on_small_disk(n_bytes, out, *RUN, "--out", str(out))
        check_small(status, text, left, out)
    assert kept <= {path.name for path in traces_dir().iterdir()}


def check_small(status: int, text: str, left: list[str], out: Path) -> None:
    """Assert that a run without room for its rows ended as it has to."""
    assert status == 3
    assert "Traceback" not in text
    assert "INCOMPLETE model=synthetic-llama" in text
    assert "free space" in text
    assert str(out / "verdict.json") in left
    assert not [name for name in left if ".part" in name or ".spool" in name]


def test_full_output_folder_without_room_for_a_record(tmp_path: Path) -> None:
    out = tmp_path / "full"
    status, text, left = on_small_disk(4 << 10, out, *RUN, "--out", str(out))
    assert status == 3
    assert "Traceback" not in text
    assert "next: " in text
    assert not [name for name in left if name.endswith(".json") or ".part" in name or ".spool" in name]


def test_full_output_folder_of_a_night(tmp_path: Path) -> None:
    out = tmp_path / "full"
    status, text, left = on_small_disk(16 << 10, out, "nightly", "--plan", "tiny", "--out", str(out))
    assert status == 3
    assert "Traceback" not in text
    assert re.search("next: .*free some space", text)
    finished = [name for name in left if ".partial/" not in name]  # an unfinished cell is a hidden folder
    assert not [name for name in finished if "verdict.json" in name or ".part" in name]


@pytest.mark.slow
def test_unwritable_output_folder_with_a_file_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clear: Clear
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file of somebody's")
    commands = (RUN, ["faults", *RUN[1:]], ["nightly", "--plan", "tiny"])
    for words in commands:
        for out in (taken, taken / "below"):
            assert main([*words, "--out", str(out)]) == 3
            said = capsys.readouterr().err
            clear(said, "taken")
            assert "--out" in said
    assert taken.read_text() == "a file of somebody's"


@pytest.mark.parametrize("words", [RUN, ["nightly", "--plan", "tiny"]], ids=["run", "nightly"])
def test_unwritable_output_folder(tmp_path: Path, words: list[str], clear: Clear) -> None:
    """A disk that is mounted read-only; where nothing may be mounted, a folder without the right to write."""
    out = tmp_path / "read-only"
    out.mkdir()
    if can_mount():
        command = ["unshare", "-rm", "sh", "-c", MOUNTED, "sh", "ro", str(out), *PARITY, *words, "--out", str(out)]
    else:
        out.chmod(0o500)
        command = [*PARITY, *words, "--out", str(out)]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    clear(done.stderr, str(out))
    assert re.search("Read-only file system|Permission denied", done.stderr)
    assert "--out" in done.stderr


def test_two_runs_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], clear: Clear) -> None:
    """The second is refused while the first is alive, and the first ends as if nothing had been."""
    out = tmp_path / "out"
    first = subprocess.Popen(
        [*PARITY, *RUN, "--out", str(out)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while not (out / LOCK).exists() or not (out / LOCK).read_text():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # it cannot end before the second has tried
    try:
        assert main([*RUN, "--out", str(out)]) == 2
        said = capsys.readouterr().err
        clear(said, str(out))
        assert (
            "another run writes into this folder; expected a folder that no other run is writing to; "
            f"found process {first.pid}" in said
        )
    finally:
        first.send_signal(signal.SIGCONT)
        text = first.communicate(timeout=240)[0]
    assert first.returncode == 0, text
    assert store.load_verdict(out).outcome is Outcome.PARITY
    assert main([*RUN, "--out", str(out)]) == 0
    assert store.load_verdict(out).outcome is Outcome.PARITY


def test_a_run_that_was_killed_does_not_keep_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = subprocess.Popen([*PARITY, *RUN, "--out", str(out)], env=ENV, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / LOCK).exists() or not (out / LOCK).read_text():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (out / "verdict.json").exists()
    assert main([*RUN, "--out", str(out)]) == 0
