"""Run the reference in several ways on the same tokens and keep how far it is from itself, position by position."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Isa, LedgerClass, Settings
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.rows import Rows
from parity_lib.engines.llamacpp.buffers import AMX, REPACK, reordering
from parity_lib.engines.llamacpp.isa_build import find_other_build
from parity_lib.engines.llamacpp.settings import ASLEEP, N_UBATCH
from parity_lib.judge.align import Aligned, align
from parity_lib.judge.flips import ledger_of
from parity_lib.judge.self_spread import measured, sigmas
from parity_lib.records.runs import LlamaRun, llama
from parity_lib.records.self_spread import (
    AGAINST,
    DEFAULT,
    DEFAULT_DECODE,
    FLASH_F16,
    OTHER_BUILD,
    STRICT,
    TWIN,
    Displaced,
    SelfSpread,
    Variant,
    VariantRun,
    with_copies_marked,
)
from parity_lib.records.traces import Position, expected_positions

if TYPE_CHECKING:
    from parity_lib.cell.reference import Reference
    from parity_lib.cell.request import Cell

DECODE_TOKENS = 256
"""Prompts of up to so many fed tokens are decoded one at a time. A longer one costs more than all others together, and
from 512 cached positions on the flash kernel splits its work by the number of threads: no pin could hold."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to run the reference on the file as it is, or on its twin."""

    name: str
    words: str  # for the progress
    settings: Settings = Settings.STRICT
    isa: str = ""  # another ISA target than the cell's
    batch: int = N_UBATCH
    longest: int = 0  # fed tokens of a prompt that takes part; 0: any
    env: Mapping[str, str] = field(default_factory=dict)


WAYS = (
    _Way(DEFAULT, "llama.cpp scores with its defaults", Settings.DEFAULT),
    _Way(FLASH_F16, "llama.cpp scores with an F16 cache", Settings.FLASH_F16),
    _Way(DEFAULT_DECODE, "llama.cpp decodes with its defaults", Settings.DEFAULT, batch=1, longest=DECODE_TOKENS),
)
TWIN_WAY = _Way(TWIN, "llama.cpp scores the F32 twin")


def capture_spread(cell: Cell, reference: Reference, twin: Rows | None = None) -> SelfSpread:
    """Return the reference's own spread on the file as it is, each variant run in a worker of its own.

    Args:
        cell: the cell.
        reference: its strict rows on the deployed file, and what it was fed.
        twin: the reference's rows on the F32 twin, if they are there already; else they are made.

    Raises:
        EngineError: a variant failed, or did not run as its name says.
    """
    expected = expected_positions(reference.prompt_lengths, [len(tokens) for tokens in reference.generated])
    ways, absent = _ways(cell, reference)
    variants = _variants(cell, reference, ways, expected)
    rows = twin or _score(cell, reference, TWIN_WAY, str(cell.twin_path))
    at_twin, seen = _measured(cell, TWIN_WAY, reference.rows, rows, expected)
    if twin is None:
        rows.spool.unlink()
    run = reference.rows.run
    spread = SelfSpread(
        model_sha256=run.model_sha256,
        prompts_sha256=cell.suite.sha256,
        isa=run.isa_requested,
        machine_class=run.machine_class,
        commit=run.commit,
        prompt_idx=np.array([p.prompt_idx for p in expected], np.int32),
        token_idx=np.array([p.token_idx for p in expected], np.int32),
        variants=variants,
        absent=absent,
        twin=at_twin,
    )
    return replace(spread, displaced=_displaced(spread, seen))


def _variants(
    cell: Cell, reference: Reference, ways: Sequence[_Way], expected: tuple[Position, ...]
) -> tuple[Variant, ...]:
    """Run each variant and compare its rows; delete them as soon as no other variant needs them."""
    runs: dict[str, Rows] = {STRICT: reference.rows}
    found: list[Variant] = []
    digests: dict[str, bytes] = {}
    try:
        for way in ways:
            rows = runs[way.name] = _score(cell, reference, way, str(cell.model_path))
            found.append(_measured(cell, way, runs[AGAINST[way.name]], rows, expected)[0])
            digests[way.name] = hashlib.sha256(rows.digests.tobytes()).digest()
            if way.name not in AGAINST.values():
                rows.spool.unlink()  # the rows of a long prompt have hundreds of megabytes
    finally:
        for name in set(runs) - {STRICT}:
            runs[name].spool.unlink(missing_ok=True)
    return with_copies_marked(tuple(found), digests)


