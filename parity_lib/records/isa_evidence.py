"""Evidence of which instructions ran: sampled program counters and weight buffers, and whether it suffices."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.base.record import Count, Record

UNPROVEN = "unproven"  # as an observed ISA target
BURN, LLAMA_CPP = "burn", "llama.cpp"


class Kernel(Record, frozen=True):
    """One instruction address range that was sampled while an engine ran, with its instruction set and counts."""

    library: str  # file name
    function: str  # as the linker knows it; "" where no symbol covers the address
    inlined: str  # the innermost function that was compiled into it there, or ""
    instruction: str  # mnemonic
    bits: Count  # of the widest register that it names; 8192 is a tile
    features: tuple[str, ...]  # extensions that the instruction belongs to, as the decoder names them
    n: Count  # samples


class Sampled(Record, frozen=True):
    """What a sampled run showed of one engine's own libraries."""

    n: Count  # program counters, of every library of the process
    lost: Count  # that came when all room was taken
    own: Count  # in the engine's own libraries
    vectors: Mapping[str, Count]  # ISA target -> the engine's own samples at an instruction that belongs to it
    products: Mapping[str, Count]  # the same, of instructions that multiply and add: what a matmul consists of
    kernels: tuple[Kernel, ...]  # the most frequent of the engine's own


class Buffer(Record, frozen=True):
    """The weights that lie in one buffer type of llama.cpp, and what is multiplied there."""

    name: str  # "CPU", "CPU_Mapped", "CPU_REPACK", "AMX", "CPU_KLEIDIAI"
    types: Mapping[str, Count]  # tensor type -> number of weights
    weights: Count
    bytes: Count
    flops: Count  # of one pass: 2 x weights' elements x rows


class Evidence(Record, frozen=True):
    """Facts about one engine's run, without a judgement.

    ``requested`` is the ISA target that this engine was asked for: the cell's, or the widest that it has of it here.
    What was seen never comes from it.
    """

    engine: str  # BURN or LLAMA_CPP
    run: str  # what was run: "the cell's teacher-forced pass", "strict settings", ...
    requested: str
    sampled: Sampled | None
    absent: str = ""  # why nothing was sampled
    buffers: tuple[Buffer, ...] = ()
    features: Mapping[str, Count] = {}  # llama.cpp's list of what was compiled in
    arithmetic: Mapping[str, str] = {}  # fingerprint: "fma" yes or no, "operands" f32 or bf16
    impossible: str = ""  # why this side cannot run the cell's ISA target here, one sentence; empty where it can


class IsaProof(Record, frozen=True):
    """One engine's evidence and what it proves."""

    evidence: Evidence
    observed: str  # an ISA target, or UNPROVEN where there is too little to see
    proven: bool
    reason: str  # in words: what proves it, or what is missing or contradicts

    @property
    def contradicted(self) -> bool:
        """Return whether the samples show other instructions than the requested ones."""
        return not self.proven and self.observed != UNPROVEN
