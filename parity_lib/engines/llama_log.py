"""Keep what llama.cpp says: the last lines in memory for errors and read-back, all of it on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections import deque

LOG_LINES = 4000
QUOTED_LINES = 20
LEVEL_WARN = 3  # ggml.h: 0 none, 1 debug, 2 info, 3 warn, 4 error, 5 goes on with the previous line
LEVEL_CONTINUE = 5


class Log:
    """llama.cpp's own words: the last lines in memory, everything from ``info`` up on stderr."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)
        self._open = False  # the last line has no newline yet
        self._level = 0
        self.callback: object = None  # C keeps only a pointer to it; whoever hands it over puts it here

    def write(self, level: int, text: bytes, _user: object) -> None:
        """Take one message; never raise, because C is waiting above."""
        self._level = self._level if level == LEVEL_CONTINUE else level
        if self._level == 1:  # debug: thousands of lines for each context
            return
        words = text.decode("utf-8", "replace")
        with contextlib.suppress(OSError):  # a full disk; what follows is read back, and must not be lost with it
            sys.stderr.write(words)
        if self._open and self._lines:
            last, start = self._lines.pop()
            self._lines.append((max(last, self._level), start + words.rstrip("\n")))
        else:
            self._lines.append((self._level, words.rstrip("\n")))
        self._open = not words.endswith("\n")

    def mark(self) -> None:
        """Forget what was said so far: the next ``text`` starts here."""
        self._lines.clear()
        self._open = False

    def text(self) -> str:
        """Return the lines since the last ``mark``."""
        return "\n".join(line for _, line in self._lines)

    def complaints(self) -> str:
        """Return its warnings and errors, or its last lines if it did not complain, for an error message."""
        loud = [line for level, line in self._lines if level >= LEVEL_WARN]
        lines = loud or [line for _, line in self._lines]
        return "\n".join(["llama.cpp says:", *lines[-QUOTED_LINES:]]) if lines else "llama.cpp says nothing"
