"""Which ISA target each sampled instruction belongs to, and how many stood at each; `judge.t7_isa` judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from parity_lib.base.names import Isa
from parity_lib.records.isa_evidence import Kernel, Sampled

NARROW = "narrow"  # vector instructions of every x86-64 CPU (SSE): of no ISA target
WIDTH = {target: i for i, target in enumerate((NARROW, Isa.NEON, Isa.AVX2, Isa.AVX512, Isa.AMX))}
PRODUCTS = (
    *("vfmadd", "vfmsub", "vfnmadd", "vfnmsub", "vdpbf16", "vpdp", "vpmadd", "tdp"),
    *("fmla", "sdot", "udot", "smmla", "bfmmla", "bfdot"),
)
"""How the mnemonics of instructions begin that multiply and add."""
MIN_PRODUCTS = 8
"""Fewest samples at multiply-adds that judge the candidate: one run in a thousand would show none of a
kernel that takes half of the time."""
MIN_VECTORS = 20
"""The same for the reference, whose kernels mix widths: what takes one part in seven is then seen 19 times in 20."""
TOP = 8  # kernels that a record keeps


def target_of(features: Iterable[str]) -> str | None:
    """Return the target that an instruction of these extensions belongs to; None if it uses no vector unit.

    >>> str(target_of(["AVX", "FMA"])), str(target_of(["AVX512F", "AVX"])), target_of(["INTEL386"])
    ('avx2', 'avx512', None)
    """
    targets = {_target(feature) for feature in features} - {None}
    return max((target for target in targets if target is not None), key=lambda target: WIDTH[target], default=None)


def _target(feature: str) -> str | None:
    if feature.startswith("AMX"):
        return Isa.AMX
    if feature.startswith(("AVX512", "AVX10")):
        return Isa.AVX512
    if feature.startswith("AVX") or feature in ("FMA", "F16C"):
        return Isa.AVX2
    if feature.startswith("ASIMD") or feature in ("I8MM", "BF16"):
        return Isa.NEON
    return NARROW if feature.startswith("SSE") else None


def summarise(n: int, lost: int, places: Sequence[Kernel], own: Iterable[str]) -> Sampled:
    """Return what a sampled run showed of an engine.

    Args:
        n: program counters in all.
        lost: those that came too late.
        places: where they stood.
        own: beginnings of the file names of the engine's own libraries.
    """
    starts = tuple(own)
    ours = sorted((p for p in places if p.library.startswith(starts)), key=lambda p: -p.n)
    vectors: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for place in ours:
        target = target_of(place.features)
        if target is not None:
            vectors[target] += place.n
            if place.instruction.startswith(PRODUCTS):
                products[target] += place.n
    named = [place for place in ours if target_of(place.features) is not None]
    return Sampled(n, lost, sum(p.n for p in ours), dict(vectors), dict(products), tuple(named[:TOP]))
