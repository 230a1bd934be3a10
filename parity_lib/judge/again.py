"""Judge stored traces again without an engine: a cell's own pair, or one side of each of two runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from parity_lib.base.errors import RecordError, TraceMismatchError, UsageError
from parity_lib.base.names import Compute, Outcome, Rung
from parity_lib.judge.t4_twin import judge_twin
from parity_lib.judge.t5_native import accuse_reference, judge_native
from parity_lib.records import store
from parity_lib.records.drift_limits import DriftLimits, load_limits
from parity_lib.records.measured import Measured
from parity_lib.records.self_spread_pins import load_spreads
from parity_lib.records.traces import F32, F64, I32, LogitTrace, PairTrace, Position
from parity_lib.records.verdicts import Divergence, RungResult, Verdict, conclude

TWIN_FILE, NATIVE_FILE = "twin.npz", "native.npz"
REFERENCE, CANDIDATE = "reference", "candidate"
TOPS_ONLY = "rms over the ids that both traces hold, not over the vocabulary"


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A cell's folder: its verdict, the pair that T4 was judged on, the limits it was judged by."""

    folder: Path
    verdict: Verdict
    pair: PairTrace
    limits: DriftLimits

    def side(self, name: str) -> LogitTrace:
        """Return one side of the pair."""
        return self.pair.reference if name == REFERENCE else self.pair.candidate


def open_stored(folder: Path | str) -> Stored:
    """Return what a cell in f32 left behind.

    Raises:
        UsageError: it is a cell in bf16.
        RecordError: a record is missing, changed, or of another version.
    """
    folder = Path(folder)
    if not (folder / store.VERDICT).is_file():
        raise RecordError(
            "this is no cell's folder",
            place=folder,
            expected=f"a folder with {store.VERDICT} and {TWIN_FILE}",
            found="none",
            next_step="give the folder of a `parity run`, or reports/nightly/<run>/cells/<cell>",
        )
    verdict = store.load_verdict(folder)
    if verdict.cell.compute == Compute.BF16:
        raise UsageError(
            "a cell in bf16 has no gate on its logits, so it cannot be judged again",
            place=folder,
            expected=f"cells of compute {Compute.F32}",
            found=Compute.BF16,
            next_step="its verdict.json has the distances, in measured.bf16",
        )
    return Stored(folder, verdict, store.load_pair(folder / TWIN_FILE), load_limits(folder))


def rejudge(reference: Path | str, candidate: Path | str, side: str = "") -> Verdict:
    """Judge rungs T4 and T5 of a stored cell again, or T4 of two cells, and return the verdict without storing it.

    Args:
        reference: a cell's folder.
        candidate: the same one, or another.
        side: which side of both to take, to compare one engine on two hosts or ISA targets. By default it is llama.cpp
            of the first against burn of the second.

    One engine on two targets is compared on equal contexts: each target's reference generates its own text, and
    rows after the first differing token have different contexts. The note says how many rows that leaves out, and
    how many of the others are bit-equal.

    The same folder twice is judged on the statistics over the whole vocabulary that were taken at capture: T4 by the
    limits that lie beside them, T5 by the self-spread that does, where there is one. Two folders have only their
    stored tops: rms is then over the ids that both hold, and a logit that the other side did not store is taken as
    its lowest stored one, which it cannot exceed. That is no measure for T5, so only T4 is judged.

    Raises:
        UsageError: an unknown side, or a cell in bf16.
        RecordError: a record is missing or changed.
        TraceMismatchError: the runs were fed other tokens or have another vocabulary.
    """
    if side not in ("", REFERENCE, CANDIDATE):
        raise UsageError("unknown side", expected=f"{REFERENCE} or {CANDIDATE}", found=side)
    first = open_stored(reference)
    second = open_stored(candidate)
    same = not side and first.folder.resolve() == second.folder.resolve()
    expected = _positions(first.pair)
    if same:
        pair = first.pair
    elif side:
        ours, theirs, expected, parted = common(first.side(side), second.side(side), expected)
        pair = pair_of_tops(ours, theirs)
    else:
        pair = pair_of_tops(first.side(REFERENCE), second.side(CANDIDATE))
    rung, divergences, ledger = judge_twin(pair, expected, first.limits)
    if same:
        native, divergences_t5, numbers = _native(first, rung)
    else:
        native, divergences_t5, numbers = None, [], Measured(note=TOPS_ONLY)
    if side:
        numbers = Measured(note=f"{_one_engine(pair, parted)}; {TOPS_ONLY}")
    rungs = (rung,) if native is None else (rung, native)
    gated = first.verdict.rung(Rung.T5)
    had_t5 = same and gated is not None and gated.outcome is not Outcome.REPORTED
    outcome, causes = conclude(rungs, required=(Rung.T4, Rung.T5) if had_t5 else (Rung.T4,))
    return Verdict(
        cell=second.verdict.cell,
        outcome=outcome,
        rungs=rungs,
        divergences=(*divergences, *divergences_t5),
        runs={"reference-twin": pair.reference.run, "candidate": pair.candidate.run},
        provisional=numbers.provisional,
        unpinned=first.verdict.unpinned or second.verdict.unpinned,
        causes=causes,
        measured=replace(numbers, ledger=ledger.record()),
        pins=first.verdict.pins,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def common(
    ours: LogitTrace, theirs: LogitTrace, expected: list[Position]
) -> tuple[LogitTrace, LogitTrace, list[Position], int]:
    """Return two traces of the same prompts, and the positions expected of them, up to where their fed tokens part.

    Args:
        ours: one run of an engine.
        theirs: another.
        expected: positions that each had to score.

    Returns:
        Both traces and the expected positions without those behind a parting, and how many positions that leaves out.

    Raises:
        TraceMismatchError: other positions, or not one row in common.
    """
    if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("prompt_idx", "token_idx")):
        raise TraceMismatchError(
            "the two runs scored other positions",
            expected=f"{len(ours)} rows",
            found=f"{len(theirs)} rows",
            next_step="both must come from the same prompts",
        )
    parts: dict[int, int] = {}  # prompt -> first token that was fed another id
    for row in np.flatnonzero(ours.fed_id != theirs.fed_id):
        parts.setdefault(int(ours.prompt_idx[row]), int(ours.token_idx[row]))
    kept = [p for p in expected if p.token_idx < parts.get(p.prompt_idx, p.token_idx + 1)]
    wanted = set(kept)
    pairs = zip(ours.prompt_idx.tolist(), ours.token_idx.tolist(), strict=True)
    rows = np.array([i for i, place in enumerate(pairs) if Position(*place) in wanted], np.int64)
    if not len(rows):
        raise TraceMismatchError(
            "the two runs share no context: their first fed tokens differ", expected="the same prompts", found="others"
        )
    return ours.take(rows), theirs.take(rows), kept, len(expected) - len(kept)


