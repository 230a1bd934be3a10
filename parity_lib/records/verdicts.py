"""What a comparison concluded: rungs, divergences, the greppable line. Data only, no judging."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta
from msgspec.structs import asdict

from parity_lib.base.errors import ParityFailure
from parity_lib.base.names import Compute, Kind, LedgerClass, Outcome, Rung
from parity_lib.base.record import Count, NotEmpty, Record
from parity_lib.records.measured import Measured
from parity_lib.records.runs import RunInfo

TopK = tuple[tuple[Count, float], ...]  # (token id, logit), logit descending, ties by lower id


class CellId(Record, frozen=True):
    """The identity of a cell: model, quant, ISA target, stack, compute policy.

    >>> cell = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")
    >>> str(cell)
    'smollm2-135m · Q8_0 · avx512 · crates-io · f32'
    >>> cell.fields()
    'model=smollm2-135m quant=Q8_0 isa=avx512 stack=crates-io compute=f32'
    """

    model: NotEmpty
    quant: NotEmpty
    isa: NotEmpty
    stack: NotEmpty
    compute: Annotated[str, Meta(pattern=f"^({'|'.join(Compute)})$")]

    @property
    def key(self) -> str:
        """Return the cell's name as a file-system friendly word."""
        return "-".join((self.model, self.quant, self.isa, self.stack, self.compute)).replace("/", "_")

    def __str__(self) -> str:
        return " · ".join((self.model, self.quant, self.isa, self.stack, self.compute))

    def fields(self) -> str:
        """Return ``model=.. quant=.. isa=.. stack=.. compute=..``, the head of every greppable line."""
        return f"model={self.model} quant={self.quant} isa={self.isa} stack={self.stack} compute={self.compute}"


class Divergence(Record, frozen=True):
    """One place where the candidate left the reference."""

    rung: Rung
    kind: Kind
    limit: float  # in the unit of delta; 0.0 where equality is asked for
    prompt_idx: Count | None = None  # None where the divergence has no position (a tensor)
    token_idx: int | None = None
    where: str | None = None  # tensor or site
    top5_burn: TopK = ()
    top5_llamacpp: TopK = ()
    delta: float | None = None  # candidate minus reference at delta_id, logits (or ULP for a tensor)
    delta_id: Count | None = None
    ledger: LedgerClass | None = None
    note: str = ""

    def line(self, cell: CellId, *, control: bool = False) -> str:
        """Return the one greppable line of this divergence, by the names that the user gave.

        >>> cell = CellId("smollm2-135m", "Q8_0", "avx512", "crates-io", "f32")
        >>> line = Divergence(Rung.T2, Kind.TENSOR, 0.0, where="blk.1.ffn_down.weight", delta=3.0).line(cell)
        >>> line.replace(cell.fields(), "..")
        'DIVERGED .. rung=T2 where=blk.1.ffn_down.weight kind=TENSOR delta=+3 limit=0'
        """
        parts = ["CONTROL" if control else "DIVERGED", cell.fields(), f"rung={self.rung}"]
        if self.prompt_idx is not None:
            parts.append(f"prompt_idx={self.prompt_idx} token_idx={self.token_idx}")
        if self.where is not None:
            parts.append(f"where={self.where}")
        parts.append(f"kind={self.kind}")
        if self.top5_burn or self.top5_llamacpp:
            parts.append(f"top5_burn={_top(self.top5_burn)} top5_llamacpp={_top(self.top5_llamacpp)}")
        if self.delta is not None:
            parts.append(f"delta={self.delta:+.6g}")
        if self.delta_id is not None:
            parts.append(f"delta_id={self.delta_id}")
        parts.append(f"limit={self.limit:g}")
        if self.ledger is not None:
            parts.append(f"ledger={self.ledger}")
        if self.note:
            parts.append(f"note={json.dumps(self.note, ensure_ascii=False)}")
        return " ".join(parts)


def _top(top: TopK) -> str:
    return "[" + ",".join(f"({token},{logit:.4f})" for token, logit in top) + "]"


