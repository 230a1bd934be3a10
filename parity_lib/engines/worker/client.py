"""Run an engine in a worker process: call it, watch it, and report how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from parity_lib.base.errors import EngineError, WorkerDied
from parity_lib.base.progress import Progress
from parity_lib.base.surroundings import clean_environment

Answer = Any  # what an engine's method returns: any picklable thing

SERVER = "parity_lib.engines.worker.server"
POLL_SECONDS = 0.5  # how often a silent worker is checked for being alive
EXIT_SECONDS = 30.0  # a worker that was asked to end frees its model within this time
DUMP_SECONDS = 3.0  # time for faulthandler to write every thread's stack before SIGKILL
TAIL_LINES = 12  # lines of the log that an error message quotes; the whole log is in ``stderr``
# How C and C++ say why they end the process: ggml's own assertion or abort, assert(3), an uncaught exception.
LAST_WORDS = (
    re.compile(r"terminate called after throwing an instance of .*(?:\n  what\(\): .*)?"),
    re.compile(r"[^\s/]+:\d+: .*Assertion .* failed"),
    re.compile(
        r"[^\s/]+\.(?:c|cpp|cc|h|hpp):\d+: (?:GGML_ASSERT\(.*\) failed|fatal error.*|.*(?:abort|not supported).*)"
    ),
)


def environment(n_threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker: the caller's, without any numeric switch, plus fixed ones.

    Args:
        n_threads: size of every thread pool in the worker.
        extra: set last; the only way in for a switch such as ``LLAMA_CPP_LIB_PATH``.
    """
    env = clean_environment()
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MATMUL_NUM_THREADS", "RAYON_NUM_THREADS")
    env |= dict.fromkeys(threads, str(n_threads))
    env |= {"GGML_CPU_TILED_MM": "0", "GGML_NO_BACKTRACE": "1", "RUST_BACKTRACE": "1"}
    env["PYTHONHASHSEED"] = "0"
    env |= extra or {}
    return env


