"""Make a GGUF file of another type from one that exists: twins and quantisations, by llama.cpp itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from parity_lib.base.errors import EngineError, UsageError
from parity_lib.base.files import FREE_CACHE, replacing
from parity_lib.engines.llamacpp.abi import Library, Log, load
from parity_lib.engines.worker.client import Worker
from parity_lib.engines.worker.protocol import Engine, require_model

PREFIX = "LLAMA_FTYPE_MOSTLY_"
ALL_F32 = "LLAMA_FTYPE_ALL_F32"


def quantize_file(src: Path | str, dst: Path | str, ftype: str, *, n_threads: int = 2, log: Path | None = None) -> None:
    """Write ``dst`` from ``src`` in a worker process; see :func:`quantize_here` for arguments and errors."""
    with Worker("llama_quantize", {"n_threads": n_threads}, log=log) as worker:
        worker.call("quantize", str(src), str(dst), ftype)


class Quantizer(Engine):
    """The engine kind ``llama_quantize``: no model is loaded."""

    def __init__(self, n_threads: int = 2) -> None:
        self._n_threads = n_threads

    def quantize(self, src: str, dst: str, ftype: str) -> None:
        """Write ``dst`` from ``src`` as ``ftype``."""
        quantize_here(Path(src), Path(dst), ftype, self._n_threads)


def quantize_here(src: Path, dst: Path, ftype: str, n_threads: int) -> None:
    """Write ``dst`` from ``src`` in this process, whole or not at all; an existing ``dst`` is replaced.

    The source may be quantised already (its tensors are then dequantised first, bit-equal to
    ``gguf.dequantize``), and the bytes do not depend on ``n_threads``.

    Args:
        src: a GGUF file.
        dst: where the new file goes.
        ftype: llama.cpp's name without prefix: ``F32`` (the twin), ``F16``, ``BF16``, ``Q8_0``, ``Q4_K_M``, ...
        n_threads: threads that quantise.

    Raises:
        UsageError: llama.cpp has no such file type.
        ModelFileError: ``src`` is missing or unreadable.
        EngineError: the file could not be written.
    """
    library = load()
    number = ftype_number(library, ftype)
    require_model(src)
    with replacing(dst, kind=EngineError, next_step=FREE_CACHE) as part:
        _run(library, src, part, number, ftype, n_threads)


def ftype_number(library: Library, ftype: str) -> int:
    """Return ``enum llama_ftype`` of a file type's name, such as ``Q4_K_M``."""
    name = ALL_F32 if ftype == "F32" else PREFIX + ftype
    number = getattr(library.api, name, None)
    if number is None:
        known = sorted(n.removeprefix(PREFIX) for n in vars(library.api) if n.startswith(PREFIX))
        raise UsageError(
            "llama.cpp has no such file type",
            place=ftype,
            expected=f"one of F32, {', '.join(known)}",
            found=ftype,
            next_step="correct the quantisation's name",
        )
    return int(number)


def _run(library: Library, src: Path, part: Path, number: int, ftype: str, n_threads: int) -> None:
    api = library.api
    params = api.llama_model_quantize_default_params()
    params.ftype = number
    params.nthread = n_threads
    params.allow_requantize = True
    library.log.mark()
    status = api.llama_model_quantize(os.fsencode(src), os.fsencode(part), api.byref(params))
    if status != 0 or not part.is_file():
        raise _not_made(src, part, ftype, status, library.log)


def _not_made(src: Path, part: Path, ftype: str, status: int, log: Log) -> EngineError:
    """Return the refusal of a file that could not be made: llama.cpp's own reason first."""
    free = shutil.disk_usage(part.parent).free
    full = free < src.stat().st_size
    return EngineError(
        f"llama.cpp could not make the file: {log.reason()}",
        place=src,
        expected=f"a file of type {ftype}",
        found=f"status {status}, {free / 1e6:,.0f} MB free in {part.parent}",
        next_step=FREE_CACHE
        if full
        else "if that names a tensor, the source holds values that are no numbers: fetch or convert it again",
    )