class RungResult(Record, frozen=True):
    """One rung: how much was expected, how much was compared, the worst case against its limit."""

    rung: Rung
    outcome: Outcome
    expected: Count
    compared: Count
    worst: float | None  # None where the rung is exact and equal
    limit: float | None  # None where the rung is exact
    unit: str  # "logits", "rms/std", "ULP", "pins", ...
    worst_where: str = ""
    source: str = ""  # where the limit comes from
    note: str = ""

    @property
    def margin(self) -> float | None:
        """Return limit over worst (above 1 is inside); None without a number, or if no value differed.

        >>> RungResult(Rung.T4, Outcome.PARITY, 20, 20, worst=2.0, limit=10.0, unit="rms/std").margin
        5.0
        """
        if self.worst is None or self.limit is None or self.worst == 0 or not math.isfinite(self.worst):
            return None
        return self.limit / self.worst


class PinnedFiles(Record, frozen=True):
    """SHA-256 of what went into a cell, so that a record can be tied to its inputs years later; empty: not known."""

    pins_sha256: str = ""
    prompts_sha256: str = ""
    tolerances_sha256: str = ""
    model_sha256: str = ""
    twin_sha256: str = ""
    candidate_sha256: str = ""


class Verdict(Record, frozen=True, tag_field="schema", tag="parity/verdict/2"):
    """The record of one cell. ``outcome`` is derived once, by ``conclude``, and stored."""

    cell: CellId
    outcome: Outcome
    rungs: tuple[RungResult, ...]
    divergences: tuple[Divergence, ...]
    runs: Mapping[str, RunInfo]  # "reference", "reference-twin", "candidate"
    provisional: bool  # a limit was measured, but not yet from the kernel baseline
    unpinned: bool  # file or prompts are the user's own
    causes: tuple[str, ...] = ()  # why it is INCOMPLETE, one sentence each
    measured: Measured = Measured()  # the numbers beside the rungs
    pins: PinnedFiles = PinnedFiles()
    control: bool = False
    created_at: str = ""
    seconds: float = 0.0

    def rung(self, rung: Rung) -> RungResult | None:
        """Return the result of one rung, or None if the cell did not run it."""
        return next((result for result in self.rungs if result.rung == rung), None)

    @property
    def lowest_broken(self) -> RungResult | None:
        """Return the lowest rung that is neither at parity nor merely reported."""
        bad = (Outcome.DIVERGED, Outcome.INCOMPLETE)
        return next((r for r in sorted(self.rungs, key=lambda r: r.rung.value) if r.outcome in bad), None)

    def lines(self) -> list[str]:
        """Return the greppable lines: every divergence, then every cause of an incomplete comparison."""
        lines = [d.line(self.cell, control=self.control) for d in self.divergences]
        word = "CONTROL" if self.control else "INCOMPLETE"
        lines += [f"{word} {self.cell.fields()} cause={json.dumps(c, ensure_ascii=False)}" for c in self.causes]
        return lines

    def require_parity(self) -> None:
        """Raise ``ParityFailure`` with the first lines unless the outcome is ``PARITY``."""
        if self.outcome is Outcome.PARITY:
            return
        lines = self.lines()
        shown = "\n".join(lines[:5])
        more = f"\n... and {len(lines) - 5} more lines" if len(lines) > 5 else ""
        raise ParityFailure(f"{self.outcome}: {self.cell}\n{shown}{more}")

    def contradictions(self) -> list[str]:
        """Return what in this record denies its own outcome, one sentence each; empty for a sound record.

        A nightly run accepts a stored PARITY without running engines: it must follow from the rungs beside it.
        """
        found = []
        concluded, causes = conclude(self.rungs, required=())
        if self.outcome is Outcome.PARITY:
            if not self.rungs:
                found.append("PARITY without a rung")
            if self.causes or causes:
                found.append(f"PARITY although: {'; '.join((*self.causes, *causes))}")
            lost = self.measured.native.n_nonfinite if self.measured.native else None
            if lost is not None and (lost.reference or lost.candidate):
                found.append(f"PARITY although logits are not finite: {asdict(lost)}")
        if concluded is Outcome.DIVERGED and self.outcome is not Outcome.DIVERGED:
            found.append(f"a rung diverged and the outcome is {self.outcome}")
        if self.outcome is Outcome.DIVERGED and concluded is not Outcome.DIVERGED:
            found.append("DIVERGED although no rung diverged")
        red = {result.rung for result in self.rungs if result.outcome is Outcome.DIVERGED}
        listed = {divergence.rung for divergence in self.divergences}
        if red != listed:
            found.append(f"rungs that diverged: {sorted(red)}; rungs with a divergence listed: {sorted(listed)}")
        return found


