"""Where a process died: the instruction that a fatal signal stopped at, written by the process itself, read by another.

The handler is a C callback of ctypes. It runs on the thread that faulted, which is inside a foreign call and so does
not hold the interpreter. It writes one line, puts the default action back and returns: the instruction faults again and
the process ends by its own signal, with the status that it would have had.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SIGNALS = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE)
PROGRAM_COUNTER = {"x86_64": 168, "aarch64": 440}  # bytes from the start of Linux's ucontext_t (sys/ucontext.h)
CODE_BYTES = 15  # of the longest x86 instruction
SA_SIGINFO = 4  # bits/sigaction.h
OBJDUMP = {"x86_64": "i386:x86-64", "aarch64": "aarch64"}
LINE = re.compile(r"^FATAL (SIG\w+) pc=(\w+) library=(\S*) offset=(\w+) code=(\w*)$", re.MULTILINE)

_LIBC = ctypes.CDLL(None)
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """``struct sigaction`` of glibc on Linux, 64 bit."""

    _fields_ = [
        ("handler", _Handler),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


@dataclass(frozen=True, slots=True)
class Fatal:
    """What a process was at when a signal ended it."""

    signal: str  # "SIGILL"
    library: str  # file name
    offset: int  # of the instruction in the library's file
    code: bytes  # from the instruction on
    instruction: str  # as a disassembler reads it; the bytes in hex where there is none

    def __str__(self) -> str:
        return f"{self.signal} at `{self.instruction}` in {self.library or 'no library'}+{self.offset:#x}"


def _write(number: int, _info: int, context: int) -> None:
    try:
        counter = ctypes.c_uint64.from_address(context + PROGRAM_COUNTER[platform.machine()]).value
        library, start, end = _mapped(counter)
        code = ctypes.string_at(counter, min(CODE_BYTES, end - counter)) if end > counter else b""
        name = signal.Signals(number).name
        line = f"\nFATAL {name} pc={counter:#x} library={library} offset={counter - start:#x} code={code.hex()}\n"
        os.write(2, line.encode())
    finally:
        _LIBC.signal(number, None)  # SIG_DFL; Python's own is for the main thread alone


_KEPT = _Handler(_write)  # as long as the process: the kernel knows its address


def tell_where_it_dies() -> None:
    """Let this process write to stderr at which instruction a fatal signal stopped it; Linux only, else do nothing."""
    if platform.system() != "Linux" or platform.machine() not in PROGRAM_COUNTER:
        return
    action = _Action(handler=_KEPT, flags=SA_SIGINFO)
    for number in SIGNALS:
        _LIBC.sigaction(int(number), ctypes.byref(action), None)


def read_fatal(log: str) -> Fatal | None:
    """Return what a process wrote when it died, disassembled here; None if it wrote nothing of the kind."""
    found = LINE.findall(log)
    if not found:
        return None
    name, _, library, offset, code = found[-1]
    raw = bytes.fromhex(code)
    lines = disassemble(raw)
    return Fatal(name, Path(library).name, int(offset, 16), raw, lines[0] if lines else raw.hex(" "))


def disassemble(code: bytes) -> list[str]:
    """Return the instructions of some machine code of this architecture, in AT&T's syntax; none without objdump."""
    objdump, kind = shutil.which("objdump"), OBJDUMP.get(platform.machine())
    if objdump is None or kind is None or not code:
        return []
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(code)
        file.flush()
        words = [objdump, "-D", "-b", "binary", "-m", kind, "--insn-width=15", file.name]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    lines = [line.split("\t") for line in said.splitlines() if re.match(r"\s+[0-9a-f]+:\t", line)]
    return [" ".join(line[-1].split()) for line in lines]


def _mapped(address: int) -> tuple[str, int, int]:
    """Return (file, address at which the file's first byte would lie, end) of what is mapped at an address."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:  # noqa: PTH123 - as little as can be here
        for line in maps:
            fields = line.split()
            start, end = (int(word, 16) for word in fields[0].split("-"))
            if start <= address < end:
                return fields[5] if len(fields) > 5 else "", start - int(fields[2], 16), end
    return "", 0, 0