class RemoteTraceback(Exception):
    """The traceback of a worker's error, as text: the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"in the worker:\n{self.args[0]}"


class Worker:
    """One engine in one process; ``call`` forwards a method call and raises what the engine raised.

    The process is its own session and process group, so that the terminal's Ctrl-C reaches only the
    parent, which then ends the whole group. It also ends when the parent dies, however that happens.

    Args:
        engine: "llama_cpp", "burn", "oracle", "llama_quantize", or ``package.module:Class``.
        kwargs: keyword arguments of the engine's constructor; ``n_threads`` sets every pool (default 2).
        env: added to :func:`environment`.
        log: file that gets everything the process writes, appended; a temporary file if None.
        timeout: seconds that the constructor may take; None is no limit.

    Raises:
        WorkerDied: the process ended or did not answer in time.
        ParityError: whatever the engine's constructor raised.
    """

    def __init__(
        self,
        engine: str,
        kwargs: Mapping[str, Any] | None = None,
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        timeout: float | None = None,
    ) -> None:
        self.engine = engine
        self._kwargs = dict(kwargs or {})
        self._busy = False
        self._log, self.log_path = _open_log(log)
        self._log_start = self._log.seek(0, os.SEEK_END)
        self._connection, self._process = self._spawn(env)
        self._closed = False
        try:
            self._exchange((engine, self._kwargs), "start", None, timeout)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Return the id of the process, which is also the id of its process group."""
        return self._process.pid

    def call(
        self,
        method: str,
        /,
        *args: object,
        progress: Progress | None = None,
        timeout: float | None = None,
        **kwargs: object,
    ) -> Answer:
        """Call ``method`` of the engine and return its answer.

        Args:
            method: a public method of the engine.
            args: its positional arguments, picklable.
            kwargs: its keyword arguments, picklable.
            progress: called with (done, total) in this process, a few times a second; raising from it ends the worker.
            timeout: seconds for the whole call; None is no limit.

        Raises:
            WorkerDied: the process ended, or did not answer in time; it carries status and complete stderr.
            ParityError: the engine's own refusal, as it is. Any other exception becomes ``EngineError``.
        """
        if self._closed:
            raise EngineError(
                "the worker is closed",
                place=f"{self.engine}.{method}",
                expected="a running process",
                found="a process that was ended before",
                next_step="start a new Worker",
            )
        if self._busy:
            raise EngineError(
                "the worker is busy",
                place=f"{self.engine}.{method}",
                expected="one call at a time",
                found="a call from inside a progress callback or another thread",
                next_step="wait for the first call, or start a second Worker",
            )
        return self._exchange((method, args, kwargs), method, progress, timeout)

    def close(self) -> None:
        """End the worker politely: the engine frees its model, then the process exits. Safe to call twice."""
        if self._closed:
            return
        try:
            self._exchange(None, "close", None, EXIT_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the whole process group at once and release everything. Safe to call twice."""
        self._closed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def _spawn(self, env: Mapping[str, str] | None) -> tuple[Connection[Any, Any], subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        # The kernel sends the parent-death signal when the starting *thread* ends, so only the main one may ask for it.
        main_thread = threading.current_thread() is threading.main_thread()
        # -P keeps the current folder, and a stray llama_cpp.py in it, off the module path.
        command = [sys.executable, "-P", "-u", "-X", "faulthandler", "-m", SERVER]
        command += [str(theirs.fileno()), str(os.getpid()) if main_thread else "0"]
        with theirs:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment(int(self._kwargs.get("n_threads", 2)), env),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return Connection(ours.detach()), process

    def _exchange(self, request: object, name: str, progress: Progress | None, timeout: float | None) -> Answer:
        self._busy = True
        try:
            try:
                self._connection.send(request)
            except OSError:
                raise self._died(name) from None
            kind, value = self._answer(name, progress, timeout)
        except BaseException:
            # Interrupted, dead, or out of step with us: a half-read answer would be taken for the next one.
            self.kill()
            raise
        finally:
            self._busy = False
        if kind == "raise":
            error, words = value
            raise error from (RemoteTraceback(words) if words else None)
        return value

    def _answer(self, name: str, progress: Progress | None, timeout: float | None) -> tuple[str, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, deadline - time.monotonic())
            if not self._connection.poll(max(left, 0.0)):
                if deadline is not None and time.monotonic() >= deadline:
                    raise self._timed_out(name, timeout)
                if self._process.poll() is None or self._connection.poll(0):
                    continue
            try:
                kind, value = self._connection.recv()
            except (EOFError, OSError):
                raise self._died(name) from None
            if kind != "progress":
                return kind, value
            if progress is not None:
                progress(*value)

    def _timed_out(self, name: str, timeout: float | None) -> WorkerDied:
        # SIGABRT makes faulthandler write where every thread stands, which is what one wants to know about a hang.
        self._process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DUMP_SECONDS)
        return self._death(
            name, f"no answer within {timeout:g} s", "raise the time limit, or find in the stack where the worker hung"
        )

    def _died(self, name: str) -> WorkerDied:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(DUMP_SECONDS)
        status = self._process.poll()
        hint = "read the worker's complete stderr"
        if status == -signal.SIGKILL:
            hint += "; unless it was killed on purpose, the machine ran out of memory"
        words = describe_status(status)
        return self._death(name, f"the worker died: {words}", hint, words=words)

    def _death(self, name: str, what: str, next_step: str, *, words: str = "") -> WorkerDied:
        text = self._read_log()
        assertion = last_words(text) if words else ""
        found = "\n".join(["its last lines:", *text.splitlines()[-TAIL_LINES:]]) if text else "nothing on stderr"
        return WorkerDied(
            assertion or what,
            status=self._process.poll(),
            stderr=text,
            place=f"{self.engine}.{name}",
            expected="an answer",
            found=f"the worker died: {words}" if assertion else found,
            next_step=next_step if self.log_path is None else f"{next_step}: {self.log_path}",
        )

    def _read_log(self) -> str:
        self._log.seek(self._log_start)
        return self._log.read().decode("utf-8", "replace")


def last_words(log: str) -> str:
    r"""Return the assertion that native code printed last, with file name and line, or "".

    >>> last_words("x\n/src/llama-vocab.cpp:21: GGML_ASSERT(n == m) failed\nFatal Python error: Aborted")
    'llama-vocab.cpp:21: GGML_ASSERT(n == m) failed'
    """
    found = [match[0] for pattern in LAST_WORDS for match in pattern.finditer(log)]
    return " ".join(found[-1].split()) if found else ""


def describe_status(status: int | None) -> str:
    """Return an exit status, as ``subprocess`` gives it, in words."""
    if status is None:
        return "it closed its connection and did not exit"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _open_log(path: Path | None) -> tuple[IO[bytes], Path | None]:
    if path is None:
        return tempfile.TemporaryFile("a+b"), None
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+b"), path
