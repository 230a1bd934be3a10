"""Rung T7: did the requested instructions run? Judged from sampled program counters, never from the request.

A function's name can promise anything. What counts is the instruction at which a program counter stood: only a CPU that
executes AVX-512 stops in the middle of it, and a fallback stops in the middle of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from parity_lib.base.names import Isa, Kind, Outcome, Rung
from parity_lib.numerics.isa_samples import MIN_PRODUCTS, MIN_VECTORS, NARROW, PRODUCTS, WIDTH, target_of
from parity_lib.records.isa_evidence import BURN, UNPROVEN, Evidence, IsaProof, Kernel
from parity_lib.records.verdicts import Divergence, RungResult

ENOUGH = 200  # samples of an engine's own among which those of its kernels cannot be missed
SHARE = 0.9  # of the candidate's multiply-adds that the ISA target must have: its matmul is one kernel
PART = 0.05
"""From which share on an ISA target counts as seen: of the reference's vector samples, and of the multiply-adds of a
candidate that is asked for tiles. Those carry the weight products; attention, in f32, stays with burn's matmul."""
TILE_BUFFER = "AMX"  # where llama.cpp puts weights for its tiles
FALLBACK = "bf16_tile_gemm::fallback_path"  # what the fork's tile product runs without tiles, under the same name


def prove(evidence: Evidence) -> IsaProof:
    """Judge one engine's evidence: return the ISA target that it shows, and whether it is the requested one."""
    if evidence.sampled is None:
        return IsaProof(evidence, UNPROVEN, proven=False, reason=evidence.absent or "nothing was sampled")
    counts = evidence.sampled.products if evidence.engine == BURN else evidence.sampled.vectors
    least, what = (MIN_PRODUCTS, "multiply-adds") if evidence.engine == BURN else (MIN_VECTORS, "vector instructions")
    total = sum(counts.values())
    if total < least:
        few = f"{total} samples at {what}, {least} are needed"
        if evidence.sampled.own < ENOUGH:
            return IsaProof(evidence, UNPROVEN, proven=False, reason=few)
        told = f"{few}; not seen, although {evidence.sampled.own} samples fell into its libraries"
        return IsaProof(evidence, NARROW, proven=False, reason=told)
    one_kernel = evidence.engine == BURN and evidence.requested != Isa.AMX
    observed = _observed(counts, SHARE if one_kernel else PART)
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
    """Return the observations that contradict the requested ISA target, one sentence each."""
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
    if wanted == Isa.AMX and evidence.engine == BURN and (fallen := _samples_of(FALLBACK, evidence)):
        against.append(f"its tile product ran without tiles too: {fallen} samples in {FALLBACK}")
    tiles = sum(buffer.bytes for buffer in evidence.buffers if buffer.name == TILE_BUFFER)
    if wanted == Isa.AMX and evidence.engine != BURN and not tiles:
        against.append(f"no weight lies in the buffer {TILE_BUFFER}")
    return against


def _samples_of(function: str, evidence: Evidence) -> int:
    """Return how many samples stood in a function of that name, itself or compiled into another one."""
    kernels = () if evidence.sampled is None else evidence.sampled.kernels
    return sum(kernel.n for kernel in kernels if function in kernel.function or function in kernel.inlined)


def judge_isa(proofs: Sequence[IsaProof], *, expected: int, required: bool) -> tuple[RungResult, list[Divergence]]:
    """Judge rung T7: each run by its own samples.

    Args:
        proofs: of each run.
        expected: how many there must be.
        required: whether the cell needs its ISA target proven on both sides.

    Returns:
        The rung, in proofs, and a divergence for each run that showed other instructions than were asked for: a
        fallback that answers to the name of the ISA target is a divergence, however good its numbers are. A side that
        cannot run the cell's target here is proven by the target that it ran instead, and reported. Where the cell
        requires the target, that is a divergence of the candidate, and of the reference it leaves the rung INCOMPLETE:
        the machine is to blame then.
    """
    against = [proof for proof in proofs if proof.contradicted]
    unproven = [proof for proof in proofs if not proof.proven and not proof.contradicted]
    short = [proof for proof in proofs if proof.evidence.impossible]
    missed = [p for p in short if required and p.evidence.engine == BURN and not p.contradicted]
    complete = len(proofs) == expected > 0 and not unproven
    otherwise = Outcome.INCOMPLETE if required else Outcome.NOT_RUN
    whole = Outcome.PARITY if not short else Outcome.INCOMPLETE if required else Outcome.REPORTED
    notes = list(dict.fromkeys(p.evidence.impossible for p in short))
    notes += [f"{p.evidence.engine} ({p.evidence.run}): {words(p)}" for p in [*against, *unproven]]
    notes += [f"{expected - len(proofs)} proofs are missing"] if len(proofs) != expected else []
    notes += [f"{p.evidence.engine}: {words(p)}" for p in proofs if p.proven]
    rung = RungResult(
        rung=Rung.T7,
        outcome=Outcome.DIVERGED if against or missed else whole if complete else otherwise,
        expected=expected,
        compared=len(proofs) - len(unproven),
        worst=None,
        limit=None,
        unit="proofs",
        source="instructions at sampled program counters",
        note=("unproven: " if not against and not complete else "") + "; ".join(notes),
    )
    return rung, [
        *(_divergence(p, f"{p.evidence.run}: {p.reason}") for p in against),
        *(_divergence(p, p.evidence.impossible) for p in missed),
    ]


def _divergence(proof: IsaProof, note: str) -> Divergence:
    return Divergence(Rung.T7, Kind.ISA, 0.0, where=proof.evidence.engine, note=note)


def side_word(proof: IsaProof) -> str:
    """Return the result of one side in a word or two, for tables."""
    if proof.contradicted:
        return "other instructions"
    if proof.evidence.impossible:
        return "not possible here"
    return "proven" if proof.proven else "unproven"


def words(proof: IsaProof) -> str:
    """Return a proof in one line: what was seen, and the kernel that shows it."""
    if not proof.proven or proof.evidence.sampled is None:
        return proof.reason
    kernel = leading(proof)
    name = "" if kernel is None else f", {kernel.inlined.rsplit('::', 1)[-1] or kernel.instruction} in {_short(kernel)}"
    buffers = ", ".join(f"{b.name} buffer {b.weights} weights" for b in proof.evidence.buffers)
    return "; ".join(part for part in (f"{proof.reason}{name}", buffers) if part)


def leading(proof: IsaProof) -> Kernel | None:
    """Return the most frequent kernel of the observed ISA target; of its multiply-adds, if one was kept."""
    kernels = () if proof.evidence.sampled is None else proof.evidence.sampled.kernels
    own = [k for k in kernels if target_of(k.features) == proof.observed]
    return next((k for k in own if k.instruction.startswith(PRODUCTS)), own[0] if own else None)


def _short(kernel: Kernel) -> str:
    return kernel.function.rsplit("::", 1)[-1] or f"{kernel.library}, no symbol"
