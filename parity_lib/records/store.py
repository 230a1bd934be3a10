"""Records on disk: written whole or not at all, checked against their schema on the way out and on the way in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, field
from msgspec.structs import asdict, replace

from parity_lib.base.errors import RecordError, TraceMismatchError
from parity_lib.base.files import append, read_bytes, write_atomic
from parity_lib.base.json_text import dump_line
from parity_lib.base.names import Kind, Outcome, Rung
from parity_lib.base.record import (
    Count,
    NotEmpty,
    Positive,
    Record,
    Sha256,
    load_lines,
    load_record,
    save_record,
    to_lines,
)
from parity_lib.records.runs import RunInfo
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.traces import LOGIT_ARRAYS, PAIR_ARRAYS, LogitTrace, PairTrace
from parity_lib.records.verdicts import CellId, Divergence, Verdict

VERDICT, SPREAD = "verdict.json", "spread.json"


# --- verdicts


def save_verdict(verdict: Verdict, out_dir: Path | str) -> Path:
    """Write ``verdict.json`` into a folder.

    Raises:
        RecordError: the verdict contradicts itself or its schema, or cannot be written.
    """
    path = Path(out_dir) / VERDICT
    _refuse_contradiction(verdict, path)
    return save_record(verdict, path)


def load_verdict(path: Path | str) -> Verdict:
    """Return the verdict of a folder, or of the file itself.

    Raises:
        RecordError: missing, of another version, not of its schema, or its outcome does not follow from its rungs.

    >>> load_verdict("no such folder")
    Traceback (most recent call last):
        ...
    parity_lib.base.errors.RecordError: no such folder: cannot be read; found No such file or directory
    """
    path = Path(path)
    path = path / VERDICT if path.is_dir() else path
    verdict = load_record(path, Verdict)
    _refuse_contradiction(verdict, path)
    return verdict


def _refuse_contradiction(verdict: Verdict, path: Path) -> None:
    found = verdict.contradictions()
    if found:
        raise RecordError("the verdict contradicts itself", place=path, found="; ".join(found))


class DivergenceLine(Divergence, frozen=True, kw_only=True, tag_field="schema", tag="parity/divergence/1"):
    """One line of ``divergences.jsonl``: the cell, the user's tuple by its own names, and the greppable line."""

    model: NotEmpty
    quant: NotEmpty
    isa: NotEmpty
    stack: NotEmpty
    compute: NotEmpty
    control: bool
    created_at: str
    greppable: Annotated[str, Meta(pattern="^(DIVERGED|CONTROL) model=")] = field(name="line")


def _lines(verdict: Verdict, path: Path) -> bytes:
    cell: dict[str, Any] = asdict(verdict.cell)
    records = (
        DivergenceLine(
            **cell,
            **asdict(divergence),
            control=verdict.control,
            created_at=verdict.created_at,
            greppable=divergence.line(verdict.cell, control=verdict.control),
        )
        for divergence in verdict.divergences
    )
    return to_lines(records, path)


def save_divergences(verdict: Verdict, path: Path) -> None:
    """Write a cell's own ``divergences.jsonl``; without a divergence the file is empty."""
    write_atomic(path, _lines(verdict, path))


def append_divergences(verdict: Verdict, path: Path) -> None:
    """Append a cell's divergences to the file of the nightly run, which is created if it does not exist."""
    append(path, _lines(verdict, path))


def load_divergences(path: Path) -> list[DivergenceLine]:
    """Return the records of a ``divergences.jsonl``. Raises ``RecordError``."""
    return load_lines(path, DivergenceLine)


# --- history


class RungHistory(Record, frozen=True):
    """What a trend needs of one rung."""

    outcome: Outcome
    worst: float | None
    limit: float | None
    unit: str


class FlipCounts(Record, frozen=True):
    """How many positions flipped, by kind."""

    top1: Count
    top5_set: Count


