"""What was measured on rows of logits (T4 and T5): flips, two engines' rows literally, llama.cpp's own spread."""

from __future__ import annotations

from collections.abc import Mapping

from parity_lib.base.names import Kind, LedgerClass
from parity_lib.base.record import Count, NotEmpty, Record
from parity_lib.records.self_spread import Displaced, VariantRun
from parity_lib.records.traces import Position


class Flip(Record, frozen=True):
    """One changed top-1 or top-5 set, with what decides its class."""

    prompt_idx: Count
    token_idx: int
    kind: Kind  # TOP1 or TOP5_SET
    ledger: LedgerClass
    margin: float  # logits, reference's own, between the two ids at issue
    sigma: float  # logits, of the difference of two top logits at this position
    reference_id: Count  # the id that lost its place
    candidate_id: Count  # the id that took it

    @property
    def position(self) -> Position:
        """Return where it is."""
        return Position(self.prompt_idx, self.token_idx)


class FlipKind(Record, frozen=True):
    """The flips of one kind, counted."""

    ties: Count
    unexplained: Count
    predicted: float  # by the reference's margins
    surplus: bool  # more ties than predicted: then margins explain none of them


class Flips(Record, frozen=True):
    """All flips of one rung."""

    counts: Mapping[Kind, FlipKind]
    flips: tuple[Flip, ...]
    known: tuple[Displaced, ...] = ()  # unexplained ones that the reference's own twin is known to show


class Summary(Record, frozen=True):
    """A number over all positions. With one NaN among the values everything here is NaN."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class PairNumbers(Record, frozen=True):
    """Counts, shares and summaries over some positions of two engines' rows; ``judge.literal`` has the formulas."""

    positions: Count
    top1_equal: Count
    top1_share: float
    top5_set_equal: Count
    top5_set_share: float
    rms: float  # logits
    rms_over_std: float  # over the deviation of all reference logits, as published tables have it
    rms_over_row_std: float  # over the deviation within rows, the unit of the bands
    max_abs: float  # logits
    delta: Summary  # |delta| at delta_id, logits
    kl_ref_cand: Summary  # nats
    kl_cand_ref: Summary  # nats
    jsd: Summary  # nats


class FirstFlip(Record, frozen=True):
    """Where the free-running greedy texts of one prompt part."""

    prompt_idx: Count
    token_idx: Count
    reference_id: Count
    candidate_id: Count
    margin: float  # logits


class NonFinite(Record, frozen=True):
    """How many logits are not finite."""

    reference: Count
    candidate: Count


class PairReport(Record, frozen=True):
    """Two engines' rows, literally."""

    all: PairNumbers | None  # None without a position
    generated: PairNumbers | None  # of token_idx >= 0
    first_top1_flips: tuple[FirstFlip, ...]
    n_nonfinite: NonFinite


class Bf16(Record, frozen=True):
    """Three distances to llama.cpp on the BF16 twin, of a cell in bf16."""

    band: PairReport  # llama.cpp on the F32 twin
    candidate: PairReport
    plain_f32: PairReport  # burn in f32


class Numbers(Record, frozen=True):
    """What one pair of the reference's runs comes to over its positions, or several pairs pooled."""

    positions: Count
    rms: float  # over the deviation within rows, pooled: the unit of the bands
    rms_over_std_of_all: float  # over the deviation of all logits together: the unit of published tables
    p99: float  # of |delta|, logits
    kl: float  # mean, nats
    top1_share: float
    top5_set_share: float
    pair_sigma: float  # root mean square, logits

    def metric(self, name: str) -> float:
        """Return one of METRICS."""
        return float(getattr(self, name))


class VariantNumbers(Numbers, frozen=True, kw_only=True):
    """One way to run the reference, compared with another."""

    against: NotEmpty
    same_as: str  # what it is a copy of, bit by bit; else empty
    run: VariantRun


class Ratio(Record, frozen=True):
    """One gate of T5: the candidate's distance over the reference's own."""

    observed: float
    self_spread: float
    ratio: float
    limit: float
    twin_ratio: float  # of the reference's own twin
    unit: NotEmpty  # of observed and self_spread


class PinnedNumbers(Record, frozen=True):
    """What the self-spread was when it was pinned."""

    machine_class: NotEmpty
    rms: float
    p99: float
    kl: float
    pair_sigma: float


class Spread(Record, frozen=True):
    """What T5 was judged by."""

    provisional: bool
    machine_class: NotEmpty
    pooled_over: tuple[str, ...]
    pooled: Numbers
    ratios: Mapping[str, Ratio]
    variants: Mapping[str, VariantNumbers]
    absent: Mapping[str, str]  # variant -> why it was not run
    pinned: PinnedNumbers | None
    near: float  # share of the pinned value that tonight's may be off
    source: str
