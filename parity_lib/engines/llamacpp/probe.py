"""Tries a new build of llama.cpp: a product of each weight type in a worker process, before any run uses it.

Each type is multiplied as the file has it, and in each buffer that the build re-orders it for. A build that dies is
refused with the signal, the instruction and the likely cause; one that multiplies wrongly is refused too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import EngineError, PinError, WorkerDied
from parity_lib.base.files import write_atomic
from parity_lib.base.names import Isa, Settings
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.abi import GgmlTensor
from parity_lib.engines.llamacpp.buffers import REORDERS, InitParams, Reordered
from parity_lib.engines.llamacpp.one_op import TYPES, LlamaOp
from parity_lib.engines.llamacpp.settings import LIB_PATH, worker_env
from parity_lib.engines.worker.client import Worker, describe_status
from parity_lib.engines.worker.fatal import Fatal, read_fatal, tell_where_it_dies
from parity_lib.numerics.ggml_activations import ACTIVATIONS
from parity_lib.records.builds import Receipt
from parity_lib.records.traces import F32

Bytes = npt.NDArray[np.uint8]
ROWS, COLUMNS, N_IN = (1, 33), 64, 512  # rows of activations; weight rows; values of a row: two blocks of K-quants
LIMIT = 1e-2
"""Of sum (found - exact)^2 over sum exact^2: 8 bits of an activation cost 5e-5, another function costs 1."""
SECONDS = 120.0  # for one product: they take milliseconds, and what hangs is no build either
REFUSED = "parity-probe-refused.txt"  # beside a wheel whose build was refused: why

NEXT = "correct the flags of the ISA target in fixtures/gguf_parity.toml or take another compiler, and build it again"
TILES = ("tile", "tdp", "ldtilecfg")  # how the instructions on tiles begin

TILE_CAUSE = (
    "no valid tile configuration is loaded: GCC 12 drops the stores of `_tile_loadconfig`'s operand (build with "
    "-fno-tree-dse -fno-dse; docs/findings.md), or Linux has not granted the tiles"
)
CAUSES: Mapping[str, str] = {
    "SIGILL": "the build uses an instruction that this CPU does not have, or that its emulator does not know",
    "SIGSEGV": "the code reads or writes memory that is not its own, or moves an unaligned address by an aligned move",
    "SIGBUS": "the code reads a file that was cut off while it was mapped, or an unaligned address",
    "SIGFPE": "an integer is divided by zero",
}


class Products(LlamaOp):
    """The engine kind ``llama_products``: multiplies small matrices with the loaded ggml; reports where it dies."""

    def __init__(self, n_threads: int = 2) -> None:
        tell_where_it_dies()
        super().__init__(n_threads)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._base.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
        self._base.ggml_quantize_chunk.restype = ctypes.c_size_t

    def error(self, kind: str, buffer: str, n_rows: int) -> float:
        """Return the normalised square error of one product with a weight of a type, in a buffer; "" is the file's.

        Raises:
            EngineError: ggml refused, or does not re-order this type there.
        """
        random = np.random.default_rng(7)
        weights = random.standard_normal((COLUMNS, N_IN), np.float32)
        x = random.standard_normal((n_rows, N_IN), np.float32)
        rows = self._quantised(kind, weights)
        exact = x.astype(np.float64) @ _values(kind, rows).astype(np.float64).T
        found = self._product(kind, buffer, rows, x)
        return float(((found - exact) ** 2).sum() / (exact**2).sum())

    def _quantised(self, kind: str, weights: F32) -> Bytes:
        n_values, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        out = np.zeros((COLUMNS, N_IN // n_values * n_bytes), np.uint8)
        if kind == "F32":
            return weights.view(np.uint8)
        self._base.ggml_quantize_chunk(TYPES[kind], weights.ctypes.data, out.ctypes.data, 0, COLUMNS, N_IN, None)
        return out

    def _product(self, kind: str, buffer: str, rows: Bytes, x: F32) -> F32:
        size = (16 << 20) + 8 * (rows.nbytes + x.nbytes)
        context = self._base.ggml_init(InitParams(size, None, False))
        if not context:
            raise EngineError("ggml has no memory for a product", place=kind, expected=f"{size} bytes")
        moved = Reordered(self._base, self._cpu, buffer, TYPES[kind], rows, N_IN) if buffer else None
        try:
            weight = moved.tensor if moved else self._tensor(context, kind, rows, (N_IN, COLUMNS))
            given = self._tensor(context, "F32", x, (N_IN, len(x)))
            out = self._base.ggml_mul_mat(context, weight, given)
            graph = self._base.ggml_new_graph(context)
            self._base.ggml_build_forward_expand(graph, out)
            status = self._cpu.ggml_graph_compute_with_ctx(context, graph, self._n_threads)
            if status != 0:
                raise EngineError("ggml could not compute a product", place=kind, found=f"status {status}")
            data = ctypes.cast(GgmlTensor.from_address(out).data, ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(data, (len(x), COLUMNS)).copy()
        finally:
            if moved:
                moved.free()
            self._base.ggml_free(context)

    def _tensor(self, context: int, kind: str, values: F32 | Bytes, dims: tuple[int, int]) -> int:
        tensor: int = self._base.ggml_new_tensor_4d(context, TYPES[kind], *dims, 1, 1)
        raw = np.ascontiguousarray(values)
        ctypes.memmove(GgmlTensor.from_address(tensor).data, raw.ctypes.data, raw.nbytes)
        return tensor


def _values(kind: str, rows: Bytes) -> F32:
    stored = rows.view({"F32": "<f4", "F16": "<f2"}.get(kind, np.uint8))
    return np.asarray(gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]), dtype=np.float32)


def probe(receipt: Receipt, folder: Path | None = None, *, engine: str = "llama_products") -> int:
    """Multiply by every weight type with a build, in a child process; return the number of products.

    Args:
        receipt: of the build.
        folder: of its libraries; None is the installed build.
        engine: which engine multiplies, for tests.

    Raises:
        PinError: this CPU lacks instructions that the build uses, so that it cannot be tried here.
        EngineError: the build died, or gave a wrong product.
    """
    missing = machine.missing_flags(receipt.cpu_flags)
    if missing:
        raise PinError(
            "this machine lacks the instructions of the build, so that it cannot be tried here",
            place=f"llama.cpp for {receipt.target}",
            expected=", ".join(receipt.cpu_flags),
            found=f"without {', '.join(missing)}",
            next_step=f"try it on a machine of that ISA target: parity isa build {receipt.target}",
        )
    env = worker_env(Settings.STRICT) | ({} if folder is None else {LIB_PATH: str(folder)})
    at, wrong, n_tried = "its start", list[str](), 0
    try:
        with Worker(engine, {"n_threads": 2}, env=env, timeout=SECONDS) as child:
            for kind, buffer, n_rows in _products(receipt):
                at = f"a product of {n_rows} rows with {kind}{f' in the buffer {buffer}' if buffer else ''}"
                error = child.call("error", kind, buffer, n_rows, timeout=SECONDS)
                wrong += [f"{at}: NMSE {error:.2g}"] if not error <= LIMIT else []
                n_tried += 1
    except WorkerDied as death:
        raise _died(receipt, at, death) from death
    if wrong:
        raise EngineError(
            "the build of llama.cpp multiplies wrongly",
            place=f"ISA target {receipt.target}",
            expected=f"NMSE at most {LIMIT}",
            found="; ".join(wrong),
            next_step=NEXT,
        )
    return n_tried


def _products(receipt: Receipt) -> Iterator[tuple[str, str, int]]:
    """Yield (weight type, buffer, rows of activations) of what a build is tried on.

    Which types a build re-orders on ARM depends on more than its target: there only the file's own order is tried.
    """
    reorders = {} if receipt.target == Isa.NEON else REORDERS[Isa(receipt.target)]
    tried = [(kind, "") for kind in ACTIVATIONS]
    tried += [(kind, buffer) for buffer, kinds in reorders.items() for kind in kinds if kind in ACTIVATIONS]
    return ((kind, buffer, n_rows) for kind, buffer in tried for n_rows in ROWS)


def _died(receipt: Receipt, at: str, death: WorkerDied) -> EngineError:
    """Return the refusal of a build that ended its process: signal, instruction, likely cause."""
    fatal = read_fatal(death.stderr)
    words = describe_status(death.status) if fatal is None else str(fatal)
    return EngineError(
        "the build of llama.cpp dies",
        place=f"ISA target {receipt.target}, at {at}",
        expected="a product",
        found=f"{words}; likely cause: {likely_cause(fatal)}",
        next_step=NEXT,
    )


def likely_cause(fatal: Fatal | None) -> str:
    """Return what most often ends a process so."""
    if fatal is None:
        return "not known; the process wrote no address, read its stderr"
    if fatal.signal == "SIGILL" and fatal.instruction.startswith(TILES):
        return TILE_CAUSE
    return CAUSES[fatal.signal]


def refuse(wheel: Path, error: EngineError) -> None:
    """Note beside a wheel that its build was refused, and why; no cell loads it from then on."""
    write_atomic(wheel.parent / REFUSED, f"{error}\n".encode())


def accept(wheel: Path) -> None:
    """Forget an earlier refusal of a wheel."""
    (wheel.parent / REFUSED).unlink(missing_ok=True)


def check_accepted(wheel: Path) -> None:
    """Raise ``PinError`` if a wheel's build was refused when it was tried."""
    note = wheel.parent / REFUSED
    if note.is_file():
        raise PinError(
            "the build of llama.cpp was refused when it was tried",
            place=wheel.name,
            expected="a build that multiplies by every weight type",
            found=note.read_text(errors="replace").strip(),
            next_step=NEXT,
        )
