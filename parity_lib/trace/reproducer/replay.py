"""Recompute both engines' value of a reproducer on this machine, and judge whether they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_lib.base.errors import ParityError, PinError
from parity_lib.base.names import Settings
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.buffers import PLAIN
from parity_lib.engines.llamacpp.isa_build import target_env
from parity_lib.engines.llamacpp.settings import worker_env
from parity_lib.engines.oracle import one_op as oracle_op
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.one_op import distance
from parity_lib.records.pins import load_pins
from parity_lib.records.traces import F32, F64
from parity_lib.trace.reproducer.format import Reproducer, load
from parity_lib.trace.reproducer.make import reduced_value


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One engine's value of the op, flat: recorded and recomputed."""

    recorded: F32
    now: F32 | None  # None: it could not be recomputed
    why: str  # not; empty if it could

    @property
    def is_same(self) -> bool:
        """Return whether both are the same to the bit."""
        return self.now is not None and np.array_equal(self.recorded, self.now, equal_nan=True)


@dataclass(frozen=True, slots=True, eq=False)
class ReproducerReplay:
    """Both sides of a reproducer, recomputed."""

    reproducer: Reproducer
    reference: Side
    candidate: Side
    oracle: F64  # float64 on the same inputs
    fault: str  # that was seeded this time
    same_commit: bool  # of llama.cpp, here and in the recorded run

    @property
    def recorded(self) -> float:
        """Return the recorded distance of both sides, in the unit of the limit."""
        return self.distance(self.reproducer.reference, self.reproducer.candidate)

    @property
    def now(self) -> float | None:
        """Return the recomputed distance; None if a side could not be computed."""
        if self.reference.now is None or self.candidate.now is None:
            return None
        return self.distance(self.reference.now, self.candidate.now)

    @property
    def agrees(self) -> bool | None:
        """Return whether both sides agree now; None if undecided.

        A reproducer that never gave the candidate's value again holds the op, but not what went wrong around it: that
        its op agrees says nothing about the run that it was taken from. Where the same llama.cpp does not give its own
        value again, nothing can be said at all.
        """
        now = self.now
        if now is None or not self.reference_stands or not self.is_finite:
            return None
        agrees = now <= self.reproducer.limit.value
        return None if agrees and not self.reproducer.reproduced else agrees

    @property
    def is_finite(self) -> bool:
        """Return whether llama.cpp's value is finite where it is judged; what is not is no value to agree with."""
        judged = list(self.reproducer.op.judged)
        return self.reference.now is not None and bool(np.isfinite(self.reference.now[judged]).all())

    @property
    def reference_stands(self) -> bool:
        """Return whether the reference gives its recorded value again, within the limit; another commit need not."""
        if self.reference.now is None or not self.same_commit:
            return self.reference.now is not None
        return self.distance(self.reference.recorded, self.reference.now) <= self.reproducer.limit.value

    def distance(self, reference: F32 | F64, candidate: F32 | F64) -> float:
        """Return the distance of two values at the judged numbers, in the unit of the limit."""
        return distance(self.reproducer.limit, reference, candidate, self.reproducer.op.judged)


def replay_reproducer(folder: Path, *, sound: bool = False) -> ReproducerReplay:
    """Recompute both sides of a reproducer, without the model file.

    Args:
        folder: the reproducer.
        sound: leave a seeded fault out.

    Raises:
        RecordError: the reproducer cannot be read.
    """
    reproducer = load(Path(folder))
    fault = "" if sound else reproducer.fault
    isa = str(machine.host_target() or reproducer.cell.isa)
    recorded = reproducer.engines.reference.commit  # short, as the library says it
    return ReproducerReplay(
        reproducer=reproducer,
        reference=_side(reproducer.reference, lambda: _reference(reproducer)),
        candidate=_side(
            reproducer.candidate, lambda: reduced_value(None, reproducer.op, fault, isa, reproducer.cell.stack)
        ),
        oracle=oracle_op.value(reproducer.op),
        fault=fault,
        same_commit=load_pins().llama_cpp.commit.startswith(recorded.removesuffix("-dirty")),
    )


def _side(recorded: F32, compute: Callable[[], F32]) -> Side:
    try:
        return Side(recorded, compute(), "")
    except ParityError as error:
        return Side(recorded, None, str(error))


def _reference(reproducer: Reproducer) -> F32:
    with Worker("llama_op", {"n_threads": 1}, env=worker_env(Settings.STRICT) | _target(reproducer)) as engine:
        value: F32 = engine.call("value", reproducer.op)
    return value


def _target(reproducer: Reproducer) -> dict[str, str]:
    """Return the environment of the ISA target that the reference ran on.

    Where this machine cannot run it, its own build takes a weight as the file has it: plain kernels of all targets
    round alike. A re-ordered weight has the kernels of its ISA target alone.

    Raises:
        PinError: this machine lacks the ISA target of a re-ordered weight.
    """
    try:
        return target_env(load_pins().llama_cpp, reproducer.engines.reference.isa)
    except PinError:
        if reproducer.op.buffer in PLAIN:
            return {}
        raise