class HistoryEntry(Record, frozen=True, tag_field="schema", tag="parity/history/1"):
    """The line of one cell in ``history.jsonl``: what a trend over nightly runs needs."""

    run_id: NotEmpty
    created_at: str
    machine_class: str
    cell: CellId
    control: bool
    outcome: Outcome  # in the nightly run
    provisional: bool
    unpinned: bool
    rungs: Mapping[Rung, RungHistory]
    worst_margin: float | None  # smallest limit over worst; None where nothing differed
    flips: FlipCounts
    kl_mean: float | None  # nats, llama.cpp to burn on the deployed file
    seconds: float
    peak_rss_bytes: Count


def history_entry(run_id: str, verdict: Verdict) -> HistoryEntry:
    """Return the line of one cell in ``history.jsonl``; the nightly run sets the outcome, since it judges controls."""
    margins = [r.margin for r in verdict.rungs if r.margin is not None and r.outcome is not Outcome.REPORTED]
    kinds = [divergence.kind for divergence in verdict.divergences]
    native = verdict.measured.native
    return HistoryEntry(
        run_id=run_id,
        created_at=verdict.created_at,
        machine_class=next((run.machine_class for run in verdict.runs.values()), ""),
        cell=verdict.cell,
        control=verdict.control,
        outcome=verdict.outcome,
        provisional=verdict.provisional,
        unpinned=verdict.unpinned,
        rungs={r.rung: RungHistory(r.outcome, r.worst, r.limit, r.unit) for r in verdict.rungs},
        worst_margin=min(margins, default=None),
        flips=FlipCounts(kinds.count(Kind.TOP1), kinds.count(Kind.TOP5_SET)),
        kl_mean=None if native is None or native.all is None else native.all.kl_ref_cand.mean,
        seconds=verdict.seconds,
        peak_rss_bytes=max((run.peak_rss_bytes for run in verdict.runs.values()), default=0),
    )


def append_history(entries: Iterable[HistoryEntry], path: Path) -> None:
    """Append lines to ``history.jsonl``; several nightly runs may do so at once, and no line is ever rewritten."""
    append(path, to_lines(entries, path))


def load_history(path: Path) -> list[HistoryEntry]:
    """Return all lines, oldest first; empty if there is no file. Raises ``RecordError`` for a damaged line."""
    return load_lines(path, HistoryEntry) if path.exists() else []


# --- traces


def save_trace(trace: LogitTrace, path: Path) -> Path:
    """Write a trace as ``.npz``, and beside it a manifest ``.json`` with its hash. Returns the path of the .npz."""
    arrays = {name: getattr(trace, name) for name in LOGIT_ARRAYS}
    return _save_arrays(path, "logits", arrays, {"run": trace.run}, len(trace), trace.n_vocab, {})


def save_pair(pair: PairTrace, path: Path) -> Path:
    """Write a pair of traces, as ``save_trace`` does."""
    arrays = {name: getattr(pair, name) for name in PAIR_ARRAYS}
    for side in ("reference", "candidate"):
        arrays |= {f"{side}.{name}": getattr(getattr(pair, side), name) for name in LOGIT_ARRAYS}
    runs = {"reference": pair.reference.run, "candidate": pair.candidate.run}
    return _save_arrays(path, "pair", arrays, runs, len(pair), pair.reference.n_vocab, pair.extra)


def save_spread(spread: SelfSpread, out_dir: Path | str) -> Path:
    """Write ``spread.json``, the self-spread that T5 was judged by, into a cell's folder. Returns the path."""
    return save_record(spread, Path(out_dir) / SPREAD)


def load_spread(path: Path | str) -> SelfSpread:
    """Return the self-spread of a folder, or of the file itself. Raises ``RecordError`` if it is missing or damaged."""
    path = Path(path)
    path = path / SPREAD if path.is_dir() else path
    try:
        return load_record(path, SelfSpread)
    except TraceMismatchError as error:
        raise RecordError("the stored self-spread is not sound", place=path, found=error) from error


class Array(Record, frozen=True):
    """The type of one array in the .npz."""

    dtype: NotEmpty
    shape: tuple[Count, ...]


