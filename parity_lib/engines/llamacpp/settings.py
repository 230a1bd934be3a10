"""Settings of the reference by field name, and the values that llama.cpp reports it took."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.names import Isa, Settings
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.abi import Ctypes, Library
from parity_lib.engines.llamacpp.receipt import REBUILD

FLASH_ATTN_DISABLED, FLASH_ATTN_ENABLED = 0, 1  # llama.h; -1 is auto
TYPE_F32, TYPE_F16 = 0, 1  # ggml.h
LOAD_MMAP = 1  # llama.h; the same bits as reading into memory, and pages that two workers share
N_UBATCH = 512  # rows of one graph, and so the size of the logits buffer: N_UBATCH x n_vocab x 4 bytes

# All run on the CPU alone and with a fixed number of threads; everything not named is llama.cpp's own default.
_STRICT_MODEL = {"n_gpu_layers": 0, "use_extra_bufts": False, "load_mode": LOAD_MMAP, "check_tensors": True}
MODEL: dict[Settings, dict[str, Any]] = {
    Settings.STRICT: _STRICT_MODEL,
    Settings.FLASH_F16: _STRICT_MODEL,
    Settings.REPACKED: _STRICT_MODEL | {"use_extra_bufts": True},
    Settings.DEFAULT: {"n_gpu_layers": 0},
}
_STRICT_SIZES = {
    "n_batch": N_UBATCH,
    "n_ubatch": N_UBATCH,
    "n_seq_max": 1,
    "op_offload": False,
    "no_perf": True,
}
# An F32 cache needs flash attention off: with it on, the graph casts the cache to F16.
_STRICT_CONTEXT = {"flash_attn_type": FLASH_ATTN_DISABLED, "type_k": TYPE_F32, "type_v": TYPE_F32} | _STRICT_SIZES
CONTEXT: dict[Settings, dict[str, Any]] = {
    Settings.STRICT: _STRICT_CONTEXT,
    Settings.REPACKED: _STRICT_CONTEXT,
    Settings.FLASH_F16: {"flash_attn_type": FLASH_ATTN_ENABLED, "type_k": TYPE_F16, "type_v": TYPE_F16} | _STRICT_SIZES,
    Settings.DEFAULT: {},
}
# llama.cpp reads these once for each process. The tiled product changes K-quants (NMSE 2e-4) and needs 8 rows or more.
_PLAIN, _TILED = {"GGML_CPU_TILED_MM": "0"}, {"GGML_CPU_TILED_MM": "1"}
ENVIRONMENT = {
    Settings.STRICT: _PLAIN,
    Settings.FLASH_F16: _PLAIN,
    Settings.REPACKED: _PLAIN,
    Settings.DEFAULT: _TILED,
}
# Not a bit depends on how threads wait for each other, but time does: on two cores that other processes wanted too,
# 40 tokens of a 135M model took 5 s spinning (the default, and as deployed) and 0.7 s asleep. A short spin before they
# sleep (libgomp's unit, some 10 us) costs nothing there, and saves the waking of them at each of the 573 stops of a
# capture: without it they are 26 % of a pass, with it 3 %.
ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
WAITING: dict[Settings, dict[str, str]] = {
    Settings.STRICT: ASLEEP,
    Settings.FLASH_F16: ASLEEP,
    Settings.REPACKED: ASLEEP,
    Settings.DEFAULT: {},
}
LIB_PATH = "LLAMA_CPP_LIB_PATH"  # tells the binding where its libraries are
HARMLESS = ("GGML_NO_BACKTRACE", LIB_PATH)
# Which build serves which ISA target; the widest instructions of a build are the ones its kernels use.
FEATURE = {Isa.AVX2: "AVX2", Isa.AVX512: "AVX512", Isa.AMX: "AMX_INT8", Isa.NEON: "NEON"}
READ_BACK = {
    "flash_attn": re.compile(r"(?:flash_attn +=|Flash Attention) (\w+)"),
    "type_k": re.compile(r"\bK \((\w+)\)"),
    "type_v": re.compile(r"\bV \((\w+)\)"),
}
# What the context must say that it has. Without this, settings that were not taken would give the strict rows again,
# and the reference would seem to agree with itself. "auto" resolves to enabled on the CPU.
_FLASH = {"flash_attn": "enabled", "type_k": "f16", "type_v": "f16"}
_UNFUSED = {"flash_attn": "disabled", "type_k": "f32", "type_v": "f32"}
MUST_READ_BACK = {
    Settings.STRICT: _UNFUSED,
    Settings.REPACKED: _UNFUSED,
    Settings.FLASH_F16: _FLASH,
    Settings.DEFAULT: _FLASH,
}


def worker_env(settings: Settings | str) -> dict[str, str]:
    """Return the switches that a worker process with these settings must be started with."""
    return ENVIRONMENT[Settings(settings)] | WAITING[Settings(settings)]


def asked(settings: Settings) -> dict[str, Any]:
    """Return the name of ``settings`` and the fields that they set; everything else is llama.cpp's default."""
    return {"name": str(settings), "model_params": MODEL[settings], "context_params": CONTEXT[settings]}


