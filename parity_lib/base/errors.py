"""The one hierarchy of errors; each message names file, place, expected, found and the next step."""

from __future__ import annotations


class ParityError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        what: what went wrong, a short sentence without a full stop.
        place: the file, tensor, key, prompt or option at fault.
        expected: what would have been right.
        found: what was there instead.
        next_step: what the reader should do about it.

    >>> print(PinError("another file", place="a.gguf", expected="SHA-256 01", found="SHA-256 02", next_step="fetch it"))
    a.gguf: another file; expected SHA-256 01; found SHA-256 02; next: fetch it
    """

    exit_status = 3
    hint: str | None = None  # the next step where an error names none

    def __init__(
        self,
        what: str,
        *,
        place: object = None,
        expected: object = None,
        found: object = None,
        next_step: str | None = None,
    ) -> None:
        self.what = what
        self.place = None if place is None else str(place)
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.next_step = self.hint if next_step is None else next_step
        super().__init__(self._text())

    def _text(self) -> str:
        parts = [self.what if self.place is None else f"{self.place}: {self.what}"]
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.found is not None:
            parts.append(f"found {self.found}")
        if self.next_step is not None:
            parts.append(f"next: {self.next_step}")
        return "; ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # An error crosses the pipe from a worker process; the default would lose the keywords.
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(cls: type[ParityError], state: dict[str, str | None]) -> ParityError:
    what = state["what"]
    return cls(
        what if what is not None else "",
        place=state["place"],
        expected=state["expected"],
        found=state["found"],
        next_step=state["next_step"],
    )


class UsageError(ParityError):
    """A wrong request: an unknown id, a bad option, a bad plan."""

    exit_status = 2


class FixtureError(UsageError):
    """A file under ``fixtures/``, or one of the user's own in its place, cannot be read or contradicts itself."""

    hint = "correct the file"


class SurroundingsError(ParityError):
    """The shell, the user or the machine gives the program something that it cannot work with."""


class PinError(ParityError):
    """A file, library or build is not the pinned one."""


class ModelFileError(ParityError):
    """A GGUF file cannot be read, or asks for what is not supported."""


class EngineError(ParityError):
    """An engine refused, failed or died."""


class WorkerDied(EngineError):
    """A worker process ended by itself; carries its status and its complete stderr.

    Args:
        status: exit status as ``subprocess`` gives it (negative: killed by that signal).
        stderr: everything that the process wrote.
    """

    def __init__(self, what: str, *, status: int | None = None, stderr: str = "", **kw: object) -> None:
        self.status = status
        self.stderr = stderr
        super().__init__(what, **kw)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_died, (self.__dict__.copy(),))


def _rebuild_died(state: dict[str, object]) -> WorkerDied:
    status = state["status"]
    return WorkerDied(
        str(state["what"]),
        status=status if isinstance(status, int) else None,
        stderr=str(state["stderr"]),
        place=state["place"],
        expected=state["expected"],
        found=state["found"],
        next_step=state["next_step"],
    )


class RecordError(ParityError):
    """A stored record is missing, of another version, or does not match its schema."""


class TraceMismatchError(ParityError):
    """Two traces cannot be compared: other positions, other tokens, other vocabulary."""


class ParityFailure(ParityError):
    """The comparison was made and the engines are not at parity, or it could not be completed."""

    exit_status = 1
