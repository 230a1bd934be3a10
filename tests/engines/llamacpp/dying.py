"""Engines that multiply as a broken build of llama.cpp does: they execute real code that faults, or are wrong."""

from __future__ import annotations

import ctypes
import mmap

from parity_lib.engines.worker.fatal import tell_where_it_dies

UD2 = bytes.fromhex("0f0b")
TILELOADD = bytes.fromhex("c4e27b4b0419")  # (%rcx,%rbx,1),%tmm0: without a configuration it is undefined on every CPU
READ_NULL = bytes.fromhex("31c0488b00")  # xor %eax,%eax; mov (%rax),%rax


class _Executes:
    """Executes some code when it is asked for a product with Q8_0, on a thread that Python does not know."""

    code = UD2

    def __init__(self, n_threads: int) -> None:
        del n_threads
        tell_where_it_dies()

    def error(self, kind: str, buffer: str, n_rows: int) -> float:
        if kind == "Q8_0" and not buffer:
            flags, prot = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=flags, prot=prot)
            page.write(self.code)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
            libc.pthread_create(ctypes.byref(thread), None, ctypes.c_void_p(address), None)
            libc.pthread_join(thread, None)
        return n_rows * 0.0


class Undefined(_Executes):
    pass


class Tiles(_Executes):
    code = TILELOADD


class Null(_Executes):
    code = READ_NULL


class Aborts:
    def __init__(self, n_threads: int) -> None:
        del n_threads
        tell_where_it_dies()

    def error(self, kind: str, buffer: str, n_rows: int) -> float:
        ctypes.CDLL(None).abort()
        return len(kind + buffer) * float(n_rows)


class Wrong:
    """Right but for one type in one buffer."""

    def __init__(self, n_threads: int) -> None:
        del n_threads

    def error(self, kind: str, buffer: str, n_rows: int) -> float:
        return float("nan") if (kind, buffer, n_rows) == ("Q4_K", "CPU_REPACK", 33) else 5e-5
