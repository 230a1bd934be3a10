"""The exit status of every entry: an error that nobody expected is 3 and one line, a closed pipe changes nothing."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from parity_lib.base import exit_status
from parity_lib.base.errors import PinError, UsageError
from parity_lib.cli import bench
from parity_lib.cli.app import cli, main
from parity_lib.engines.llamacpp import build as reference_build

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": str(ROOT)}
PROMPTS = ROOT / "tests" / "two_prompts.toml"
RUN = ["run", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--threads", "1"]
ERRORS = [
    RuntimeError("boom"),
    ZeroDivisionError("float division by zero"),
    MemoryError(),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error", "/some/file"),
    OSError("no number"),
    SystemExit(0),
    SystemExit("text"),
    GeneratorExit(),
]


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield the words and the command of every command that has none below it."""
    below = getattr(command, "commands", {})
    if not below:
        yield words, command
    for name, inner in below.items():
        yield from leaves(inner, (*words, name))


def arguments(command: click.Command) -> list[str]:
    """Return words for everything that a command requires."""
    words: list[str] = []
    for parameter in command.params:
        if parameter.required:
            options = [parameter.opts[0]] if isinstance(parameter, click.Option) else []
            words += [*options, str(PROMPTS)]  # a file that is there is a good word everywhere
    return words


LEAVES = list(leaves(cli))
each_command = pytest.mark.parametrize(("words", "command"), LEAVES, ids=[" ".join(words) for words, _ in LEAVES])


@pytest.fixture(autouse=True)
def _logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_status, "LOGS", tmp_path / "errors")


