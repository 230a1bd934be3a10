"""Which ISA target sampled program counters show: counts of instructions, and what they add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from parity_lib.base.names import Isa
from parity_lib.records.isa_evidence import BURN, UNPROVEN, Evidence, IsaProof, Kernel, Sampled

NARROW = "narrow"  # vector instructions of every x86-64 CPU (SSE): of no ISA target
WIDTH = {target: i for i, target in enumerate((NARROW, Isa.NEON, Isa.AVX2, Isa.AVX512, Isa.AMX))}
PRODUCTS = (
    *("vfmadd", "vfmsub", "vfnmadd", "vfnmsub", "vdpbf16", "vpdp", "vpmadd", "tdp"),
    *("fmla", "sdot", "udot", "smmla", "bfmmla", "bfdot"),
)
"""How the mnemonics of instructions begin that multiply and add."""
MIN_PRODUCTS = 8
"""Samples at multiply-adds below which nothing is said of the candidate: one run in a thousand would show none of a
kernel that takes half of the time."""
MIN_VECTORS = 20
"""The same for the reference, whose kernels mix widths: what takes one part in seven is then seen 19 times in 20."""
ENOUGH = 200  # samples of an engine's own among which those of its kernels cannot be missed
SHARE = 0.9  # of the candidate's multiply-adds that the ISA target must have: its matmul is one kernel
PART = 0.05  # of the reference's vector samples from which on an ISA target counts as seen
TILE_BUFFER = "AMX"  # where llama.cpp puts weights for its tiles
TOP = 8  # kernels that a record keeps


def target_of(features: Iterable[str]) -> str | None:
    """Return the target that an instruction of these extensions belongs to; None if it uses no vector unit."""
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


def prove(evidence: Evidence) -> IsaProof:
    """Judge one engine's evidence: which ISA target it shows, and whether that is the one that was asked for."""
    if evidence.sampled is None:
        return IsaProof(evidence, UNPROVEN, proven=False, reason=evidence.absent or "nothing was sampled")
    counts = evidence.sampled.products if evidence.engine == BURN else evidence.sampled.vectors
    least, what = (MIN_PRODUCTS, "multiply-adds") if evidence.engine == BURN else (MIN_VECTORS, "vector instructions")
    total = sum(counts.values())
    if total < least:
        few = f"{total} samples at {what}, {least} are needed"
        if evidence.sampled.own < ENOUGH:
            return IsaProof(evidence, UNPROVEN, proven=False, reason=few)
        told = f"{few}; it was not for want of looking: {evidence.sampled.own} samples in its libraries"
        return IsaProof(evidence, NARROW, proven=False, reason=told)
    observed = _observed(counts, SHARE if evidence.engine == BURN else PART)
    shares = ", ".join(f"{count / total:.0%} {target}" for target, count in sorted(counts.items(), key=lambda c: -c[1]))
    seen = f"{total} samples at {what}: {shares}"
    against = _against(evidence, observed, counts)
    return IsaProof(evidence, observed, proven=not against, reason="; ".join([seen, *against]))


def _observed(counts: Mapping[str, int], share: float) -> str:
    """Return the widest ISA target that has, with everything wider, at least this share of the samples."""
    total, wider = sum(counts.values()), 0
    for target in sorted(counts, key=lambda target: -WIDTH[target]):
        wider += counts[target]
        if wider >= share * total:
            return target
    return UNPROVEN


def _against(evidence: Evidence, observed: str, counts: Mapping[str, int]) -> list[str]:
    """Return what speaks against the ISA target that was asked for, one sentence each."""
    wanted = evidence.requested
    against = [] if observed == wanted else [f"asked for {wanted}, saw {observed}"]
    wider = {target: n for target, n in counts.items() if WIDTH[target] > WIDTH.get(wanted, -1)}
    if observed == wanted and wider:
        against.append(f"instructions beyond {wanted} ran too: {', '.join(wider)}")
    operands = evidence.arithmetic.get("operands")
    if evidence.arithmetic.get("fma") == "no":
        against.append(f"its products are rounded before they are added: no {wanted} kernel does that")
    if wanted == Isa.AMX and evidence.engine == BURN and operands == "f32":
        against.append("its operands are f32, and tiles have no f32")
    tiles = sum(buffer.bytes for buffer in evidence.buffers if buffer.name == TILE_BUFFER)
    if wanted == Isa.AMX and evidence.engine != BURN and not tiles:
        against.append(f"no weight lies in the buffer {TILE_BUFFER}")
    return against
