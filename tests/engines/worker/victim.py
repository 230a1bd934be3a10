"""An engine that misbehaves on request, for the tests of the worker: real crashes, real hangs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from parity_lib.base.errors import ModelFileError, ParityError


class NotAnException(BaseException):
    """What a Rust panic looks like from Python: not an ``Exception``."""


class UnportableError(ParityError):
    """An error of the hierarchy that forgot how it crosses a pipe."""

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("this error does not travel")


class Victim:
    def __init__(self, n_threads: int = 2, fate: str = "") -> None:
        self.n_threads = n_threads
        if fate:
            getattr(self, fate)()

    def echo(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        return (*args, kwargs)

    def say(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stdout.write(text.upper())

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def abort(self) -> None:
        sys.stderr.write("about to abort\n")
        os.abort()

    def segfault(self) -> None:
        ctypes.string_at(0)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self, status: int) -> None:
        os._exit(status)

    def exit(self) -> None:
        sys.exit(5)

    def hang(self) -> None:
        time.sleep(600)

    def hang_in_c(self) -> None:
        ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter locked, as careless native code does

    def refuse(self) -> None:
        raise ModelFileError("bad magic", place="x.gguf", expected="GGUF", found="GGML", next_step="convert it")

    def blunder(self) -> None:
        raise ValueError("the wrapper is wrong")

    def panic(self) -> None:
        raise NotAnException("index out of bounds")

    def unportable(self) -> None:
        raise UnportableError("lost in the pipe")

    def unpicklable(self) -> object:
        return lambda: None

    def bytes(self, n: int) -> bytes:
        return bytes(n)

    def count(self, n: int, *, progress: Callable[[int, int], None]) -> int:
        for done in range(1, n + 1):
            progress(done, n)
        return n

    def wait(self, *, progress: Callable[[int, int], None]) -> None:
        progress(1, 2)
        time.sleep(600)

    def child(self) -> int:
        return subprocess.Popen(["sleep", "600"]).pid
