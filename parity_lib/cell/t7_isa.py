"""The capture of rung T7: samples which instructions computed a cell's rows.

The candidate's own teacher-forced pass was sampled while it made the rows that are judged. The reference's rows may
come from the cache; its evidence is taken once on the same file, build, settings and machine class, and kept with them.
Strict settings keep every weight where the file has it, so nothing is repacked and no tile is ever touched there: where
an ISA target lives in llama.cpp's extra buffers (AMX), its defaults are proved as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from parity_lib.base.json_text import encode
from parity_lib.base.names import Isa, Settings
from parity_lib.base.record import decode_record
from parity_lib.cell.climbed import Finding
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference import Reference, through_cache
from parity_lib.cell.reference_cache import Kept
from parity_lib.cell.request import Cell
from parity_lib.engines.llamacpp.settings import ASLEEP
from parity_lib.engines.targets import Side
from parity_lib.judge.t7_isa import judge_isa, prove
from parity_lib.numerics.isa_samples import MIN_PRODUCTS
from parity_lib.records.isa_evidence import UNPROVEN, Evidence
from parity_lib.records.measured import Instructions, Measured

PLAIN = {str(Isa.AMX): str(Isa.AVX512)}
"""Targets that llama.cpp reaches only with extra buffers, and what the same build runs with strict settings."""
SECONDS = 4.0  # of CPU time for sampled passes of the reference


def prove_isa(cell: Cell, reference: Reference, burn: Evidence) -> Finding:
    """Return rung T7 of a cell: for each engine the requested target, the samples, and their judgement.

    Args:
        cell: the cell.
        reference: what was fed.
        burn: the candidate's evidence, of the rows that are judged.
    """
    cell.progress.step("instructions")
    sides = cell.sides
    strict, deployed = (_beside(e, cell, sides.reference) for e in reference_evidence(cell, reference.sequences))
    proofs = [prove(_beside(burn, cell, sides.candidate)), prove(strict)]
    told, tiled = prove(deployed), sides.reference.isa in PLAIN
    if tiled:
        proofs.append(told)
    rung, divergences = judge_isa(proofs, expected=2 + tiled, required=cell.request.require_isa)
    seen = Instructions(tuple(proofs), cell.request.require_isa, deployed=None if tiled else told)
    return Finding(rung, tuple(divergences), Measured(isa=seen))


def _beside(evidence: Evidence, cell: Cell, side: Side) -> Evidence:
    """Return an engine's evidence, with the reason if it was asked for a narrower target than the cell."""
    words = f"{cell.id.isa} is not possible for {evidence.engine} here, which ran {side.isa}: {side.lacks}"
    return replace(evidence, impossible=words if side.lacks else "")


def is_seen(evidence: Evidence) -> bool:
    """Return whether enough multiply-adds of a candidate were sampled to judge it."""
    return evidence.sampled is not None and sum(evidence.sampled.products.values()) >= MIN_PRODUCTS


def reference_evidence(cell: Cell, sequences: Sequence[Sequence[int]]) -> list[Evidence]:
    """Return the reference's evidence with strict settings and with its defaults, taken now or from the cache.

    Strict settings are asked for what an ISA target's build can run without extra buffers.
    """
    sequence = max(sequences, key=len)

    def make() -> Kept:
        return Kept({str(s): encode(_run(cell, s, sequence)) for s in (Settings.STRICT, Settings.DEFAULT)})

    kept = through_cache(cell, "dispatch", {}, make, again=False)
    strict, deployed = _asked(cell, kept)
    if prove(strict).observed == UNPROVEN:  # too little was seen then; what is kept must not say so for ever
        strict, deployed = _asked(cell, make())
    return [strict, deployed]


def _asked(cell: Cell, kept: Kept) -> tuple[Evidence, Evidence]:
    both = (kept.data[str(settings)] for settings in (Settings.STRICT, Settings.DEFAULT))
    strict, deployed = (decode_record(data, Evidence, "the cached dispatch") for data in both)
    isa = cell.sides.reference.isa
    return replace(strict, requested=PLAIN.get(isa, isa)), deployed


def _run(cell: Cell, settings: Settings, sequence: Sequence[int]) -> Evidence:
    with open_llama(cell, settings=settings, kind="llama_dispatch", env=ASLEEP) as engine:
        evidence: Evidence = engine.call("prove_isa", sequence, SECONDS)
    return evidence