@each_command
def test_an_error_inside_of_any_command_is_three_and_one_line(
    words: tuple[str, ...],
    command: click.Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for error in ERRORS:

        def fail(error: BaseException = error, **_: object) -> int:
            raise error.with_traceback(None)  # else it grows with each call

        monkeypatch.setattr(command, "callback", fail)
        assert main([*words, *arguments(command)]) == 3, error
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
        for word in ("parity: ", "expected ", "found ", "next: ", "log: "):
            assert word in said.err, error
        assert "Traceback" not in said.err
        log = Path(said.err.rpartition("log: ")[2].strip())
        assert "Traceback" in log.read_text()
        assert "in fail" in log.read_text()
        log.unlink()
        assert main(["--debug", *words, *arguments(command)]) == 3, error
        assert "Traceback" in capsys.readouterr().err


@each_command
def test_what_a_command_returns_is_its_status_and_anything_else_is_no_parity(
    words: tuple[str, ...], command: click.Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = [0, 1, 3, None, True, False, 7, "0"]
    ends = []
    for value in given:
        monkeypatch.setattr(command, "callback", lambda value=value, **_: value)
        ends.append(main([*words, *arguments(command)]))
    assert ends == [0, 1, 3, 3, 3, 3, 3, 3]
    errors: list[tuple[BaseException, int]] = [(KeyboardInterrupt(), 130), (UsageError("x"), 2), (PinError("x"), 3)]
    errors += [(click.UsageError("x"), 2), (click.Abort(), 130)]
    for error, status in errors:

        def fail(error: BaseException = error, **_: object) -> int:
            raise error

        monkeypatch.setattr(command, "callback", fail)
        assert main([*words, *arguments(command)]) == status
    assert "Traceback" not in capsys.readouterr().err


@each_command
def test_a_number_out_of_range_is_a_usage_error(
    words: tuple[str, ...], command: click.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [p for p in command.params if isinstance(p.type, click.types.IntParamType)]
    for parameter in numbers:
        for value in ("-3000000000", "many", "1.5", ""):
            assert main([*words, *arguments(command), f"{parameter.opts[0]}={value}"]) == 2
            said = capsys.readouterr().err
            assert parameter.opts[0] in said
            assert "Traceback" not in said
    if any(parameter.name in ("threads", "n_threads") for parameter in command.params):
        assert numbers


def test_the_other_entries_end_alike(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise ZeroDivisionError("division by zero")

    assert bench.main(["pas"]) == 2
    assert "expected one of pass, trace, sgemm" in capsys.readouterr().err
    monkeypatch.setattr(bench, "_print", fail)
    monkeypatch.setattr(reference_build, "_ensure", fail)
    for entry in (bench.main, reference_build.main):
        assert entry([]) == 3
        said = capsys.readouterr().err
        assert "ZeroDivisionError: division by zero" in said
        assert len(said.splitlines()) == 1


def test_a_log_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(exit_status, "LOGS", tmp_path / "file")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))

    def fail() -> int:
        raise RuntimeError("boom\nboom")

    assert exit_status.ended(fail, program="parity") == 3
    said = capsys.readouterr().err
    assert "RuntimeError: boom boom" in said
    assert "log: none (" in said
    assert len(said.splitlines()) == 1


# ---- as processes: pipes, streams, signals

ENTRIES = [["-m", "parity_lib"], ["-m", "parity_lib.cli.app"]]
FAILING = """
import sys
from parity_lib import __main__
from parity_lib.cli import app
def fail(**_):
    {error}
app.cli.commands["doctor"].callback = fail
sys.argv = ["parity", "doctor"]
sys.exit({call})
"""


def shell(line: str, **more: str) -> subprocess.CompletedProcess[str]:
    script = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", script], env=ENV | more, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("entry", ENTRIES, ids=" ".join)
def test_a_closed_pipe_does_not_change_the_status_of_help(entry: list[str]) -> None:
    """`--help` is printed by click itself, before any command runs."""
    for words in ("--help", "run --help", "--version"):
        for reader in ("head -1", "true"):
            done = shell(f"{' '.join([sys.executable, *entry])} {words} | {reader}")
            assert (done.returncode, done.stderr) == (0, ""), words


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["head -1", "true"])
def test_a_closed_pipe_does_not_change_the_status_of_parity(reader: str, tmp_path: Path) -> None:
    """The real thing, a run at parity."""
    done = shell(f"{sys.executable} -m parity_lib {' '.join([*RUN, '--out', str(tmp_path / 'out')])} | {reader}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("PARITY: ") == (reader == "head -1")


@pytest.mark.slow
def test_a_closed_pipe_does_not_change_the_other_statuses(tmp_path: Path) -> None:
    command = f"{sys.executable} -m parity_lib"
    out = tmp_path / "out"
    assert shell(f"{command} {' '.join(RUN)} --fault rope_base=20000 --out {out} 2>&1 | head -1").returncode == 1
    assert shell(f"{command} {' '.join(RUN)} --fault die --out {out} 2>&1 | true").returncode == 3
    assert shell(f"{command} run nothing 2>&1 | true").returncode == 2
    assert shell(f"{command} nightly --plan {tmp_path}/none.toml 2>&1 | true").returncode == 2


@pytest.mark.slow
def test_a_closed_stream_takes_no_file_for_itself(tmp_path: Path) -> None:
    """With `>&-` the next file that is opened would become standard output, and get what is printed."""
    out = tmp_path / "out"
    done = shell(f"{sys.executable} -m parity_lib {' '.join(RUN)} --out {out} <&- >&- 2>&-")
    assert done.returncode == 0
    assert (out / "verdict.json").read_text().startswith("{")


def test_output_that_cannot_be_written_is_no_parity() -> None:
    done = shell(f"{sys.executable} -m parity_lib --help > /dev/full")
    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_letters_that_the_terminal_lacks_are_no_error() -> None:
    """The page of a cell has a middle dot in its first line."""
    done = shell(f"{sys.executable} -m parity_lib run --help", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    code = "from parity_lib.base.exit_status import guard_streams as g; g(); print('a · b')"
    done = shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "a \\xb7 b\n")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        ("1 / 0", 3, "ZeroDivisionError: division by zero"),
        ("raise BrokenPipeError(32, 'Broken pipe')", 3, "Broken pipe"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", 130, "interrupted"),
        ("print('verdict'); sys.stdout.close(); return 0", 3, "cannot be written"),
    ],
)
@pytest.mark.parametrize("call", ["app.main()", "__main__.start()"])
def test_how_a_process_ends(error: str, status: int, words: str, call: str) -> None:
    code = FAILING.format(error=error, call=call)
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    if log := re.search(r"log: (\S+)", done.stderr):
        Path(log[1]).unlink()


@pytest.mark.parametrize("module", ["parity_lib.cli.bench", "parity_lib.engines.llamacpp.build"])
def test_the_other_entries_keep_their_status_in_a_pipe(module: str) -> None:
    assert shell(f"{sys.executable} -m {module} --no-such-part 2>&1 | true").returncode == 2


def test_ctrl_c_is_130(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "parity_lib", *RUN, "--out", str(out)]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 60
        while not (out / ".lock").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
