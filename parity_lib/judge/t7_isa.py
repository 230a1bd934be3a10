"""Rung T7: did the instructions that were asked for really run? Judged from samples, never from what was requested.

A function's name can promise anything. What counts is the instruction at which a program counter stood: only a CPU that
executes AVX-512 stops in the middle of it, and a fallback stops in the middle of something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.numerics.isa_samples import PRODUCTS, target_of
from parity_lib.records.isa_evidence import IsaProof, Kernel
from parity_lib.records.verdicts import Divergence, RungResult


def judge_isa(proofs: Sequence[IsaProof], *, expected: int, required: bool) -> tuple[RungResult, list[Divergence]]:
    """Judge rung T7: every run that was to be proved is, by what was seen.

    Args:
        proofs: of each run.
        expected: how many there must be.
        required: whether an unproven ISA target makes the cell incomplete; else the rung is not run.

    Returns:
        The rung, in proofs, and a divergence for each run that showed other instructions than were asked for: a
        fallback that answers to the name of the ISA target is a divergence, however good its numbers are.
    """
    against = [proof for proof in proofs if proof.contradicted]
    unproven = [proof for proof in proofs if not proof.proven and not proof.contradicted]
    complete = len(proofs) == expected > 0 and not unproven
    otherwise = Outcome.INCOMPLETE if required else Outcome.NOT_RUN
    notes = [f"{p.evidence.engine} ({p.evidence.run}): {words(p)}" for p in [*against, *unproven]]
    notes += [f"{expected - len(proofs)} proofs are missing"] if len(proofs) != expected else []
    notes += [f"{p.evidence.engine}: {words(p)}" for p in proofs if p.proven]
    rung = RungResult(
        rung=Rung.T7,
        outcome=Outcome.DIVERGED if against else Outcome.PARITY if complete else otherwise,
        expected=expected,
        compared=len(proofs) - len(unproven),
        worst=None,
        limit=None,
        unit="proofs",
        source="instructions at sampled program counters",
        note=("unproven: " if not against and not complete else "") + "; ".join(notes),
    )
    return rung, [
        Divergence(Rung.T7, Kind.ISA, 0.0, where=p.evidence.engine, note=f"{p.evidence.run}: {p.reason}")
        for p in against
    ]


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
