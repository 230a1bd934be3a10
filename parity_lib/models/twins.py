"""Make the twins of a model file: every tensor dequantised by llama.cpp itself, as F32 or rounded to BF16."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import ModelFileError, UsageError
from parity_lib.engines.llamacpp.engine import quantize_file
from parity_lib.engines.machine import machine_class
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import ModelFile, facts_of
from parity_lib.model_file.header import ALIGNMENT_KEY
from parity_lib.models.cache import Say, check_digest, lock, models_dir, need_space, part_of, quiet, write_receipt
from parity_lib.records.model_receipts import TwinReceipt
from parity_lib.records.pins import FilePin, ModelPin, Pins, load_pins

KINDS = ("F32", "BF16")
_CHUNK_BYTES = 64 << 20  # of float32 compared at a time


def ensure_twin(path: Path, pins: Pins | None = None, *, kind: str = "F32", say: Say = quiet) -> Path:
    """Return the path of a twin of any GGUF file, made by llama.cpp itself.

    The F32 twin has each tensor dequantised, the BF16 twin each matrix of that rounded to BF16, to nearest even;
    vectors stay F32. A twin lies in the cache under the source's SHA-256 and llama.cpp's commit, is made once, and is
    used only after each of its tensors was found bit-equal to ``gguf.dequantize`` of the source's (rounded, in the
    BF16 twin) and all facts equal.

    Args:
        path: the source.
        pins: the pins; those of the repository where None.
        kind: one of ``KINDS``.
        say: called with a line before something slow.

    Raises:
        UsageError: there is no such kind.
        ModelFileError: the source cannot be read, or the twin is not its twin, or the disk is full.
        PinError: the source is a pinned file and its twin is not the pinned twin.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no {kind} twin", expected=f"one of {', '.join(KINDS)}", found=kind)
    pins = load_pins() if pins is None else pins
    path = Path(path)
    source = sha256_file(path)
    twin = twin_path(path, source, pins, kind)
    if not twin.exists():
        if kind == "BF16":
            ensure_twin(path, pins, say=say)  # outside of the lock: it takes its own
        with lock(twin):
            if not twin.exists():
                _make(path, source, twin, pins, kind, say)
    pinned = next((pin for pin in pins.models if pin.file.accepts(source)), None)
    check_digest(twin, twin_pin(pinned, kind) if pinned else None, f"{kind} twin of {path.name}", "quantize")
    return twin


def twin_path(path: Path, source_sha256: str, pins: Pins, kind: str = "F32") -> Path:
    """Return where the twin of a source lies, made or not."""
    return models_dir() / "twins" / f"{path.stem}-{source_sha256[:12]}-{pins.llama_cpp.commit[:8]}.{kind}.gguf"


def twin_pin(pin: ModelPin, kind: str) -> FilePin | None:
    """Return the pin of a file's twin, or None if it has none."""
    return pin.twin if kind == "F32" else pin.bf16_twin


def bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return the upper halves of finite float32 numbers, rounded to nearest even: the bits of BF16, same shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
    return rounded


def _make(path: Path, source_sha256: str, twin: Path, pins: Pins, kind: str, say: Say) -> None:
    size = 4 if kind == "F32" else 2
    n_bytes = size * sum(int(np.prod(t.shape)) for t in ModelFile(path).tensors.values())
    need_space(twin.parent, n_bytes)
    say(f"making the {kind} twin of {path.name}: {n_bytes / 1e6:.0f} MB")
    start = path if kind == "F32" else twin_path(path, source_sha256, pins)
    with part_of(twin) as part:
        _quantize(start, part, kind)
        _compare(path, part, kind)
        made = (sha256_file(part, fresh=True), part.stat().st_size, machine_class(), pins.llama_cpp.commit)
        write_receipt(twin, TwinReceipt(*made, source_sha256, kind))


def _quantize(source: Path, part: Path, kind: str) -> None:
    """Quantise a file with llama.cpp, which copies ``general.alignment`` but aligns data to 32 bytes."""
    file = ModelFile(source)
    if file.integer(ALIGNMENT_KEY) in (None, gguf.GGUF_DEFAULT_ALIGNMENT):
        quantize_file(source, part, kind)
        return
    with tempfile.TemporaryDirectory(".part", ".aligned.", part.parent) as folder:
        copy = Path(folder) / source.name
        file.write_aligned(copy)
        quantize_file(copy, part, kind)


def _compare(source: Path, twin: Path, kind: str) -> None:
    """Refuse a twin with another fact, or with a tensor that is not the source's, dequantised (and rounded)."""
    ours, theirs = ModelFile(source), ModelFile(twin)
    expected, found = facts_of(ours), facts_of(theirs)
    matrices = sum(len(tensor.shape) > 1 for tensor in ours.tensors.values())
    types = {"BF16": matrices, "F32": len(ours.tensors) - matrices} if kind == "BF16" else {"F32": len(ours.tensors)}
    if found != replace(expected, quant=kind, types=types, n_bytes=found.n_bytes):
        raise ModelFileError(f"the {kind} twin states other facts", place=twin, expected=expected, found=found)
    for name, tensor in ours.tensors.items():
        step = max(1, _CHUNK_BYTES // (4 * int(np.prod(tensor.shape[1:]))))
        rounded = kind == "BF16" and len(tensor.shape) > 1
        for start in range(0, tensor.shape[0], step):
            wanted = tensor.dequantize(start, start + step)
            rows = np.ascontiguousarray(theirs.tensors[name].rows[start : start + step])
            if (bf16(wanted) if rounded else wanted).tobytes() != rows.tobytes():
                raise ModelFileError(
                    f"the {kind} twin is not bit-equal to gguf.dequantize" + (", rounded" if rounded else ""),
                    place=f"{source}: {name}, rows {start} to {min(start + step, tensor.shape[0]) - 1}",
                    next_step="run `parity doctor`: the reference may be built with contraction of multiply and add",
                )
