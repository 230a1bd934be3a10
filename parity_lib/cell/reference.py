"""The reference's part of a cell: generated tokens and scored rows, on the file and its twins; cached.

Everything that can change a bit of it is part of the key: files, prompts, llama.cpp and its build receipt, the target,
the machine class, settings, threads, and the source files that run it (``key_sources``).
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parity_lib.base.errors import EngineError
from parity_lib.base.json_text import dump_line, encode
from parity_lib.base.names import Settings
from parity_lib.cell import prompt_tokens
from parity_lib.cell import rows as logits
from parity_lib.cell.key_sources import source_sha256
from parity_lib.cell.open_engines import open_llama
from parity_lib.cell.reference_cache import Kept, open_slot
from parity_lib.cell.request import Cell
from parity_lib.cell.rows import Rows
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.isa_build import target_receipt
from parity_lib.engines.llamacpp.settings import asked
from parity_lib.engines.machine import machine_class
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.twins import ensure_twin

COMPUTED, CACHED, AGAIN = "computed", "cached", "computed again, bit-equal"


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What the reference generated from the deployed file, and the rows it saw while it did."""

    prompts: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...]
    rows: Rows
    token_text: Mapping[int, bytes]  # of every id in the vocabulary; empty where the file has none

    @property
    def sequences(self) -> list[list[int]]:
        """Return what every engine is fed."""
        return logits.fed_sequences(self.prompts, self.generated)

    @property
    def prompt_lengths(self) -> list[int]:
        """Return the number of tokens of each prompt."""
        return [len(prompt) for prompt in self.prompts]


def generate(cell: Cell) -> Reference:
    """Generate greedily with llama.cpp from the deployed file, strict settings, and keep the logit rows.

    Raises:
        EngineError: a prompt does not fit; or recomputed rows differ from the cached ones.
    """
    kept = through_cache(cell, "reference", {}, lambda: _generated(cell))
    assert kept.rows is not None, "a reference is kept with its rows"
    prompts, generated = (tuple(map(tuple, kept.data[name])) for name in ("prompts", "generated"))
    text = {int(token): bytes.fromhex(value) for token, value in kept.data["token_text"].items()}
    return Reference(prompts, generated, kept.rows, text)


def _generated(cell: Cell) -> Kept:
    progress = cell.progress.step("llama.cpp generates")
    n_tokens = [prompt.n_tokens for prompt in cell.suite.prompts]
    with open_llama(cell) as engine:
        n_vocab = engine.call("n_vocab")
        prompts = prompt_tokens.prompt_tokens(cell.suite, cell.facts, engine)
        text = prompt_tokens.token_text(cell.facts, engine, n_vocab)
        spool = cell.spools / "reference.f32"
        generated = engine.call("generate", prompts, n_tokens, spool, progress=progress)
        run = engine.call("run_info")
    sequences = logits.fed_sequences(prompts, generated)
    lengths = [len(prompt) for prompt in prompts]
    rows = logits.delivered(run, spool, n_vocab, sequences, lengths, [len(s) for s in sequences])
    words = {str(token): value.hex() for token, value in text.items()}
    return Kept({"prompts": prompts, "generated": generated, "token_text": words}, rows)


def score_twin(cell: Cell, reference: Reference) -> Rows:
    """Score the same tokens with llama.cpp on the F32 twin, strict settings.

    Raises:
        EngineError: recomputed rows differ from the cached ones.
    """

    def make() -> Kept:
        with open_llama(cell, cell.twin_path) as engine:
            return Kept({}, score(cell, engine, reference, "twin", "llama.cpp scores the F32 twin"))

    kept = through_cache(cell, "twin", {"twin_sha256": sha256_file(cell.twin_path), **fed(reference)}, make)
    assert kept.rows is not None, "a twin is kept with its rows"
    return kept.rows


def score_bf16_twin(cell: Cell, reference: Reference) -> Rows:
    """Score the same tokens with llama.cpp on the BF16 twin. Raises as ``score_twin``."""
    twin = ensure_twin(cell.model_path, cell.pins, kind="BF16")
    fields = {"twin_sha256": sha256_file(twin), **fed(reference)}
    kept = through_cache(cell, "bf16twin", fields, lambda: Kept({}, capture_bf16_twin(cell, reference)))
    assert kept.rows is not None, "a twin is kept with its rows"
    return kept.rows


