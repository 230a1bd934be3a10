"""The one door to the ``llama_cpp`` package: load it, check that it is the pinned build, keep its log."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import re
import sys
from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from parity_lib.base.errors import PinError
from parity_lib.engines.llamacpp.receipt import FILE_NAME, REBUILD, check_libraries, read_receipt
from parity_lib.records.builds import Receipt

LOG_LINES = 4000
QUOTED_LINES = 20
LEVEL_WARN = 3  # ggml.h: 0 none, 1 debug, 2 info, 3 warn, 4 error, 5 goes on with the previous line
LEVEL_CONTINUE = 5


# Structures, defaults and log lines below were read at this commit; another one needs another reading.
BINDING_VERSION = "0.3.36"
COMMIT = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
GGML_OBJECT_BYTES = 32  # what ggml_tensor_overhead() counts on top of the tensor itself
Ctypes = Any  # a function, structure or pointer of the binding: its type exists only at run time
LIBRARY = re.compile(r"lib(llama|ggml[a-z-]*)\.so[.0-9]*$")


class GgmlTensor(ctypes.Structure):
    """``struct ggml_tensor`` of the pinned commit, which the binding does not declare (64-bit, 336 bytes)."""

    _fields_ = [
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]


# The library's own defaults. A field that sits at another offset than the binding thinks shows up as another value.
MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}
QUANTIZE_DEFAULTS = {
    "nthread": 0,
    "ftype": 7,
    "allow_requantize": False,
    "quantize_output_tensor": True,
    "only_copy": False,
    "pure": False,
    "keep_split": False,
    "dry_run": False,
    "max_buf_size": 8 << 30,
}


@dataclass(frozen=True, slots=True)
class Library:
    """The loaded and checked reference."""

    api: Ctypes  # the module ``llama_cpp.llama_cpp``: ctypes functions, untyped on purpose
    base: ctypes.CDLL  # libggml-base: what the binding does not bind
    commit: str  # as the library says it: short, "-dirty" for every build from the sdist
    receipt: Receipt
    loaded: tuple[str, ...]  # file names
    folder: Path  # that they lie in
    system_info: str
    log: Log


@cache
def load() -> Library:
    """Load llama.cpp into this process, once, and check version, commit, layout and receipt.

    Raises:
        PinError: the package is missing, is another version, or its libraries are not those of the receipt.
    """
    package, api = _import()
    log = Log()
    log.callback = api.llama_log_callback(log.write)
    api.llama_log_set(log.callback, None)
    _expect("llama-cpp-python", "the binding has another version", BINDING_VERSION, package.__version__)
    for file in (package._utils.outnull_file, package._utils.errnull_file):
        atexit.register(file.close)  # the binding leaves the null device open, twice: ResourceWarning
    folder = Path(api._base_path)
    receipt = read_receipt(folder / FILE_NAME)
    _expect("build receipt", "the receipt is of another commit of llama.cpp", COMMIT, receipt.commit)
    loaded = loaded_libraries(folder)
    check_libraries(receipt, loaded)
    # A wheel holds copies where the build had links: libggml-base.so is another file than the libggml-base.so.0 that
    # libllama.so has loaded, and opening it would put a second ggml into the process.
    base = ctypes.CDLL(str(next(path for path in loaded if path.name.startswith("libggml-base.so"))))
    commit = _commit(base)
    _check_layout(api, base)
    api.llama_backend_init()
    info = api.llama_print_system_info().decode().strip(" |")
    return Library(api, base, commit, receipt, tuple(p.name for p in loaded), folder, info, log)


def features(system_info: str) -> dict[str, int]:
    """Return llama.cpp's list of compiled features, ``AVX2 = 1 | ...``, as a mapping."""
    return {name: int(value) for name, value in re.findall(r"([A-Z0-9_]+) = ([0-9]+)", system_info)}


