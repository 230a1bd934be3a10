"""What T5 measures by: the current self-spread, its pinned or derived limits, and whether both fit the cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parity_lib.base.names import Kind
from parity_lib.judge.self_spread import METRICS, limits, pooled, sigmas
from parity_lib.records.row_numbers import Numbers
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.self_spread_pins import SpreadPin
from parity_lib.records.traces import PairTrace, Position


@dataclass(frozen=True, slots=True)
class Basis:
    """What the candidate is measured against: the current self-spread, and the limits of the ratios."""

    names: tuple[str, ...]  # variants that are pooled
    base: Numbers
    own_class: bool  # the pin is of this machine class: its values and its displaced flips hold as well
    limit: dict[str, float]
    ratio: dict[str, float]  # of the reference's twin, where the limits were derived
    sigma: dict[Position, float]
    displaced: frozenset[tuple[int, int, Kind]]
    source: str


def foreign(pair: PairTrace, expected: Sequence[Position], spread: SelfSpread) -> list[str]:
    """Return why this self-spread does not belong to this pair, one sentence each; empty if it does."""
    found = []
    run = pair.reference.run
    for words, ours, theirs in (
        ("file", run.model_sha256, spread.model_sha256),
        ("target", run.isa_requested, spread.isa),
        ("machine class", run.machine_class, spread.machine_class),
    ):
        if ours != theirs:
            found.append(f"the self-spread is of another {words}: {theirs} instead of {ours}")
    keys = zip(spread.prompt_idx.tolist(), spread.token_idx.tolist(), strict=True)
    if tuple(Position(*key) for key in keys) != tuple(expected):
        found.append(f"the self-spread has {len(spread)} positions, and not those that the cell expects")
    return found


def missing_rows(spread: SelfSpread) -> list[str]:
    """Return the variants that gave fewer positions than they were asked for."""
    return [
        f"self-spread {variant.name}: {len(variant)} of {variant.asked} positions"
        for variant in (*spread.variants, spread.twin)
        if len(variant) != variant.asked or not variant.asked
    ]


def is_own_twin(spread: SelfSpread) -> bool:
    """Return whether the F32 twin gives the rows of the file itself at every position."""
    return 0 < len(spread.twin) == spread.twin.asked == len(spread) and not spread.twin.rms.any()


def basis_of(spread: SelfSpread, pin: SpreadPin | None) -> Basis:
    """Return what to measure by. Raises ``EngineError`` if a variant is missing or no limit can be derived."""
    own = pin is not None and (pin.machine_class, pin.model_sha256) == (spread.machine_class, spread.model_sha256)
    names = pin.variants if pin is not None and own else spread.counted
    keys = zip(spread.prompt_idx.tolist(), spread.token_idx.tolist(), strict=True)
    sigma = {Position(*key): value for key, value in zip(keys, sigmas(spread, names).tolist(), strict=True)}
    if pin is None:
        derived = limits(spread, names)
        limit = {found.metric: found.limit for found in derived}
        ratio = {found.metric: found.ratio for found in derived}
        source = "no self-spread is pinned: limits derived from the reference's own twin on these rows"
    else:
        limit = {metric: pin.limit(metric) for metric in METRICS}
        ratio = {metric: pin.ratio(metric) for metric in METRICS}
        source = pin.source if own else f"limits of another machine class: {pin.source}"
    known = pin.displaced if pin is not None and own else spread.displaced
    return Basis(names, pooled(spread, names), own, limit, ratio, sigma, frozenset(known), source)