def _one_engine(pair: PairTrace, parted: int) -> str:
    equal = int((pair.reference.row_sha256 == pair.candidate.row_sha256).all(axis=1).sum())
    targets = f"{pair.reference.run.isa_requested} against {pair.candidate.run.isa_requested}"
    left = f", {parted:,} positions left out where the two references' texts had parted" if parted else ""
    return f"{pair.reference.run.engine}, {targets}: {equal:,} of {len(pair):,} rows bit-equal{left}"


def _native(stored: Stored, twin: RungResult) -> tuple[RungResult | None, list[Divergence], Measured]:
    """Judge T5 of a stored cell by the self-spread that is stored beside it; None if there is none."""
    if not (stored.folder / store.SPREAD).is_file():
        return None, [], Measured(note="no self-spread was stored, so T5 was not judged")
    pair, spread = store.load_pair(stored.folder / NATIVE_FILE), store.load_spread(stored.folder)
    cell = stored.verdict.cell
    pin = load_spreads().find(cell.model, cell.quant, spread.isa, spread.machine_class, spread.prompts_sha256)
    native, divergences, numbers = judge_native(pair, _positions(pair), spread, pin)
    return *accuse_reference(twin, native, divergences), numbers


def _positions(pair: PairTrace) -> list[Position]:
    """Return the positions that the cell was expected to score: those it has, and those it names as missing."""
    have = zip(pair.reference.prompt_idx.tolist(), pair.reference.token_idx.tolist(), strict=True)
    lost = [tuple(p) for name in ("missing_reference", "missing_candidate") for p in pair.extra.get(name, [])]
    return [Position(*p) for p in sorted({*have, *lost})]


def pair_of_tops(reference: LogitTrace, candidate: LogitTrace) -> PairTrace:
    """Return a pair made from two stored tops; KL and JSD are unknown (NaN) unless the rows are bit-equal.

    Raises:
        TraceMismatchError: other positions, other fed tokens or another vocabulary.
    """
    for name in ("prompt_idx", "token_idx", "fed_id"):
        if not np.array_equal(getattr(reference, name), getattr(candidate, name)):
            raise TraceMismatchError(
                "the two runs were not fed the same tokens",
                place=name,
                expected=f"{len(reference)} rows of {reference.run.model_path} on {reference.run.host}",
                found=f"{len(candidate)} rows of {candidate.run.model_path} on {candidate.run.host}",
                next_step="both sides must come from the same prompts and the same generated tokens",
            )
    equal = (reference.row_sha256 == candidate.row_sha256).all(axis=1)
    held = (reference.topk_ids[:, :, None] == candidate.topk_ids[:, None, :]).any(axis=2)
    at_reference = _logits_at(reference.topk_ids, candidate)
    error = np.where(held, np.abs(at_reference.astype(np.float64) - reference.topk_logits), 0.0)
    worst = error.argmax(axis=1)[:, None]
    unknown: F64 = np.where(equal, 0.0, np.nan)
    return PairTrace(
        reference=reference,
        candidate=candidate,
        candidate_at_reference=at_reference,
        reference_at_candidate=_logits_at(candidate.topk_ids, reference),
        rms=np.sqrt((error * error).sum(axis=1) / np.maximum(held.sum(axis=1), 1)),
        max_abs=np.take_along_axis(error, worst, axis=1)[:, 0],
        max_id=np.take_along_axis(reference.topk_ids, worst, axis=1)[:, 0],
        kl_ref_cand=unknown,
        kl_cand_ref=unknown.copy(),
        jsd=unknown.copy(),
    )


def _logits_at(ids: I32, trace: LogitTrace) -> F32:
    """Return the trace's logits at other ids, ``(n, k)``; for an id that it did not store, its lowest stored logit."""
    out = np.repeat(trace.topk_logits[:, -1:], ids.shape[1], axis=1)
    for row, wanted in enumerate(ids):
        order = np.argsort(trace.topk_ids[row])
        stored = trace.topk_ids[row][order]
        at = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
        found = stored[at] == wanted
        out[row, found] = trace.topk_logits[row][order][at[found]]
    return np.ascontiguousarray(out, np.float32)
