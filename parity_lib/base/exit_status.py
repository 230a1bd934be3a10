"""How every program of this project ends: the one place that turns what happened into an exit status."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from parity_lib.base.errors import ParityError
from parity_lib.base.surroundings import CACHE, ROOT, cache_dir, settle

OK, DIVERGED, USAGE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 130
STATUSES = (OK, DIVERGED, USAGE, INCOMPLETE, INTERRUPTED)
LOGS = ROOT / "reports" / "errors"  # where tracebacks go; the temporary folder where this cannot be written

# What an error of the operating system asks for; (what is expected, what to do).
_ADVICE: Mapping[int, tuple[str, str]] = {
    errno.ENOSPC: ("room on the disk", "free some space, or give another --out"),
    errno.EDQUOT: ("room within the quota", "free some space, or give another --out"),
    errno.EFBIG: ("a file that may grow so large", "raise the limit of file sizes, or free some space"),
    errno.EACCES: ("the right to read or write it", f"put its permissions right, or give another --out or {CACHE}"),
    errno.EPERM: ("the right to read or write it", f"put its permissions right, or give another --out or {CACHE}"),
    errno.EROFS: ("a disk that can be written", f"give another --out or {CACHE}"),
    errno.ENOENT: ("a file or folder that is there", "correct the path"),
    errno.EMFILE: ("a free file handle", "raise the limit of open files: ulimit -n 4096"),
    errno.ENFILE: ("a free file handle", "close other programs, or raise the system's limit of open files"),
    errno.ENOMEM: ("free memory", "free some memory, or run fewer cells at once"),
}


def ended(run: Callable[[], object], *, program: str, debug: bool = False) -> int:
    """Run a program and return its exit status: what ``run`` returns, or the status of its error, shown as one line.

    Args:
        run: the program's work; returns one of ``STATUSES``.
        program: its name, for messages.
        debug: show the traceback of an error.

    An error that is not of the project's hierarchy is never a verdict: 3, and its traceback is in a file.
    """
    try:
        settle()
        status = run()
        if type(status) is not int or status not in STATUSES:
            raise RuntimeError(f"the program ended with {status!r} instead of an exit status")  # noqa: TRY301
    except KeyboardInterrupt:
        _say("interrupted")
        status = INTERRUPTED
    except ParityError as error:
        _explain(f"{program}: {type(error).__name__}: {error}", error, debug=debug)
        status = error.exit_status
    except BaseException as error:  # noqa: BLE001 - whatever it was, a defect must not pass for a verdict
        _explain(f"{program}: {_sentence(error)}; log: {_keep_traceback(error)}", error, debug=debug)
        status = INCOMPLETE
    return _flushed(status, program)


def guard_streams() -> None:
    """Make stdout and stderr survive a closed pipe (``| head -1``) and characters that the terminal lacks.

    For the entry of a process only. What is written after the reader is gone goes nowhere, and the exit status stays
    what the run says. A stream that the shell closed is opened on the null device, before a file takes its number.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout, sys.stderr = _guarded(1, sys.stdout), _guarded(2, sys.stderr)


class _Stream(io.FileIO):
    """A descriptor that leads to the null device once its reader is gone."""

    def write(self, data: object, /) -> int | None:  # type: ignore[override]  # whatever holds bytes
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            _to_nowhere(self.fileno())
            return super().write(data)  # type: ignore[arg-type]


def _to_nowhere(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def _guarded(number: int, before: TextIO | None) -> TextIO:
    encoding = "utf-8" if before is None else before.encoding
    raw = _Stream(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def _sentence(error: BaseException) -> str:
    """Return an error as one line: what happened, where, what was expected, what to do next."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        expected, step = _ADVICE.get(error.errno, ("a file or folder that can be used", "correct the path"))
        found = error.strerror or error
        if _in_cache(error.filename) and error.errno != errno.ENOENT:
            step = f"set {CACHE} to a folder of your own on a disk with room"
        return f"{error.filename}: cannot be read or written; expected {expected}; found {found}; next: {step}"
    if isinstance(error, OSError) and error.errno is not None and error.errno in _ADVICE:
        expected, step = _ADVICE[error.errno]
        return f"a file or stream cannot be used; expected {expected}; found {error.strerror or error}; next: {step}"
    if isinstance(error, MemoryError):
        words = f"MemoryError: {error}" if str(error) else "MemoryError"
        return (
            f"memory ran out; expected free memory; found {words}; next: use a smaller model, or fewer jobs or threads"
        )
    words = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""
    return (
        f"{place}{type(error).__name__}: {words}; expected a verdict or a refusal; found a defect of the program, "
        "and nothing was judged; next: run it again with --debug, and report its log"
    )


def _in_cache(name: object) -> bool:
    with contextlib.suppress(ParityError, TypeError):
        return Path(os.fsdecode(name)).is_relative_to(cache_dir())  # type: ignore[arg-type]  # what is no path raises
    return False


def _keep_traceback(error: BaseException) -> str:
    """Write an error's traceback and return the file's path, or why there is none."""
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}"
    why = "no folder"
    for folder in (LOGS, None):
        try:
            folder = Path(tempfile.gettempdir()) if folder is None else folder
            folder.mkdir(parents=True, exist_ok=True)
            number, path = tempfile.mkstemp(".log", f"parity-{name}-", folder)
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{sys.orig_argv}\n")
                traceback.print_exception(error, file=file)
        except Exception as problem:  # noqa: BLE001 - the first error is the one to report
            why = f"{type(problem).__name__}: {problem}"
        else:
            return path
    return f"none ({why})"


def _explain(sentence: str, error: BaseException, *, debug: bool) -> None:
    if debug:
        with contextlib.suppress(Exception):
            traceback.print_exception(error)
    _say(sentence)


def _say(line: str) -> None:
    """Write a line to stderr; a stderr that cannot be written must not change how the program ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _flushed(status: int, program: str) -> int:
    """Return ``status``, or 3 for 0 where what was printed cannot be written: the interpreter would end with 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere(sys.stdout.fileno())
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer would fail again at the end
            _to_nowhere(sys.stdout.fileno())
        if status == OK:
            _say(f"{program}: the output cannot be written; found {error}; next: give stdout a place with room")
            return INCOMPLETE
    return status
