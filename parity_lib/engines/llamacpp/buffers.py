"""Weights as ggml's CPU backend re-orders them for kernels of its own: ``CPU_REPACK``, ``AMX``.

Such a weight lies in a buffer of another type than the file's; which kernels a product runs follows from its buffer
alone. Declarations are those of ``ggml-backend.h`` and ``ggml-alloc.h`` at the pinned commit; the list of buffer types
is asked for as ``llama_model_load`` does (``make_cpu_buft_list``).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Isa
from parity_lib.engines.llamacpp.abi import GgmlTensor

PLAIN = ("", "CPU", "CPU_Mapped")  # as the file has them
REPACK, AMX = "CPU_REPACK", "AMX"
REORDERS: Mapping[Isa, Mapping[str, tuple[str, ...]]] = {
    Isa.AVX2: {REPACK: ("Q4_0", "Q4_K", "IQ4_NL")},
    Isa.AVX512: {REPACK: ("Q4_0", "Q4_K", "IQ4_NL", "Q2_K")},
    Isa.AMX: {AMX: ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"), REPACK: ("IQ4_NL", "Q2_K")},
    Isa.NEON: {REPACK: ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")},
}
"""For each target, the buffer that its build prefers for weights of some types, where the shape allows (ggml-cpu's
``repack.cpp`` and ``amx.cpp``; tiles come before ``CPU_REPACK``). NEON's depend on the CPU's own extensions too."""
AMX_TYPES = frozenset({1, 2, 3, 8, 12, 13, 14, 23})  # F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_XS (amx.cpp)
ROWS = 32  # a re-ordered weight has a multiple of so many: 8 for CPU_REPACK, two tiles of 16 for AMX
Pointer = Any  # an opaque object of ggml's


def reordering(target: str, types: Set[str]) -> frozenset[str]:
    """Return the buffers in which a target's build may put weights of a file that has these tensor types."""
    return frozenset(buffer for buffer, held in REORDERS[Isa(target)].items() if types & set(held))


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Reordered:
    """One weight in a buffer of ggml's own order; ``free`` it after the graph that uses it.

    Args:
        base: ``libggml-base``, declared.
        cpu: ``libggml-cpu``, declared.
        buffer: name of the buffer type, ``CPU_REPACK``.
        number: of the weight's ``ggml_type``.
        rows: the weight's blocks, ``(n_out, bytes of a row)``; zeros fill up to a multiple of ``ROWS``.
        n_in: values of a row.

    Raises:
        EngineError: this build or this machine has no such buffer, or does not re-order this type there.
    """

    def __init__(
        self, base: ctypes.CDLL, cpu: ctypes.CDLL, buffer: str, number: int, rows: npt.NDArray[np.uint8], n_in: int
    ) -> None:
        self._base = base
        kind = _buffer_type(base, cpu, buffer)
        n_out = -(-len(rows) // ROWS) * ROWS
        whole = np.zeros((n_out, rows.shape[1]), np.uint8)
        whole[: len(rows)] = rows
        self._context = base.ggml_init(InitParams(2 * base.ggml_tensor_overhead(), None, True))
        self.tensor: Pointer = base.ggml_new_tensor_4d(self._context, number, n_in, n_out, 1, 1)
        self._buffer = base.ggml_backend_alloc_ctx_tensors_from_buft(self._context, kind)
        # Without an order for this type there is nothing to call, and ggml would call it; AMX takes it and gives
        # whatever its memory held.
        known = buffer != AMX or number in AMX_TYPES
        if not self._buffer or not GgmlTensor.from_address(self.tensor).extra or not known:
            self.free()
            raise EngineError("ggml does not re-order this weight here", place=buffer, found=f"ggml_type {number}")
        base.ggml_backend_tensor_set(self.tensor, whole.ctypes.data, 0, whole.nbytes)

    def free(self) -> None:
        """Give ggml its memory back."""
        if self._buffer:
            self._base.ggml_backend_buffer_free(self._buffer)
        self._base.ggml_free(self._context)


def _buffer_type(base: ctypes.CDLL, cpu: ctypes.CDLL, name: str) -> Pointer:
    registry = cpu.ggml_backend_cpu_reg()
    found = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)
    kinds = listed(base.ggml_backend_reg_dev_get(registry, 0))
    names: list[str] = []
    for kind in itertools.takewhile(bool, (kinds[i] for i in itertools.count())):  # a null ends the list
        names.append(base.ggml_backend_buft_name(kind).decode())
        if names[-1] == name:
            return kind
    raise EngineError(
        "this build of ggml, or this machine, has no such buffer",
        place="llama.cpp's CPU backend",
        expected=name,
        found=names,
        next_step="recompute it on a machine of the ISA target that it was made on",
    )


def declare(base: ctypes.CDLL, cpu: ctypes.CDLL) -> None:
    """Declare the C functions that ``Reordered`` calls."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for library, name, arguments, result in (
        (cpu, "ggml_backend_cpu_reg", [], pointer),
        (base, "ggml_tensor_overhead", [], size),
        (base, "ggml_backend_reg_get_proc_address", [pointer, ctypes.c_char_p], pointer),
        (base, "ggml_backend_reg_dev_get", [pointer, size], pointer),
        (base, "ggml_backend_buft_name", [pointer], ctypes.c_char_p),
        (base, "ggml_backend_alloc_ctx_tensors_from_buft", [pointer, pointer], pointer),
        (base, "ggml_backend_tensor_set", [pointer, pointer, size, size], None),
        (base, "ggml_backend_buffer_free", [pointer], None),
    ):
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, result
