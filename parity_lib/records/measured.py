"""What the steps of a cell measured, beside their rungs: one optional record a step, in ``Verdict.measured``.

Nothing here is judged. The rungs hold what was judged; these are the numbers that a reader asks for next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from parity_lib.base.record import Count, NotEmpty, Record
from parity_lib.records.hardness import Hardness
from parity_lib.records.isa_evidence import IsaProof
from parity_lib.records.row_numbers import Bf16, Flips, PairReport, Spread

# --- T1: texts


class TextClass(Record, frozen=True):
    """One class of texts, counted."""

    expected: Count
    texts: Count
    tokens: Count
    different: Count  # without a listed reason
    listed: Count  # different, for a listed reason


class BytesCompared(Record, frozen=True):
    """How many ids stand for the same bytes."""

    expected: Count
    compared: Count
    different: Count


class TextDifference(Record, frozen=True):
    """One text that differs without a listed reason."""

    name: NotEmpty
    what: str  # where the ids part


class ListedDifference(Record, frozen=True):
    """A known difference, and how many texts it explains."""

    name: NotEmpty
    rule: str
    reason: str
    texts: Count
    classes: tuple[str, ...]


class Tokens(Record, frozen=True):
    """Both tokenizers of one vocabulary, compared."""

    classes: Mapping[str, TextClass]
    bytes: BytesCompared
    differences: tuple[TextDifference, ...]  # the first ones
    known: tuple[ListedDifference, ...]
    known_sha256: str  # of the list
    ranks: str  # what else the ids were held to, in words
    tokenizer: Mapping[str, Any]  # of the one that was built; which facts there are depends on its algorithm


class TextNumbers(Record, frozen=True):
    """How much the text of one prompt repeats itself."""

    prompt_idx: Count
    positions: Count
    effective_positions: Count  # of those that follow the same three tokens as an earlier one, one counts
    distinct_3grams: float | None  # share of different ones in the generated tokens; None for fewer than three tokens


class Power(Record, frozen=True):
    """The smallest flip rate that so many independent positions show at least once, with that confidence."""

    positions: Count
    detectable_flip_rate: float
    confidence: float


# --- T3: single ops


class ReplayedRows(Record, frozen=True):
    """Which rows of one prompt were replayed."""

    prompt_idx: Count
    settings: NotEmpty  # of the reference
    passes: tuple[Count, ...]  # rows of each
    weights_in: Mapping[str, Count]  # the reference's buffers -> products from it


class OpKind(Record, frozen=True):
    """One kind of op, in prefill or in decode: how many were replayed, and the worst of them."""

    ops: Count
    over: Count  # their limit
    share: float  # of its limit that the worst one uses up
    op: NotEmpty
    site: NotEmpty
    prompt_idx: Count
    token_idx: int
    nmse: float
    position_nmse: float
    channel_nmse: float


class Ops(Record, frozen=True):
    """All ops that were replayed."""

    sequences: tuple[ReplayedRows, ...]
    kinds: Mapping[str, OpKind]  # "attn_norm prefill strict"
    non_finite: str = ""  # where the reference's own values are first not finite, in words


# --- T6 and T7


class Relation(Record, frozen=True):
    """One way to make rows again, and how many are equal to the bit."""

    what: str
    expected: Count
    compared: Count
    equal: Count
    prompts: tuple[Count, ...]


class EqualRows(Record, frozen=True):
    """How many rows of the reference are bit-equal on another way to them."""

    compared: Count
    equal: Count


class Itself(Record, frozen=True):
    """The candidate against itself, and the same relations of the reference."""

    relations: Mapping[str, Relation]
    full: bool  # every row of every relation
    threads: str
    rows: Count  # of the teacher-forced pass
    reference: Mapping[str, EqualRows] = {}


class Instructions(Record, frozen=True):
    """Which instructions ran."""

    proofs: tuple[IsaProof, ...]
    required: bool
    deployed: IsaProof | None = None  # the reference's defaults, shown and not judged


# --- all of it


class Cache(Record, frozen=True):
    """Where the reference's rows come from."""

    parts: Mapping[str, str]  # computed, cached, ...
    notes: tuple[str, ...] = ()  # what was refused, what could not be kept


class Measured(Record, frozen=True):
    """The numbers of a cell; a step that was not run has none."""

    tokens: Tokens | None = None  # T1, of the file's own vocabulary
    cases: Mapping[str, Tokens] = {}  # T1, of llama.cpp's vocabulary files
    text: tuple[TextNumbers, ...] = ()
    power: Power | None = None
    ops: Ops | None = None  # T3
    hardness: Hardness | None = None  # T3: how far the reference's values reach
    ledger: Flips | None = None  # T4
    bf16: Bf16 | None = None  # T4 of a cell in bf16
    native: PairReport | None = None  # T5
    spread: Spread | None = None  # T5
    native_ledger: Flips | None = None  # T5
    itself: Itself | None = None  # T6
    isa: Instructions | None = None  # T7
    cache: Cache | None = None
    seconds: Mapping[str, float] = {}  # of each step
    note: str = ""

    @property
    def proofs(self) -> tuple[IsaProof, ...]:
        """Return what T7 was judged by; empty where it was not run."""
        return () if self.isa is None else self.isa.proofs

    @property
    def provisional(self) -> bool:
        """Return whether the limits of T5 were not pinned for this machine class."""
        return self.spread is not None and self.spread.provisional


def joined(parts: Iterable[Measured]) -> Measured:
    """Return what all parts measured together; of two that measured the same, the later one's numbers."""
    empty, known = Measured(), dict[str, Any]()
    for part in parts:
        known |= {n: getattr(part, n) for n in part.__struct_fields__ if getattr(part, n) != getattr(empty, n)}
    return Measured(**known)
