"""Samples every ISA target of this machine on a small model, for `parity isa prove` and the machine's page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from parity_lib.base.errors import ParityError
from parity_lib.base.names import Settings
from parity_lib.cell.t7_isa import PLAIN, SECONDS
from parity_lib.engines import targets as isa_targets
from parity_lib.engines.burn.sources import CRATES_IO
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.isa_build import target_env
from parity_lib.engines.llamacpp.settings import ASLEEP
from parity_lib.engines.targets import Side
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t7_isa import prove
from parity_lib.models import ensure
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP, UNPROVEN, Evidence, IsaProof
from parity_lib.records.pins import Pins

MODEL, QUANT = "synthetic-llama", "Q8_0"
ROWS, SEQUENCES = 64, 4  # of what is fed; which tokens does not matter


def prove_machine(pins: Pins, targets: tuple[str, ...] = (), n_threads: int = 2) -> list[IsaProof]:
    """Return the T7 result of each engine on each ISA target, or why there is none.

    Args:
        pins: with the ISA targets of the reference and the stacks of the candidate.
        targets: only these; by default all that are pinned.
        n_threads: of each engine.
    """
    path = ensure.ensure(MODEL, QUANT, pins)
    return [
        proof for target in targets or tuple(pins.llama_cpp.targets) for proof in _target(pins, target, path, n_threads)
    ]


def _target(pins: Pins, target: str, path: Path, n_threads: int) -> Iterator[IsaProof]:
    settings = Settings.DEFAULT if target in PLAIN else Settings.STRICT
    stack = pins.stack(_stack_of(pins, target))
    yield _guarded(
        BURN,
        target,
        lambda: isa_targets.candidate_side(stack, target),
        lambda: _burn(pins, target, path, n_threads),
    )
    yield _guarded(
        LLAMA_CPP,
        target,
        lambda: isa_targets.reference_side(pins.llama_cpp, target),
        lambda: _llama(pins, target, path, settings, n_threads),
    )


def _guarded(engine: str, target: str, side: Callable[[], Side], take: Callable[[], Evidence]) -> IsaProof:
    """Return the T7 result of an engine on a target, without running it if this machine lacks the target."""
    try:
        lacks = side().lacks
        if lacks:
            evidence = Evidence(engine, "not run", target, None, lacks, impossible=f"not possible here: {lacks}")
            return IsaProof(evidence, UNPROVEN, proven=False, reason=lacks)
        return prove(take())
    except ParityError as error:
        evidence = Evidence(engine, "not run", target, None, str(error))
        return IsaProof(evidence, UNPROVEN, proven=False, reason=str(error))


def _burn(pins: Pins, target: str, path: Path, n_threads: int) -> Evidence:
    with tempfile.TemporaryDirectory() as folder, Worker("burn", burn_of(pins, target, path, n_threads)) as engine:
        evidence: Evidence = engine.call("prove_isa", _sequences(), Path(folder))
    return evidence


def burn_of(pins: Pins, target: str, path: Path, n_threads: int) -> dict[str, object]:
    """Return a candidate's settings on a target: published burn where it runs it here, else the stack of that name."""
    stack = _stack_of(pins, target)
    return {"path": str(path), "isa": target, "stack": stack, "n_threads": n_threads, "sampled": True}


def _stack_of(pins: Pins, target: str) -> str:
    plain = isa_targets.own_target(pins.stack(CRATES_IO)) == target or target not in pins.stacks
    return CRATES_IO if plain else target


def _llama(pins: Pins, target: str, path: Path, settings: Settings, n_threads: int) -> Evidence:
    asked = {"path": str(path), "settings": settings, "isa": target, "n_threads": n_threads}
    env = {**worker_env(settings), **ASLEEP, **target_env(pins.llama_cpp, target)}
    with Worker("llama_dispatch", asked, env=env) as engine:
        evidence: Evidence = engine.call("prove_isa", _sequences()[0], SECONDS)
    return evidence


def _sequences() -> list[list[int]]:
    return [[5 + (37 * i + s) % 2000 for i in range(ROWS)] for s in range(SEQUENCES)]