class Manifest(Record, frozen=True, tag_field="schema", tag="parity/trace/1"):
    """What lies in the .npz beside it, and its hash."""

    kind: Literal["logits", "pair"]
    file: Annotated[str, Meta(pattern=r"^[^/\\]+\.npz$")]
    bytes: Count
    sha256: Sha256
    n_rows: Count
    n_vocab: Positive
    arrays: Annotated[Mapping[str, Array], Meta(min_length=1)]
    runs: Annotated[Mapping[str, RunInfo], Meta(min_length=1)]
    extra: Mapping[str, Any]
    manifest_sha256: str = ""  # of the line of this record without this field


def _save_arrays(
    path: Path,
    kind: Literal["logits", "pair"],
    arrays: Mapping[str, npt.NDArray[Any]],
    runs: Mapping[str, RunInfo],
    n_rows: int,
    n_vocab: int,
    extra: Mapping[str, Any],
) -> Path:
    path = path.with_suffix(".npz")
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: arrays[name] for name in sorted(arrays)}
    np.savez_compressed(buffer, **named)
    data = buffer.getvalue()
    digest, held = hashlib.sha256(data).hexdigest(), _types(arrays)
    manifest = Manifest(kind, path.name, len(data), digest, n_rows, n_vocab, held, runs, extra)
    # Data first: a manifest never points at what is not there. Torn in between, the old manifest's hash refuses.
    write_atomic(path, data)
    save_record(replace(manifest, manifest_sha256=_digest(manifest)), path.with_suffix(".json"))
    return path


def _types(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Array]:
    return {name: Array(array.dtype.str, array.shape) for name, array in arrays.items()}


def load_trace(path: Path) -> LogitTrace:
    """Return a stored trace.

    Raises:
        RecordError: missing, of another version or kind, or changed since it was written.
    """
    manifest, arrays = _load_arrays(path, "logits")
    return _logit_trace(manifest.runs["run"], manifest.n_vocab, arrays, path)


def load_pair(path: Path) -> PairTrace:
    """Return a stored pair of traces. Raises ``RecordError`` as ``load_trace`` does."""
    manifest, arrays = _load_arrays(path, "pair")
    parts: dict[str, Any] = {}
    for side in ("reference", "candidate"):
        own = {name.removeprefix(f"{side}."): array for name, array in arrays.items() if name.startswith(f"{side}.")}
        parts[side] = _logit_trace(manifest.runs[side], manifest.n_vocab, own, path)
    try:
        parts |= {name: arrays[name] for name in PAIR_ARRAYS}
        return PairTrace(**parts, extra=manifest.extra)
    except (KeyError, TraceMismatchError) as error:
        raise RecordError("the stored pair is not sound", place=path, found=error) from error


def _logit_trace(run: RunInfo, n_vocab: int, arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> LogitTrace:
    try:
        return LogitTrace(run=run, n_vocab=n_vocab, **{name: arrays[name] for name in LOGIT_ARRAYS})
    except (KeyError, TraceMismatchError) as error:
        raise RecordError("the stored trace is not sound", place=path, found=error) from error


def _load_arrays(path: Path, kind: str) -> tuple[Manifest, dict[str, npt.NDArray[Any]]]:
    path = Path(path).with_suffix(".npz")
    manifest = load_record(path.with_suffix(".json"), Manifest)
    digest = _digest(manifest)
    if digest != manifest.manifest_sha256:
        raise RecordError("the manifest was changed", place=path, expected=manifest.manifest_sha256, found=digest)
    if (manifest.kind, manifest.file) != (kind, path.name):
        found = f"{manifest.kind} {manifest.file}"
        raise RecordError("is another record", place=path, expected=f"{kind} {path.name}", found=found)
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.sha256:
        raise RecordError("the trace was changed", place=path, expected=manifest.sha256, found=digest)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if _types(arrays) != manifest.arrays:
        raise RecordError("the trace holds other arrays", place=path, expected=manifest.arrays, found=_types(arrays))
    return manifest, arrays


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(dump_line(replace(manifest, manifest_sha256="")).encode()).hexdigest()
