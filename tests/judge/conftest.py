"""Small pairs of traces from rows of logits, and self-spreads of such rows, made by the real statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from msgspec.structs import replace

from parity_lib.base.names import LedgerClass
from parity_lib.cell.derive import pin_of
from parity_lib.judge.align import align
from parity_lib.judge.flips import ledger_of
from parity_lib.judge.self_spread import measured, sigmas
from parity_lib.numerics.metrics import pair_statistics, row_digests
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.self_spread import (
    DEFAULT,
    DEFAULT_DECODE,
    FLASH_F16,
    STRICT,
    TWIN,
    Displaced,
    SelfSpread,
    Variant,
)
from parity_lib.records.self_spread_pins import SpreadPin
from parity_lib.records.traces import F32, LogitTrace, PairTrace, Position, expected_positions
from tests.drift_limits import drift_limits
from tests.run_info import run_info, variant_run


def build_pair(reference: F32, candidate: F32, positions: tuple[Position, ...]) -> PairTrace:
    both = pair_statistics(reference, candidate)
    prompt_idx, token_idx = (np.array([p[i] for p in positions], np.int32) for i in range(2))

    def trace(engine: str, rows: F32, side: str) -> LogitTrace:
        statistics = getattr(both, side)
        return LogitTrace(
            run=run_info(engine),
            n_vocab=rows.shape[1],
            prompt_idx=prompt_idx.copy(),
            token_idx=token_idx.copy(),
            fed_id=np.zeros(len(rows), np.int32),
            row_sha256=row_digests(rows),
            **{name: getattr(statistics, name) for name in statistics.__slots__},
        )

    rest = {name: getattr(both, name) for name in both.__slots__ if name not in ("reference", "candidate")}
    return PairTrace(trace("llama.cpp", reference, "reference"), trace("burn", candidate, "candidate"), **rest)


@dataclass
class Case:
    """Rows of both engines for three prompts (4, 1 and 6 tokens; 5, 3 and 4 generated), 20 positions in all."""

    reference: F32
    candidate: F32
    positions: tuple[Position, ...]

    @property
    def pair(self) -> PairTrace:
        return build_pair(self.reference, self.candidate, self.positions)

    def row(self, prompt_idx: int, token_idx: int) -> int:
        return self.positions.index(Position(prompt_idx, token_idx))

    def keep(self, rows: list[int]) -> PairTrace:
        positions = tuple(self.positions[i] for i in rows)
        return build_pair(self.reference[rows], self.candidate[rows], positions)


@pytest.fixture
def case() -> Case:
    """Return a pair at parity: noise of 1e-6 of std, well-separated top logits."""
    rng = np.random.default_rng(11)
    positions = expected_positions([4, 1, 6], [5, 3, 4])
    reference = rng.normal(0, 7.5, (len(positions), 300)).astype(np.float32)
    ladder = np.linspace(40, 33, 8, dtype=np.float32)
    for i, row in enumerate(reference):
        row[rng.permutation(300)[:8]] = ladder + i / 16
    candidate = (reference + rng.normal(0, 7.5e-6, reference.shape)).astype(np.float32)
    return Case(reference, candidate, positions)


@pytest.fixture
def make_limits() -> Callable[..., DriftLimits]:
    def make(**wishes: float) -> DriftLimits:
        return drift_limits(expected_positions([4, 1, 6], [5, 3, 4]), **wishes)

    return make


_MEASURED: dict[object, Variant] = {}  # most tests change the candidate alone


@dataclass
class NativeCase(Case):
    """As ``Case``, with the other rows of the reference: what llama.cpp gives when it is run in other ways.

    ``reference`` is the exact product plus a noise, as are the other ways; ``twin`` is the exact product, and the
    candidate is the twin but for rounding.
    """

    twin: F32
    ways: dict[str, F32]

    @property
    def undisplaced(self) -> SelfSpread:
        """Return the record of these rows without the flips of the twin."""
        n = len(self.positions)

        def of(name: str, against: str, left: F32, right: F32) -> Variant:
            key = (name, against, self.positions, left.tobytes(), right.tobytes())
            if key not in _MEASURED:
                seen = align(build_pair(left, right, self.positions), self.positions)
                _MEASURED[key] = measured(name, against, seen, self.positions, asked=n, run=variant_run(name))
            return _MEASURED[key]

        variants = [of(name, STRICT, self.reference, rows) for name, rows in self.ways.items()]
        if DEFAULT_DECODE in self.ways:
            decode = of(DEFAULT_DECODE, DEFAULT, self.ways[DEFAULT], self.ways[DEFAULT_DECODE])
            variants = [decode if v.name == DEFAULT_DECODE else v for v in variants]
        twin = of(TWIN, STRICT, self.reference, self.twin)
        indices = (np.array([p[i] for p in self.positions], np.int32) for i in range(2))
        run = run_info("llama.cpp")
        keys = (run.model_sha256, "0" * 64, run.isa_requested, run.machine_class, run.commit)
        return SelfSpread(*keys, *indices, tuple(variants), {"other_build": "a test has none"}, twin)

    @property
    def spread(self) -> SelfSpread:
        """Return the record that the capture would make of these rows."""
        made = self.undisplaced
        seen = align(build_pair(self.reference, self.twin, self.positions), self.positions)
        flips = ledger_of(seen, sigmas(made, made.counted)).flips
        known = tuple(Displaced(*f.position, f.kind) for f in flips if f.ledger is LedgerClass.UNEXPLAINED)
        return replace(made, displaced=known)


PLACE = (2, 1)  # prompt, token
NOISE = 0.1  # of a logit, each way for itself: 0.013 of the rows' deviation


@pytest.fixture
def native(sound_native: NativeCase) -> NativeCase:
    """Return a sound case that the test may change."""
    return copy.deepcopy(sound_native)


@pytest.fixture(scope="session")
def pin(sound_native: NativeCase) -> SpreadPin:
    """What was pinned while everything was sound."""
    return pin_of(sound_native.spread, "m", "Q8_0", "a test")


@pytest.fixture(scope="session")
def sound_native() -> NativeCase:
    """Return 12 prompts, 240 positions: each way of the reference is the exact product plus its own noise."""
    rng = np.random.default_rng(23)
    positions = expected_positions([11] * 12, [10] * 12)
    exact = rng.normal(0, 7.5, (len(positions), 300))
    for row in exact:
        row[rng.permutation(300)[:8]] = np.linspace(40, 33, 8)

    def noisy(size: float = NOISE) -> F32:
        return np.asarray(exact + rng.normal(0, size, exact.shape), np.float32)

    reference, twin = noisy(), exact.astype(np.float32)
    ways = {name: noisy() for name in (DEFAULT, FLASH_F16, DEFAULT_DECODE)}
    return NativeCase(reference, twin.copy(), positions, twin, ways)


def rank(case: Case, place: tuple[int, int], number: int) -> int:
    """Return the id that the reference has at a rank (0 is the first) of a position."""
    return int(np.argsort(-case.reference[case.row(*place)], kind="stable")[number])