def score(cell: Cell, engine: Worker, reference: Reference, name: str, step: str) -> Rows:
    """Score the tokens that the reference was fed with an engine; the rows go to the cell's spool ``name``."""
    spool = cell.spools / f"{name}.f32"
    sequences = reference.sequences
    counts = engine.call("score", sequences, spool, progress=cell.progress.step(step))
    run, n_vocab = engine.call("run_info"), engine.call("n_vocab")
    return logits.delivered(run, spool, n_vocab, sequences, reference.prompt_lengths, counts)


def fed(reference: Reference) -> dict[str, str]:
    """Return the hashes of the fed tokens and of the reference's rows, for the cache key of a result."""
    return {
        "sequences_sha256": hashlib.sha256(dump_line(reference.sequences).encode()).hexdigest(),
        "reference_sha256": hashlib.sha256(reference.rows.digests.tobytes()).hexdigest(),
    }


def through_cache(
    cell: Cell, part: str, fields: Mapping[str, Any], make: Callable[[], Kept], *, again: bool = True
) -> Kept:
    """Return a result from the cache, or compute and cache it; the cell's diary records which.

    Args:
        cell: the cell. ``fresh`` in its request makes it in any case and holds it to what is kept.
        part: one lower-case word.
        fields: what changes this part beside what changes every part.
        make: computes it.
        again: whether ``fresh`` is for this part too.

    Raises:
        EngineError: what was made again differs from what is kept. The entry is taken out and nothing is kept in its
            place: neither of the two can be trusted, and the next run must not go on with either.
    """
    diary = cell.diary
    cell.progress.step(f"llama.cpp's {part}, from the cache if it can be")
    with open_slot({"part": part, **_fields(cell, part), **fields}, diary.notes) as slot:
        kept = None if slot is None else slot.load(cell.spools / f"{part}.f32")
        if kept is not None and not (cell.request.fresh and again):
            diary.cache[part] = CACHED
            return kept
        made = make()
        if slot is not None and kept is not None:
            differences = kept.differences(made)
            if differences:
                slot.refute()
                raise _contradiction(part, kept, differences)
        elif slot is not None:
            slot.store(made)
        diary.cache[part] = AGAIN if kept is not None else COMPUTED
        return made


def _contradiction(part: str, kept: Kept, differences: Sequence[str]) -> EngineError:
    made = "" if kept.rows is None else f", made on {kept.rows.run.host} at {kept.rows.run.started_at}"
    return EngineError(
        "the reference, computed again, is not bit-equal to what is kept: it is not deterministic on this machine, or "
        "what is kept was made by another one of its class",
        place=f"{part} of the reference",
        expected=f"the rows of the cache{made}",
        found="; ".join(differences),
        next_step="the entry was taken out of the cache; run the cell twice more with fresh, and see whether it agrees",
    )


def _fields(cell: Cell, part: str) -> dict[str, Any]:
    """Return what changes every part of the reference."""
    return {
        "model_sha256": sha256_file(cell.model_path),
        "prompts_sha256": cell.suite.sha256,
        "llama_cpp": cell.pins.llama_cpp.commit,
        "receipt": encode(target_receipt(cell.pins.llama_cpp, cell.sides.reference.isa)),
        "isa": cell.sides.reference.isa,
        "machine_class": machine_class(),
        "libc": " ".join(platform.libc_ver()),
        "n_threads": cell.n_threads,
        "settings": asked(Settings.STRICT) | {"environment": worker_env(Settings.STRICT)},
        "source_sha256": source_sha256(part),
    }


def capture_bf16_twin(cell: Cell, reference: Reference) -> Rows:
    """Score the cell's tokens with llama.cpp on the BF16 twin of the file, strict settings."""
    path = ensure_twin(cell.model_path, cell.pins, kind="BF16")
    with open_llama(cell, path) as engine:
        return score(cell, engine, reference, "bf16-twin", "llama.cpp scores the BF16 twin")
