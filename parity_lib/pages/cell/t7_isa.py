"""Rung T7 on a page: what was requested and observed, and the kernels and buffers that show it."""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.base.names import Rung
from parity_lib.judge.t7_isa import side_word
from parity_lib.numerics.isa_samples import target_of
from parity_lib.pages.cell.steps import ABSENT
from parity_lib.pages.kit.fragment import Fragment, joined, note, paragraph
from parity_lib.pages.kit.table import Column, table
from parity_lib.pages.kit.text import NONE, count, percent, size
from parity_lib.records.isa_evidence import BURN, Buffer, IsaProof, Kernel
from parity_lib.records.verdicts import Verdict

_PROOFS = (
    Column("engine and run"),
    Column("requested"),
    Column("observed"),
    Column("proven"),
    Column("samples", numeric=True),
    Column("what was seen"),
)
_KERNELS = (
    Column("engine"),
    Column("kernel"),
    Column("instruction"),
    Column("target"),
    Column("share of its samples", numeric=True),
)
_BUFFERS = (
    Column("llama.cpp"),
    Column("buffer"),
    Column("weights", numeric=True),
    Column("types"),
    Column("size", numeric=True),
    Column("share of FLOPs", numeric=True),
)
SHOWN = 4  # kernels of one run
_SIGN = {"proven": "✓", "other instructions": "✗", "not possible here": "·", "unproven": "!"}
NOTE = (
    "A sample is the instruction at a thread's program counter when its CPU-time clock ticks; its target is the one "
    "that has such instructions. burn is judged by its multiply-adds, llama.cpp, whose kernels mix widths, by all of "
    "its vector instructions."
)


def isa_table(verdict: Verdict) -> Fragment:
    """Return the proofs of a cell, those that do not hold first, with the kernels and buffers that they stand on."""
    found = verdict.measured.isa
    if found is None or not found.proofs:
        rung = verdict.rung(Rung.T7)
        return paragraph(f"Which instructions ran: {ABSENT}." + (f" {rung.note}" if rung and rung.note else ""))
    return proof_tables(found.proofs, () if found.deployed is None else (found.deployed,))


def proof_tables(proofs: Sequence[IsaProof], deployed: Sequence[IsaProof] = ()) -> Fragment:
    """Return the tables of some proofs; ``deployed`` are runs that are shown beside them and not judged."""
    shown = sorted(proofs, key=lambda proof: proof.proven)
    rows = [proof_row(proof) for proof in shown] + [
        [*proof_row(p)[:3], "not judged", *proof_row(p)[4:]] for p in deployed
    ]
    marks = ["" if proof.proven else "bad" for proof in shown] + [""] * len(deployed)
    kernels = [_kernel(p, kernel) for p in [*shown, *deployed] for kernel in _kernels(p)]
    buffers = [_buffer(p, b) for p in [*shown, *deployed] for b in p.evidence.buffers]
    below = ((_KERNELS, kernels, "kernels"), (_BUFFERS, buffers, "buffers"))
    tables = [table(columns, found, css=name) for columns, found, name in below if found]
    return joined([table(_PROOFS, rows, marks=marks, css="proofs"), note(NOTE), *tables])


def proof_row(proof: IsaProof) -> list[str]:
    """Return one proof as a row: engine and run, requested, observed, what is known, samples, the reason."""
    evidence = proof.evidence
    word = f"{_SIGN[side_word(proof)]} {side_word(proof)}"
    samples = NONE if evidence.sampled is None else count(evidence.sampled.own)
    told = [f"{name} {value}" for name, value in evidence.arithmetic.items()]
    reason = "; ".join([*filter(None, [evidence.impossible]), proof.reason])
    reason += f"; arithmetic: {', '.join(told)}" if told else ""
    return [f"{evidence.engine}, {evidence.run}", evidence.requested, proof.observed, word, samples, reason]


def _kernels(proof: IsaProof) -> Sequence[Kernel]:
    return () if proof.evidence.sampled is None else proof.evidence.sampled.kernels[:SHOWN]


def _kernel(proof: IsaProof, kernel: Kernel) -> list[str]:
    sampled = proof.evidence.sampled
    share = NONE if sampled is None or not sampled.own else percent(kernel.n / sampled.own)
    name = kernel.function or f"{kernel.library}, no symbol"
    name += f" ({kernel.inlined.rsplit('::', 1)[-1]})" if kernel.inlined else ""
    width = "tile" if kernel.bits > 512 else f"{kernel.bits} bits"
    engine = proof.evidence.engine if proof.evidence.engine == BURN else f"llama.cpp, {proof.evidence.run}"
    return [engine, name, f"{kernel.instruction}, {width}", target_of(kernel.features) or NONE, share]


def _buffer(proof: IsaProof, buffer: Buffer) -> list[str]:
    flops = sum(b.flops for b in proof.evidence.buffers)
    types = ", ".join(f"{n} {kind}" for kind, n in buffer.types.items())
    share = percent(buffer.flops / flops) if flops else NONE
    return [proof.evidence.run, buffer.name, count(buffer.weights), types, size(buffer.bytes), share]
