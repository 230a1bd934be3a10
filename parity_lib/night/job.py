"""Run one notebook in a child process of its own session, watch its time, and leave no process behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from parity_lib.base.errors import EngineError, UsageError
from parity_lib.base.surroundings import clean_environment

REPLY_KEY = "parity_reply"  # cell metadata: the status of the kernel's reply, written when it arrived
CELL_RAISED = 10  # exit statuses of the child; 1 stays Python's own, for an unexpected error
USAGE = 2
POLL_SECONDS = 0.1
DUMP_SECONDS = 8.0  # after the limit: time for the kernel's stack, and for papermill to save the notebook
TOKEN = "PARITY_NOTEBOOK"  # noqa: S105 - names the environment variable that marks every descendant
CHILD = (sys.executable, "-P", "-m", "parity_lib.night.notebook")
SOCKET_PATH_MAX = 60  # a kernel's socket has 107 characters at most, of which its own name takes about 45


@dataclass(frozen=True, slots=True)
class NotebookJob:
    """What to run. Paths are absolute; ``parameters`` hold JSON values, and a digest is a string."""

    source: Path
    output: Path
    parameters: Mapping[str, Any]
    log: Path  # everything that the child and its kernel print, appended
    limit_s: float  # wall clock of the whole notebook, seconds
    cell_limit_s: int | None = None  # of one cell, seconds
    cpus: tuple[int, ...] = ()  # cores of the run, all of its processes included; empty: every core of this process


@dataclass(frozen=True, slots=True)
class NotebookEnd:
    """How the child process ended; the notebook's own result is judged later."""

    job: NotebookJob
    status: int  # exit status, negative where a signal ended it
    timed_out: bool
    seconds: float
    crash: str  # the stacks that faulthandler wrote, or ""


def run_notebook(job: NotebookJob, on_tick: Callable[[], None] | None = None) -> NotebookEnd:
    """Run ``job`` to its end, whatever that is.

    Args:
        job: what to run.
        on_tick: called about ten times a second while the notebook runs; what it raises ends the run and is passed on.

    Raises:
        UsageError: a parameter is unknown or has the wrong type; no kernel was started.
        KeyboardInterrupt: passed on, after every process of the run was ended.
    """
    job.output.parent.mkdir(parents=True, exist_ok=True)
    job.log.parent.mkdir(parents=True, exist_ok=True)
    if not job.source.is_file():
        raise UsageError(
            "there is no such notebook",
            place=job.source.name,
            expected="a file",
            found="none",
            next_step="correct the plan",
        )
    started = time.monotonic()
    with _scratch() as scratch, job.log.open("ab") as log:
        token = secrets.token_hex(8)
        child = _spawn(job, scratch, token, log)
        try:
            timed_out = _watch(child, started + job.limit_s, token, on_tick or _nothing)
        finally:
            _kill(child, token)
        _raise_usage(scratch / "usage.json", child.returncode)
        crash_log = scratch / "crash.log"
        crash = crash_log.read_text(encoding="utf-8", errors="replace") if crash_log.exists() else ""
    return NotebookEnd(job, child.returncode, timed_out, time.monotonic() - started, crash)


def check_notebooks(wanted: Iterable[tuple[Path, Mapping[str, Any]]]) -> None:
    """Check the parameters of (notebook, parameters) pairs as a run would, without starting a kernel.

    Raises:
        UsageError: a notebook is missing or unreadable, or a parameter is unknown or has the wrong type.
    """
    pairs = [(str(source.resolve()), dict(parameters)) for source, parameters in wanted]
    with _scratch() as scratch:
        request = {"check": pairs, "usage_file": str(scratch / "usage.json")}
        done = subprocess.run(
            CHILD, input=json.dumps(request) + "\n", capture_output=True, text=True, env=_environment(), check=False
        )
        _raise_usage(scratch / "usage.json", done.returncode)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise EngineError(
            "the notebook tools do not work",
            place="papermill",
            expected="exit status 0",
            found=f"{describe_status(done.returncode)}: {last}",
            next_step="parity doctor; make setup",
        )


def describe_status(status: int | None) -> str:
    """Return an exit status, as ``subprocess`` gives it, in words."""
    if status is None:
        return "it is still running"
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (unless it was killed on purpose, the machine ran out of memory)" if status == -signal.SIGKILL else ""
    return f"killed by {name}{hint}"


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    base = tempfile.gettempdir()
    short = base if len(base) <= SOCKET_PATH_MAX else "/tmp"  # noqa: S108 - a private folder is made in it
    with tempfile.TemporaryDirectory(prefix="parity-", dir=short, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _spawn(job: NotebookJob, scratch: Path, token: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    env = _environment() | {
        TOKEN: token,
        "PARITY_CRASH_LOG": str(scratch / "crash.log"),
        "PYTHONUNBUFFERED": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        # The user's own start-up files, history and kernels have no say in a night.
        "IPYTHONDIR": str(scratch / "ipython"),
        "JUPYTER_PATH": str(_write_kernel(scratch)),
        "JUPYTER_CONFIG_DIR": str(scratch / "config"),
        "JUPYTER_DATA_DIR": str(scratch / "data"),
        "JUPYTER_RUNTIME_DIR": str(scratch),
    }
    request = {
        "source": str(job.source.resolve()),
        "output": str(job.output.resolve()),
        "parameters": dict(job.parameters),
        "cwd": str(job.source.resolve().parent),
        "cell_limit_s": job.cell_limit_s,
        "cpus": list(job.cpus),
        "usage_file": str(scratch / "usage.json"),
    }
    child = subprocess.Popen(
        CHILD,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    # The pipe stays open: its end tells the child that this process is gone.
    with contextlib.suppress(BrokenPipeError):
        assert child.stdin is not None
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    return child


def _environment() -> dict[str, str]:
    """Return the environment of a notebook and its kernel, without numeric switches and the user's Jupyter settings."""
    return {key: value for key, value in clean_environment().items() if not key.startswith(("JUPYTER_", "IPYTHON"))}


def _write_kernel(scratch: Path) -> Path:
    """Write a kernel spec ``python3`` of the running Python; return the folder for ``JUPYTER_PATH``."""
    folder = scratch / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return scratch / "jupyter"


def _watch(child: subprocess.Popen[bytes], deadline: float, token: str, on_tick: Callable[[], None]) -> bool:
    """Wait for the child; return True if the limit ended it."""
    asked = False
    while child.poll() is None:
        on_tick()
        now = time.monotonic()
        if now >= deadline:
            if asked:
                return True
            # SIGABRT makes faulthandler write where every thread of the kernel stands; the child then
            # sees a dead kernel, puts the error into the notebook and ends by itself.
            for process in _descendants(token):
                with contextlib.suppress(psutil.Error):
                    if "ipykernel_launcher" in " ".join(process.cmdline()):
                        process.send_signal(signal.SIGABRT)
            asked, deadline = True, now + DUMP_SECONDS
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
    return asked


def _nothing() -> None:
    pass


def _kill(child: subprocess.Popen[bytes], token: str) -> None:
    """End the child and all of its descendants, also those in sessions of their own."""
    for _ in range(3):  # a process may be started while the list is read
        left = [process for process in _descendants(token) if process.pid != child.pid or child.poll() is None]
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        if not left:
            break
    child.wait()
    if child.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()


def _descendants(token: str) -> list[psutil.Process]:
    """Return the processes that inherited the token, also those in sessions of their own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


def _raise_usage(path: Path, status: int) -> None:
    if status == USAGE and path.exists():
        fields = json.loads(path.read_text(encoding="utf-8"))
        raise UsageError(fields.pop("what"), **fields)