def check_environment(settings: Settings) -> dict[str, str]:
    """Return llama.cpp's switches in this process; raise ``EngineError`` unless they are those of ``settings``."""
    found = {key: value for key, value in os.environ.items() if key.startswith(("GGML_", "LLAMA_"))}
    switches = {key: value for key, value in found.items() if key not in HARMLESS}
    if switches != ENVIRONMENT[settings]:
        raise EngineError(
            "the process was started with other switches than these settings need",
            place=f"settings {settings}",
            expected=ENVIRONMENT[settings],
            found=switches,
            next_step="start the engine with Worker(..., env=worker_env(settings))",
        )
    return found


def check_isa(library: Library, isa: Isa, compiled: Mapping[str, int]) -> None:
    """Raise ``PinError`` unless the loaded build is of the ISA target ``isa`` and this machine can run it."""
    target = library.receipt.target
    wider = isa is Isa.AVX2 and compiled.get(FEATURE[Isa.AVX512], 0)
    if target != isa or not compiled.get(FEATURE[isa]) or wider:
        raise PinError(
            "the loaded build of llama.cpp is of another ISA target",
            place="isa",
            expected=isa,
            found=f"ISA target {target}; {library.system_info}",
            next_step=f"{REBUILD} --target {isa}; or ask for isa {target}",
        )
    needed = library.receipt.cpu_flags
    missing = machine.missing_flags(needed)
    if missing:
        raise PinError(
            "this machine lacks instructions that the build of llama.cpp uses",
            place=f"ISA target {target}",
            expected=", ".join(needed),
            found=f"without {', '.join(missing)}",
            next_step=f"{REBUILD} --ISA target host",
        )


def model_params(library: Library, settings: Settings) -> Ctypes:
    """Return ``llama_model_params`` of ``settings``."""
    return _set(library.api.llama_model_default_params(), MODEL[settings])


def context_params(library: Library, settings: Settings, n_ctx: int, n_threads: int) -> Ctypes:
    """Return ``llama_context_params`` of ``settings`` for ``n_ctx`` positions (llama.cpp rounds up to 256)."""
    sizes = {"n_ctx": n_ctx, "n_threads": n_threads, "n_threads_batch": n_threads}
    return _set(library.api.llama_context_default_params(), CONTEXT[settings] | sizes)


def read_back(library: Library, context: Ctypes, settings: Settings, log: str) -> dict[str, Any]:
    """Return what the context really has, from its getters and from ``log``, its own words at creation.

    Raises:
        EngineError: it does not say what it has, or the settings were not taken.
    """
    names = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch")
    taken: dict[str, Any] = {name: int(getattr(library.api, f"llama_{name}")(context)) for name in names}
    for name, pattern in READ_BACK.items():
        said = pattern.findall(log)
        taken[name] = said[-1] if said else "not said"  # "auto" is followed by what it was resolved to
    must = MUST_READ_BACK[settings]
    wrong = {name: taken[name] for name, value in must.items() if taken[name] != value}
    if wrong:
        raise EngineError(
            "llama.cpp did not take the settings",
            place=f"settings {settings}",
            expected=must,
            found=wrong,
            next_step=REBUILD,
        )
    return taken


def _set(params: Ctypes, fields: Mapping[str, Any]) -> Ctypes:
    known = {field[0] for field in params._fields_}
    for name, value in fields.items():
        if name not in known:  # ctypes would take any attribute and pass nothing on
            raise PinError(
                "the binding has no such field",
                place=f"{type(params).__name__}.{name}",
                expected="a field of the pinned version",
                found=sorted(known),
                next_step=REBUILD,
            )
        setattr(params, name, value)
    return params