def loaded_libraries(folder: Path) -> tuple[Path, ...]:
    """Return the reference's libraries that this process has mapped; raise ``PinError`` if one is from elsewhere."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return tuple(sorted(p for p in folder.glob("lib*") if LIBRARY.match(p.name)))
    words = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    mapped = sorted({Path(w[5]) for w in words if len(w) == 6 and LIBRARY.match(Path(w[5]).name)})
    for path in mapped:
        if path.parent != folder.resolve():
            raise PinError(
                "a library of the reference was loaded from another folder",
                place=path.name,
                expected="the folder that holds the receipt",
                found=path.parent,
                next_step="unset LD_LIBRARY_PATH and LD_PRELOAD, or remove the other llama.cpp",
            )
    return tuple(mapped)


def _import() -> tuple[ModuleType, Any]:
    try:
        import llama_cpp
        from llama_cpp import llama_cpp as api
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        # AttributeError: the binding asks for a function that the libraries beside it do not have.
        raise PinError(
            "the reference cannot be loaded",
            place="llama_cpp",
            expected=f"llama-cpp-python {BINDING_VERSION}",
            found=f"{type(error).__name__}: {error}",
            next_step=REBUILD,
        ) from error
    return llama_cpp, api


def _commit(base: ctypes.CDLL) -> str:
    base.ggml_commit.restype = ctypes.c_char_p
    commit: str = base.ggml_commit().decode()
    short = commit.removesuffix("-dirty")
    if len(short) < 7 or not COMMIT.startswith(short):
        raise PinError(
            "the library was built from another commit of llama.cpp",
            place="ggml_commit()",
            expected=COMMIT,
            found=commit,
            next_step=REBUILD,
        )
    return commit


def _check_layout(api: Ctypes, base: ctypes.CDLL) -> None:
    base.ggml_tensor_overhead.restype = ctypes.c_size_t
    size = base.ggml_tensor_overhead() - GGML_OBJECT_BYTES
    _expect("struct ggml_tensor", "the structure has another size", ctypes.sizeof(GgmlTensor), size)
    _check_defaults("llama_model_params", api.llama_model_default_params(), MODEL_DEFAULTS)
    _check_defaults("llama_context_params", api.llama_context_default_params(), CONTEXT_DEFAULTS)
    _check_defaults("llama_model_quantize_params", api.llama_model_quantize_default_params(), QUANTIZE_DEFAULTS)


def _check_defaults(name: str, params: Ctypes, expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        found = getattr(params, field, "no such field")
        _expect(f"{name}.{field}", "the structure does not have the pinned layout", value, found)


def _expect(place: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise PinError(what, place=place, expected=expected, found=found, next_step=REBUILD)


class Probe:
    """The loaded and checked library. Raises ``PinError`` if it is not the pinned one."""

    def __init__(self) -> None:
        self._library = load()

    def describe(self) -> dict[str, str]:
        """Return version, commit, ISA target, compiler and compiled features, each as text."""
        receipt = self._library.receipt
        return {
            "version": receipt.version,
            "commit": self._library.commit,
            "target": receipt.target,
            "compiler": receipt.compiler,
            "system_info": self._library.system_info,
        }


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
        """Discard the log so far: the next ``text`` starts here."""
        self._lines.clear()
        self._open = False

    def text(self) -> str:
        """Return the lines since the last ``mark``."""
        return "\n".join(line for _, line in self._lines)

    def complaints(self) -> str:
        """Return llama.cpp's warnings and errors, or its last lines if it logged none, for an error message."""
        loud = [line for level, line in self._lines if level >= LEVEL_WARN]
        lines = loud or [line for _, line in self._lines]
        return "\n".join(["llama.cpp's log:", *lines[-QUOTED_LINES:]]) if lines else "llama.cpp logged no message"

    def reason(self) -> str:
        """Return llama.cpp's last three warnings and errors in one line, or "it gave no reason"."""
        loud = [" ".join(line.split()) for level, line in self._lines if level >= LEVEL_WARN]
        return "; ".join(loud[-3:]) or "it gave no reason"
