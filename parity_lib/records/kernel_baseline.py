"""The baseline of kernels as data: how far each kernel of an engine was measured to be from float64, and on what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from parity_lib.base.errors import PinError
from parity_lib.base.record import NotEmpty, Positive, Record, load_record, save_record
from parity_lib.base.toml_table import fixture_path
from parity_lib.records.isa_evidence import LLAMA_CPP

FOLDER = "kernel_baseline"
PUBLISHED = "crates-io"
"""The stack whose kernels stand in for those of a stack without a baseline: burn as it is published. A stack whose
kernels are worse is named by rung T3, and not excused by wider limits."""
MEASURED = "avx2"
"""ISA target whose baseline stands in for those that were not measured. The error of a sum goes by the length of its
chains. AVX-512 (and what AMX leaves to it) keeps twice as many partial sums as AVX2, so its chains are shorter."""
LONGER_CHAINS = {"neon": 2.0}
"""ISA target -> by how much ggml's chains are longer than on MEASURED, and the variance of their errors with them: NEON
keeps half as many partial sums. The candidate's chains are as long on every target."""
Variance = Annotated[float, Meta(gt=0, lt=1)]


class KernelVariance(Record, frozen=True):
    """One kernel at one length of its sums, on one model."""

    kernel: NotEmpty  # one of ``numerics.kernel_noise.KERNELS``
    length: Positive  # terms of each sum; 1 where the error hardly depends on it
    n_ops: Positive
    mean: Variance  # of (error / scale)^2 over the ops; scale as in ``OracleNodes.scale``
    worst: Variance  # of the ops
    model: NotEmpty
    quant: NotEmpty


class KernelBaseline(Record, frozen=True, tag_field="schema", tag="parity/kernel_baseline/1"):
    """All measured kernels of one engine on one ISA target, F32 weights."""

    engine: NotEmpty  # "llama.cpp", or the candidate's stack
    isa: NotEmpty
    machine_class: NotEmpty
    commit: str  # of llama.cpp; empty for the candidate
    lock_sha256: str  # of the candidate's Cargo.lock; empty for llama.cpp
    measured_at: NotEmpty
    command: NotEmpty
    kernels: tuple[KernelVariance, ...]

    @property
    def name(self) -> str:
        """Return engine and ISA target, as the file is called: ``llama.cpp-avx2``."""
        return f"{self.engine}-{self.isa}"

    @property
    def variances(self) -> dict[str, dict[int, float]]:
        """Return the mean of each kernel by length, as ``KernelNoise`` takes it."""
        found: dict[str, dict[int, float]] = {}
        for kernel in self.kernels:
            found.setdefault(kernel.kernel, {})[kernel.length] = kernel.mean
        return found

    def larger(self, factor: float) -> KernelBaseline:
        """Return the baseline with so many times larger variances."""
        kernels = tuple(replace(k, mean=k.mean * factor, worst=k.worst * factor) for k in self.kernels)
        return replace(self, kernels=kernels)

    def joined(self, kernels: Iterable[KernelVariance]) -> KernelBaseline:
        """Return the baseline with these kernels in place of its own of the same kernel and length, sorted."""
        kept = {(k.kernel, k.length): k for k in (*self.kernels, *kernels)}
        return replace(self, kernels=tuple(kept[key] for key in sorted(kept)))


def baseline_path(engine: str, isa: str) -> Path:
    """Return where the baseline of an engine on an ISA target lies; it may not exist yet."""
    return Path(fixture_path("prompts.toml")).parent / FOLDER / f"{engine}-{isa}.json"


def load_baseline(engine: str, isa: str) -> KernelBaseline:
    """Return the stored baseline of an engine on an ISA target.

    Raises:
        PinError: none was measured.
        RecordError: it is damaged, or of another version.
    """
    path = baseline_path(engine, isa)
    if not path.is_file():
        raise PinError(
            "no baseline was measured",
            place=f"{engine} {isa}",
            expected=f"fixtures/{FOLDER}/{path.name}",
            next_step="on a machine of that ISA target: parity baseline MODEL QUANT --write",
        )
    return load_record(path, KernelBaseline)


def find_baseline(engine: str, isa: str) -> KernelBaseline:
    """Return the baseline of an engine on an ISA target, or the one that stands in for it (PUBLISHED, MEASURED).

    Raises:
        PinError: none was measured.
        RecordError: it is damaged, or of another version.
    """
    engines = (engine,) if engine == LLAMA_CPP else (engine, PUBLISHED)
    for name in engines:
        if baseline_path(name, isa).is_file():
            return load_baseline(name, isa)
        if baseline_path(name, MEASURED).is_file():
            longer = LONGER_CHAINS.get(isa, 1.0) if name == LLAMA_CPP else 1.0
            return load_baseline(name, MEASURED).larger(longer)
    return load_baseline(engine, isa)  # which says what is missing


def save_baseline(baseline: KernelBaseline) -> Path:
    """Write a baseline, joined to the stored one of the same engine and ISA target. Returns the path.

    Raises:
        RecordError: the file cannot be written, or the stored one is damaged.
    """
    path = baseline_path(baseline.engine, baseline.isa)
    if path.is_file():
        stored = load_record(path, KernelBaseline)
        baseline = replace(baseline, kernels=stored.joined(baseline.kernels).kernels)
    path.parent.mkdir(exist_ok=True)
    return save_record(baseline, path)