def margin_words(margin: float) -> str:
    """Return limit over worst in words: ``4.5x inside``, ``340x over``, or ``over`` where equality was asked for.

    >>> margin_words(4.5), margin_words(0.25), margin_words(0)
    ('4.5x inside', '4.0x over', 'over')
    """
    if margin <= 0:
        return "over"
    return f"{_times(margin if margin >= 1 else 1 / margin)}x {'inside' if margin >= 1 else 'over'}"


def _times(ratio: float) -> str:
    """Return a factor of at least 1; rounding never turns 1.04 into a plain 1."""
    if ratio >= 1e6:
        return f"{ratio:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}" if ratio >= 1.1 or ratio == 1 else f"{ratio:.3f}"


def conclude(rungs: Sequence[RungResult], *, required: Sequence[Rung]) -> tuple[Outcome, tuple[str, ...]]:
    """Return the outcome of a cell and the causes of what is incomplete.

    A pin mismatch judges nothing, whatever else was seen. Otherwise a divergence counts, whatever else is missing.
    A rung that is required and absent, or that compared less than it expected, or that expected nothing,
    makes the cell incomplete, and so does a cell in which no rung was judged.

    >>> tokens = RungResult(Rung.T1, Outcome.PARITY, 674, 674, worst=0, limit=0, unit="texts")
    >>> conclude([tokens], required=[Rung.T1])[0].value
    'PARITY'
    >>> conclude([tokens], required=[Rung.T1, Rung.T2])
    (<Outcome.INCOMPLETE: 'INCOMPLETE'>, ('T2 weights: did not run',))
    """
    seen = {result.rung: result for result in rungs}
    causes = [f"{rung.title}: did not run" for rung in required if rung not in seen]
    causes += [cause for cause in map(_cause, rungs) if cause is not None]
    pins = seen.get(Rung.T0)
    if pins is not None and pins.outcome is not Outcome.PARITY:
        return Outcome.INCOMPLETE, tuple(causes)
    if any(result.outcome is Outcome.DIVERGED for result in rungs):
        return Outcome.DIVERGED, tuple(causes)
    if not causes and not any(result.outcome is Outcome.PARITY for result in rungs):
        causes.append("no rung was judged")
    return (Outcome.INCOMPLETE if causes else Outcome.PARITY), tuple(causes)


def _cause(result: RungResult) -> str | None:
    """Return why this rung leaves the cell incomplete, or None.

    Only T7 may be NOT_RUN: which instructions ran changes no number that the other rungs have judged.
    """
    if result.outcome is Outcome.NOT_RUN and result.rung is Rung.T7:
        return None
    if result.outcome not in (Outcome.PARITY, Outcome.DIVERGED, Outcome.REPORTED):
        return f"{result.rung.title}: {result.note or result.outcome.lower()}"
    if result.expected <= 0:
        return f"{result.rung.title}: no case was expected, so none was compared"
    if result.compared != result.expected:
        return f"{result.rung.title}: compared {result.compared} of {result.expected}"
    numbers = [value for value in (result.worst, result.limit) if value is not None]
    if result.outcome is Outcome.PARITY and not all(map(math.isfinite, numbers)):
        return f"{result.rung.title}: its worst case or its limit is not finite"
    return None
