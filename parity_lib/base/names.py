"""The words of the field as types: ids, quantisations, instruction sets, rungs, outcomes."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

TokenId = NewType("TokenId", int)
ModelId = NewType("ModelId", str)

TOP_STORED = 64  # ids kept for each position, so that the other side's top-5 has a logit here too
TOP_JUDGED = 5  # the user's gate


class Isa(StrEnum):
    """An ISA target. A native reference belongs to one ISA target and is never compared across."""

    AVX2 = "avx2"
    AVX512 = "avx512"
    AMX = "amx"
    NEON = "neon"


class Compute(StrEnum):
    """Arithmetic of the candidate's weight matmuls."""

    F32 = "f32"
    BF16 = "bf16"
    GGML = "ggml"


class Settings(StrEnum):
    """How the reference is run. ``STRICT`` is batch-invariant to the last bit; ``DEFAULT`` is as deployed."""

    STRICT = "strict"
    DEFAULT = "default"
    FLASH_F16 = "flash_f16"  # strict but for its attention: an F16 cache and the fused kernel
    REPACKED = "repacked"  # strict but for its weights: re-ordered for the ISA target's own kernels where it has such


class Rung(StrEnum):
    """The ladder, lowest first.

    >>> Rung.T4.title
    'T4 twin'
    """

    T0 = "T0"
    T1 = "T1"
    T2 = "T2"
    T3 = "T3"
    T4 = "T4"
    T5 = "T5"
    T6 = "T6"
    T7 = "T7"

    @property
    def title(self) -> str:  # type: ignore[override]  # the name of a rung, not str.title
        """Name and question in two words, as the reports print it."""
        return f"{self.value} {_RUNG_WORD[self.value]}"


_RUNG_WORD = {
    "T0": "pins",
    "T1": "tokens",
    "T2": "weights",
    "T3": "ops",
    "T4": "twin",
    "T5": "native",
    "T6": "self",
    "T7": "ISA",
}


class Outcome(StrEnum):
    """How a cell or a rung ended."""

    PARITY = "PARITY"
    DIVERGED = "DIVERGED"
    INCOMPLETE = "INCOMPLETE"
    INVALID = "INVALID"  # a red control that was not caught
    NOT_RUN = "NOT_RUN"  # not required, could not run
    REPORTED = "REPORTED"  # a rung without a gate: its numbers are literal, nothing is judged


class Kind(StrEnum):
    """The kind of a divergence, as its line names it."""

    TENSOR = "TENSOR"
    OP = "OP"  # one op on the reference's own inputs
    TOKENS = "TOKENS"  # another list of ids for the same text
    TOP1 = "TOP1"
    TOP5_SET = "TOP5_SET"
    LOGIT_DELTA = "LOGIT_DELTA"
    RMS = "RMS"
    P99 = "P99"  # 99th percentile of |delta|
    KL = "KL"
    SPREAD = "SPREAD"  # the reference's own self-spread has changed since it was pinned
    BITS = "BITS"  # two paths of one engine that must agree to the bit do not
    ISA = "ISA"  # other instructions ran than were asked for
    NON_FINITE = "NON_FINITE"


class LedgerClass(StrEnum):
    """Whether a flip is explained by the reference's own margin."""

    TIE = "TIE"
    UNEXPLAINED = "UNEXPLAINED"
