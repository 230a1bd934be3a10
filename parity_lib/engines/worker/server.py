"""Serve one engine over a socket: ``python -m parity_lib.engines.worker.server FD PARENT``."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import os
import pickle
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from parity_lib.base.errors import EngineError, ParityError

ENGINES = {
    "llama_cpp": "parity_lib.engines.llamacpp.engine:LlamaCpp",
    "llama_dispatch": "parity_lib.engines.llamacpp.dispatch:LlamaDispatch",
    "llama_taps": "parity_lib.engines.llamacpp.taps:LlamaTaps",
    "llama_perturbed": "parity_lib.engines.llamacpp.perturb:LlamaPerturbed",
    "llama_op": "parity_lib.engines.llamacpp.one_op:LlamaOp",
    "llama_products": "parity_lib.engines.llamacpp.probe:Products",
    "llama_quantize": "parity_lib.engines.llamacpp.quantize:Quantizer",
    "llama_vocabulary": "parity_lib.engines.llamacpp.tokenizer:LlamaVocabulary",
    "burn": "parity_lib.engines.burn.engine:Burn",
    "burn_taps": "parity_lib.engines.burn.taps:BurnTaps",
    "burn_follow": "parity_lib.engines.burn.follow:BurnFollow",
    "tile_replay": "parity_lib.fork.tile_engine:TileReplay",
    "burn_replay": "parity_lib.engines.burn.replay:BurnReplay",
    "burn_kernels": "parity_lib.engines.burn.kernels:BurnKernels",
    "burn_self": "parity_lib.engines.burn.self_check:BurnSelf",
    "burn_split": "parity_lib.engines.burn.split:BurnSplit",
    "burn_site": "parity_lib.engines.burn.site:BurnSite",
    "oracle": "parity_lib.engines.oracle.engine:Oracle",
}
Untyped = Any  # an engine, what it is given and what it answers: any picklable thing

PROGRESS_SECONDS = 0.1  # a report for every row of a small model would cost more than the row
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> int:
    """Build the engine that the first message names, serve calls until ``close``, and return the exit status."""
    fd, parent = int(arguments[0]), int(arguments[1])
    os.set_inheritable(fd, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an abort is wanted as a stack on stderr, not as a core file
    connection: Connection[Any, Any] = Connection(fd)
    die_with(parent, fd)
    kind, kwargs = connection.recv()
    engine = _answer(connection, f"{kind}.start", partial(_build, kind, kwargs), quiet=True)
    while engine is not None:
        try:
            request = connection.recv()
        except EOFError:
            break
        if request is None:
            _answer(connection, f"{kind}.close", getattr(engine, "close", lambda: None))
            break
        _answer(connection, f"{kind}.{request[0]}", partial(_call, engine, connection, *request))
    return 0


def die_with(parent: int, fd: int) -> None:
    """End this process group when the parent is gone, also when native code holds the interpreter.

    Args:
        parent: its process id, or 0 if the kernel's parent-death signal must not be used.
        fd: our end of the socket; the kernel hangs it up when the parent's end closes.
    """
    if parent and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
    threading.Thread(target=_watch, args=(fd,), name="parent-watch", daemon=True).start()


def _watch(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # no event is asked for: only a hang-up or an error wakes us, never data
    poll.poll()
    os.killpg(os.getpgrp(), signal.SIGKILL)


class _Report:
    """Sends (done, total) to the parent, at most every ``PROGRESS_SECONDS``, the last one always."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next or done >= total:
            self._next = now + PROGRESS_SECONDS
            self._connection.send(("progress", (done, total)))


def _build(kind: str, kwargs: dict[str, Any]) -> Untyped:
    module, _, name = ENGINES.get(kind, kind).partition(":")
    if not name:
        raise EngineError(
            "there is no such engine",
            place=kind,
            expected=f"one of {', '.join(ENGINES)}, or package.module:Class",
            found=kind,
            next_step="correct the name",
        )
    return getattr(importlib.import_module(module), name)(**kwargs)


def _call(
    engine: Untyped, connection: Connection[Any, Any], method: str, args: tuple[Any, ...], named: dict[str, Any]
) -> Untyped:
    function = getattr(engine, method, None)
    if method.startswith("_") or not callable(function):
        raise EngineError(
            "the engine has no such method",
            place=f"{type(engine).__name__}.{method}",
            expected="a public method",
            found=method,
            next_step="see parity_lib/engines/worker/protocol.py",
        )
    if "progress" in inspect.signature(function).parameters:
        named["progress"] = _Report(connection)
    return function(*args, **named)


def _answer(
    connection: Connection[Any, Any], place: str, action: Callable[[], Untyped], *, quiet: bool = False
) -> Untyped:
    """Send what ``action`` returns, or the error that it raises; return the value (None after an error)."""
    try:
        value = action()
        connection.send(("return", None if quiet else value))
    except BaseException as error:  # noqa: BLE001 - a Rust panic is a BaseException; the parent decides what to do
        sent = portable(error, place)
        words = "" if sent is error else "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            sys.stderr.write(words)
            sys.stderr.flush()
        connection.send(("raise", (sent, words)))
        return None
    return value


def portable(error: BaseException, place: str) -> ParityError:
    """Return ``error`` if it is one of the project's and survives pickling, else an ``EngineError`` that quotes it."""
    if isinstance(error, ParityError):
        with contextlib.suppress(Exception):
            if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - our own bytes
                return error
    frames = traceback.extract_tb(error.__traceback__)
    where = "-"
    if frames:
        where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name}"
    words = " ".join(str(error).split())
    return EngineError(
        f"the engine raised {type(error).__name__}: {words}",
        place=place,
        expected="an answer, or an error of the project's hierarchy",
        found=f"an error at {where}",
        next_step="this is a defect of the engine or its wrapper; --debug and the worker's log have the traceback",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
