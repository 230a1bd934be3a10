"""The reference against itself: its self-spread, and which of its rows are bit-equal on another way to them.

Both cost more passes than the rows themselves, so both are kept in the cache beside them.
"""

from __future__ import annotations

from collections.abc import Sequence

from parity_lib.base.json_text import encode
from parity_lib.base.record import decode_record
from parity_lib.cell import rows as logits
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference import Reference, fed, through_cache
from parity_lib.cell.reference_cache import Kept
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.cell.t5_spread import capture_spread
from parity_lib.cell.t6_self import make_plan
from parity_lib.engines.llamacpp.isa_build import find_other_build
from parity_lib.model_file.digest import sha256_file
from parity_lib.records.measured import EqualRows
from parity_lib.records.self_spread import DEFAULT_DECODE, SelfSpread
from parity_lib.records.traces import Position

PREFILL, THREADS = "prefill = decode, strict", "threads, strict"
DEFAULTS = "prefill = decode, defaults"


def kept_spread(cell: Cell, reference: Reference, twin: Rows | None) -> SelfSpread:
    """Return the reference's self-spread on the file as it is, measured now or taken from the cache.

    A request for a fresh reference is not for the spread: it would cost as much again as all of the rest.
    """
    other = find_other_build(cell.pins.llama_cpp, cell.sides.reference.isa)
    fields = {**fed(reference), "twin_sha256": sha256_file(cell.twin_path), "other_build": str(other)}

    def make() -> Kept:
        return Kept(encode(capture_spread(cell, reference, twin)))

    return decode_record(through_cache(cell, "spread", fields, make, again=False).data, SelfSpread, "the cached spread")


def measure_reference(cell: Cell, reference: Reference) -> dict[str, EqualRows]:
    """Return how many rows of the reference, strict settings, are bit-equal to those that it decoded, by relation.

    PREFILL: up to 512 rows a graph, against the rows that it saw one by one while it generated. THREADS: the shortest
    prompts with another number of threads. Both are expected to be equal to the bit.
    """
    kept = through_cache(cell, "relations", fed(reference), lambda: _measured(cell, reference), again=False)
    return {name: decode_record(rows, EqualRows, "the cached relations") for name, rows in kept.data.items()}


def defaults_relation(spread: SelfSpread) -> dict[str, EqualRows]:
    """Return PREFILL with the defaults instead, from the self-spread; rows of rms 0 are equal, but for signed zeros."""
    variant = spread.variant(DEFAULT_DECODE)
    if variant is None:
        return {}
    return {DEFAULTS: EqualRows(len(variant), int((variant.rms == 0).sum()))}


def _measured(cell: Cell, reference: Reference) -> Kept:
    everything, n_threads = range(len(reference.prompts)), cell.n_threads
    plan = make_plan([len(tokens) for tokens in reference.sequences], n_threads)
    batches = _equal_rows(cell, reference, everything, n_threads, "llama.cpp prefills")
    threads = _equal_rows(cell, reference, plan.threads, plan.n_threads, "llama.cpp with other threads")
    return Kept(encode({PREFILL: batches, THREADS: threads}))


def _equal_rows(cell: Cell, reference: Reference, prompts: Sequence[int], n_threads: int, step: str) -> EqualRows:
    """Score some prompts in batches and count the rows that are bit-equal to those that the reference saw."""
    sequences = [reference.sequences[i] for i in prompts]
    lengths = [reference.prompt_lengths[i] for i in prompts]
    spool = cell.spools / "relations.f32"
    with open_llama(cell, cell.model_path, n_threads=n_threads) as engine:
        counts = engine.call("score", sequences, spool, progress=cell.progress.step(step))
        run, n_vocab = engine.call("run_info"), engine.call("n_vocab")
    again = logits.delivered(run, spool, n_vocab, sequences, lengths, counts)
    seen = dict(zip(reference.rows.positions, reference.rows.digests, strict=True))
    named = [Position(prompts[p.prompt_idx], p.token_idx) for p in again.positions]
    equal = sum(bool((seen[p] == digest).all()) for p, digest in zip(named, again.digests, strict=True))
    spool.unlink()
    return EqualRows(len(named), equal)
