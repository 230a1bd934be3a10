"""Evidence of which instructions ran: sampled program counters and weight buffers, and whether it suffices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity_lib.base.errors import RecordError

UNPROVEN = "unproven"  # as an observed ISA target
BURN, LLAMA_CPP = "burn", "llama.cpp"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One instruction address range that was sampled while an engine ran, with its instruction set and counts."""

    library: str  # file name
    function: str  # as the linker knows it; "" where no symbol covers the address
    inlined: str  # the innermost function that was compiled into it there, or ""
    instruction: str  # mnemonic
    bits: int  # of the widest register that it names; 8192 is a tile
    features: tuple[str, ...]  # extensions that the instruction belongs to, as the decoder names them
    n: int  # samples


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a sampled run showed of one engine's own libraries."""

    n: int  # program counters, of every library of the process
    lost: int  # that came when all room was taken
    own: int  # in the engine's own libraries
    vectors: Mapping[
        str, int
    ]  # ISA target -> samples of the engine's own at an instruction that belongs to that ISA target
    products: Mapping[str, int]  # the same, of instructions that multiply and add: what a matmul consists of
    kernels: tuple[Kernel, ...]  # the most frequent of the engine's own


@dataclass(frozen=True, slots=True)
class Buffer:
    """The weights that lie in one buffer type of llama.cpp, and what is multiplied there."""

    name: str  # "CPU", "CPU_Mapped", "CPU_REPACK", "AMX", "CPU_KLEIDIAI"
    types: Mapping[str, int]  # tensor type -> number of weights
    weights: int
    bytes: int
    flops: int  # of one pass: 2 x weights' elements x rows


@dataclass(frozen=True, slots=True)
class Evidence:
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
    features: Mapping[str, int] = field(default_factory=dict)  # llama.cpp's list of what was compiled in
    arithmetic: Mapping[str, str] = field(default_factory=dict)  # fingerprint: "fma" yes or no, "operands" f32 or bf16
    impossible: str = ""  # why this side cannot run the cell's ISA target here, one sentence; empty where it can

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evidence:
        """Return the record of a JSON object, as ``base.json_text.encode`` wrote it.

        Raises:
            RecordError: it is no such object.
        """
        try:
            values = dict(data)
            sampled = values.pop("sampled")
            if sampled is not None:
                kernels = tuple(Kernel(**{**k, "features": tuple(k["features"])}) for k in sampled["kernels"])
                sampled = Sampled(**{**sampled, "kernels": kernels})
            buffers = tuple(Buffer(**buffer) for buffer in values.pop("buffers"))
            return cls(**values, sampled=sampled, buffers=buffers)
        except (KeyError, TypeError, AttributeError) as error:
            raise RecordError(
                "this is no evidence of instructions", expected=", ".join(cls.__slots__), found=repr(error)
            ) from error


@dataclass(frozen=True, slots=True)
class IsaProof:
    """One engine's evidence and what it proves."""

    evidence: Evidence
    observed: str  # an ISA target, or UNPROVEN where there is too little to see
    proven: bool
    reason: str  # in words: what proves it, or what is missing or contradicts

    @property
    def contradicted(self) -> bool:
        """Return whether the samples show other instructions than the requested ones."""
        return not self.proven and self.observed != UNPROVEN


def proofs_of(literal: Mapping[str, Any]) -> Sequence[IsaProof]:
    """Return the stored proofs of a verdict; an empty list if T7 did not run.

    Raises:
        RecordError: what is there is no proof.
    """
    found = literal.get("isa", {}).get("proofs", [])
    return [IsaProof(Evidence.from_json(p["evidence"]), p["observed"], p["proven"], p["reason"]) for p in found]