def _ways(cell: Cell, reference: Reference) -> tuple[list[_Way], dict[str, str]]:
    """Return the variants to run, and why each other one is absent."""
    ways, absent = list(WAYS), {}
    if min(len(sequence) for sequence in reference.sequences) > DECODE_TOKENS:
        absent[DEFAULT_DECODE] = f"every prompt is longer than {DECODE_TOKENS} tokens"
        ways = [way for way in ways if way.name != DEFAULT_DECODE]
    other = find_other_build(cell.pins.llama_cpp, cell.sides.reference.isa)
    if isinstance(other, str):
        absent[OTHER_BUILD] = other
    else:
        env = {"LLAMA_CPP_LIB_PATH": str(other.folder)}
        ways.append(_Way(OTHER_BUILD, f"llama.cpp built for {other.isa} scores", isa=str(other.isa), env=env))
    return ways, absent


def _score(cell: Cell, reference: Reference, way: _Way, path: str) -> Rows:
    """Return the rows of one variant; a prompt that does not take part has no row."""
    sequences = reference.sequences
    takes = [not way.longest or len(sequence) <= way.longest for sequence in sequences]
    spool = cell.spools / f"spread-{way.name}.f32"
    spool.parent.mkdir(parents=True, exist_ok=True)
    # Passive wait: spinning threads change no bits but slow a busy machine badly.
    env = {**ASLEEP, **way.env}
    with open_llama(cell, Path(path), way.settings, isa=way.isa, env=env) as engine:
        fed = [sequence for sequence, takes_part in zip(sequences, takes, strict=True) if takes_part]
        given = iter(engine.call("score", fed, spool, batch=way.batch, progress=cell.progress.step(way.words)))
        run, n_vocab = engine.call("run_info"), engine.call("n_vocab")
    counts = [next(given) if takes_part else 0 for takes_part in takes]
    return logits.delivered(run, spool, n_vocab, sequences, reference.prompt_lengths, counts)


def _measured(
    cell: Cell, way: _Way, left: Rows, right: Rows, expected: tuple[Position, ...]
) -> tuple[Variant, Aligned]:
    """Return the record of one pair of runs, and the pair."""
    run = llama(right.run)
    _prove(cell, way, run)
    lengths: dict[int, int] = {}
    for position in expected:
        lengths[position.prompt_idx] = lengths.get(position.prompt_idx, 0) + 1
    asked = [p for p in expected if not way.longest or lengths[p.prompt_idx] <= way.longest]
    seen = align(logits.pair(left, right, asked), asked)
    against = AGAINST.get(way.name, STRICT)
    proof = _proof(run, way)
    return measured(way.name, against, seen, expected, asked=len(asked), run=proof), seen


def _proof(run: LlamaRun, way: _Way) -> VariantRun:
    """Return the evidence that the variant ran with the settings of its name."""
    return VariantRun(
        settings=run.settings.name,
        flash_attn=run.settings.flash_attn,
        type_k=run.settings.type_k,
        type_v=run.settings.type_v,
        tiled=run.settings.environment["GGML_CPU_TILED_MM"] == "1",
        batch=way.batch,
        longest_prompt=way.longest or None,
        weight_buffers_mib=run.isa_evidence.weight_buffers_mib,
        isa=run.isa_requested,
        target=run.build.target,
        n_threads=run.n_threads,
        seconds=run.seconds,
    )


def _prove(cell: Cell, way: _Way, run: LlamaRun) -> None:
    """Raise unless the weights lie where these settings put them; cache and attention were read back by the engine.

    Settings that were not taken would give the strict rows again, and a spread that is too small.
    """
    buffers = run.isa_evidence.weight_buffers_mib
    own = reordering(run.isa_requested, set(cell.facts.types))
    may = way.settings is Settings.DEFAULT
    must = may and own and run.isa_requested != Isa.NEON
    found = {REPACK, AMX} & set(buffers)
    if (must and not own & found) or (not may and found):
        raise EngineError(
            "llama.cpp did not run as the variant is called",
            place=f"self-spread {way.name}",
            expected=f"weights {'in' if may else 'outside of'} {' or '.join(sorted(own if may else {REPACK, AMX}))}",
            found=dict(buffers),
            next_step="see llama_cpp.log; was the reference built without repacking?",
        )


def _displaced(spread: SelfSpread, seen: Aligned) -> tuple[Displaced, ...]:
    """Return the flips of the twin that the self-spread does not explain; see ``records.self_spread.Displaced``."""
    if not spread.counted or not seen.finite.all() or seen.causes:
        return ()  # nothing to measure by: the judge says so
    ledger = ledger_of(seen, sigmas(spread, spread.counted))
    return tuple(Displaced(*f.position, f.kind) for f in ledger.flips if f.ledger is LedgerClass.UNEXPLAINED)
