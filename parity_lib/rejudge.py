"""Judge stored traces without an engine: last night's pair again, or one side of each of two runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib import store
from parity_lib.compare.logits import judge_twin
from parity_lib.errors import RecordError, TraceMismatchError, UsageError
from parity_lib.names import Rung
from parity_lib.tolerances import BandSet, load_tolerances
from parity_lib.traces import F32, F64, I32, LogitTrace, PairTrace, Position
from parity_lib.verdicts import Verdict, conclude

TWIN_FILE, BANDS_FILE = "twin.npz", "bands.toml"
REFERENCE, CANDIDATE = "reference", "candidate"


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A cell's folder: its verdict, the pair that T4 was judged on, the limits it was judged by."""

    folder: Path
    verdict: Verdict
    pair: PairTrace
    bands: BandSet

    def side(self, name: str) -> LogitTrace:
        """Return one side of the pair."""
        return self.pair.reference if name == REFERENCE else self.pair.candidate


def open_stored(folder: Path | str) -> Stored:
    """Return what a cell left behind.

    Raises:
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
    bands = load_tolerances(folder / BANDS_FILE).cell(verdict.cell.model, verdict.cell.quant, Rung.T4)
    return Stored(folder, verdict, store.load_pair(folder / TWIN_FILE), bands)


def rejudge(reference: Path | str, candidate: Path | str, side: str = "") -> Verdict:
    """Judge rung T4 of two stored cells again and return its verdict; nothing is written.

    Args:
        reference: a cell's folder.
        candidate: the same one, or another.
        side: which side of both to take, to compare one engine on two hosts or legs. By default it is llama.cpp
            of the first against burn of the second.

    The same folder twice is judged on the statistics over the whole vocabulary that were taken at capture. Two
    folders have only their stored tops: rms is then over the ids that both hold, and a logit that the other side
    did not store is taken as its lowest stored one, which it cannot exceed.

    Raises:
        UsageError: an unknown side.
        RecordError: a record is missing or changed.
        TraceMismatchError: the runs were fed other tokens or have another vocabulary.
    """
    if side not in ("", REFERENCE, CANDIDATE):
        raise UsageError("unknown side", expected=f"{REFERENCE} or {CANDIDATE}", found=side)
    first = open_stored(reference)
    second = open_stored(candidate)
    if not side and first.folder.resolve() == second.folder.resolve():
        pair, note = first.pair, ""
    else:
        pair = pair_of_tops(first.side(side or REFERENCE), second.side(side or CANDIDATE))
        note = "rms over the ids that both traces hold, not over the vocabulary"
    expected = _positions(first.pair)
    rung, divergences, ledger = judge_twin(pair, expected, first.bands)
    outcome, causes = conclude((rung,), required=(Rung.T4,))
    return Verdict(
        cell=second.verdict.cell,
        outcome=outcome,
        rungs=(rung,),
        divergences=tuple(divergences),
        runs={"reference-twin": pair.reference.run, "candidate": pair.candidate.run},
        provisional=first.bands.provisional,
        unpinned=first.verdict.unpinned or second.verdict.unpinned,
        causes=causes,
        literal={"ledger": ledger.to_json(), **({"note": note} if note else {})},
        pins=first.verdict.pins,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


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
    """Return the trace's logits at other ids, ``(n, k)``; what it did not store is its lowest stored logit."""
    out = np.repeat(trace.topk_logits[:, -1:], ids.shape[1], axis=1)
    for row, wanted in enumerate(ids):
        order = np.argsort(trace.topk_ids[row])
        stored = trace.topk_ids[row][order]
        at = np.minimum(np.searchsorted(stored, wanted), len(stored) - 1)
        found = stored[at] == wanted
        out[row, found] = trace.topk_logits[row][order][at[found]]
    return np.ascontiguousarray(out, np.float32)
