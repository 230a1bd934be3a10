"""Records on disk: written whole or not at all, checked against their schema on the way out and on the way in."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import RecordError, TraceMismatchError
from parity_lib.base.files import append, load_lines, load_record, read_bytes, save_record, to_lines, write_atomic
from parity_lib.base.json_text import decode, dump_line, encode
from parity_lib.base.names import Kind, Outcome
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.traces import LOGIT_ARRAYS, PAIR_ARRAYS, LogitTrace, PairTrace, RunInfo
from parity_lib.records.verdicts import Verdict

VERDICT, SPREAD = "verdict.json", "spread.json"


# --- verdicts


def save_verdict(verdict: Verdict, out_dir: Path | str) -> Path:
    """Write ``verdict.json`` into a folder.

    Raises:
        RecordError: the verdict contradicts itself or its schema, or cannot be written.
    """
    path = Path(out_dir) / VERDICT
    _refuse_contradiction(verdict, path)
    return save_record(verdict.to_json(), path, "verdict")


def load_verdict(path: Path | str) -> Verdict:
    """Return the verdict of a folder, or of the file itself.

    Raises:
        RecordError: missing, of another version, not of its schema, or its outcome does not follow from its rungs.
    """
    path = Path(path)
    path = path / VERDICT if path.is_dir() else path
    verdict = Verdict.from_json(load_record(path, "verdict"))
    _refuse_contradiction(verdict, path)
    return verdict


def _refuse_contradiction(verdict: Verdict, path: Path) -> None:
    found = verdict.contradictions()
    if found:
        raise RecordError("the verdict contradicts itself", place=path, found="; ".join(found))


def divergence_records(verdict: Verdict) -> list[dict[str, Any]]:
    """Return one JSON object for each divergence: the cell, the user's tuple by its own names, and the line."""
    cell = encode(verdict.cell)
    return [
        {
            "schema": "parity/divergence/1",
            **cell,
            **encode(divergence),
            "control": verdict.control,
            "created_at": verdict.created_at,
            "line": divergence.line(verdict.cell, control=verdict.control),
        }
        for divergence in verdict.divergences
    ]


def save_divergences(verdict: Verdict, path: Path) -> None:
    """Write a cell's own ``divergences.jsonl``; without a divergence the file is empty."""
    write_atomic(path, to_lines(divergence_records(verdict), "divergence", path))


def append_divergences(verdict: Verdict, path: Path) -> None:
    """Append a cell's divergences to the file of the nightly run, which is created if it does not exist."""
    append(path, to_lines(divergence_records(verdict), "divergence", path))


def load_divergences(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``divergences.jsonl``, numbers that are not finite as such. Raises ``RecordError``."""
    return load_lines(path, "divergence")


# --- history


def history_entry(run_id: str, verdict: Verdict) -> dict[str, Any]:
    """Return the line of one cell in ``history.jsonl``: what a trend over nightly runs needs."""
    margins = [r.margin for r in verdict.rungs if r.margin is not None and r.outcome is not Outcome.REPORTED]
    kinds = [divergence.kind for divergence in verdict.divergences]
    native = verdict.literal.get("all", {}).get("kl_ref_cand", {})
    machine = next((run.machine_class for run in verdict.runs.values()), "")
    return {
        "schema": "parity/history/1",
        "run_id": run_id,
        "created_at": verdict.created_at,
        "machine_class": machine,
        "cell": encode(verdict.cell),
        "control": verdict.control,
        "outcome": verdict.outcome.value,
        "provisional": verdict.provisional,
        "unpinned": verdict.unpinned,
        "rungs": {
            r.rung.value: encode({"outcome": r.outcome, "worst": r.worst, "limit": r.limit, "unit": r.unit})
            for r in verdict.rungs
        },
        "worst_margin": encode(min(margins, default=None)),
        "flips": {"top1": kinds.count(Kind.TOP1), "top5_set": kinds.count(Kind.TOP5_SET)},
        "kl_mean": encode(native.get("mean")),
        "seconds": encode(verdict.seconds),
        "peak_rss_bytes": max((run.peak_rss_bytes for run in verdict.runs.values()), default=0),
    }


def append_history(entries: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Append lines to ``history.jsonl``; several nightly runs may do so at once, and no line is ever rewritten."""
    append(path, to_lines(entries, "history", path))


def load_history(path: Path) -> list[dict[str, Any]]:
    """Return all lines, oldest first; empty if there is no file. Raises ``RecordError`` for a damaged line."""
    return load_lines(path, "history") if path.exists() else []


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
    return save_record(spread.to_json(), Path(out_dir) / SPREAD, "spread")


def load_spread(path: Path | str) -> SelfSpread:
    """Return the self-spread of a folder, or of the file itself. Raises ``RecordError`` if it is missing or damaged."""
    path = Path(path)
    path = path / SPREAD if path.is_dir() else path
    data = load_record(path, "spread")
    try:
        return SelfSpread.from_json(data)
    except (RecordError, TraceMismatchError) as error:
        raise RecordError("the stored self-spread is not sound", place=path, found=error) from error


def _save_arrays(
    path: Path,
    kind: str,
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
    manifest = {
        "schema": "parity/trace/1",
        "kind": kind,
        "file": path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "n_rows": n_rows,
        "n_vocab": n_vocab,
        "arrays": {name: {"dtype": array.dtype.str, "shape": array.shape} for name, array in arrays.items()},
        "runs": runs,
        "extra": extra,
    }
    # Data first: a manifest never points at what is not there. Torn in between, the old manifest's hash refuses.
    write_atomic(path, data)
    save_record({**manifest, "manifest_sha256": _digest(manifest)}, path.with_suffix(".json"), "trace")
    return path


def load_trace(path: Path) -> LogitTrace:
    """Return a stored trace.

    Raises:
        RecordError: missing, of another version or kind, or changed since it was written.
    """
    manifest, arrays = _load_arrays(path, "logits")
    return _logit_trace(RunInfo.from_json(manifest["runs"]["run"]), manifest["n_vocab"], arrays, path)


def load_pair(path: Path) -> PairTrace:
    """Return a stored pair of traces. Raises ``RecordError`` as ``load_trace`` does."""
    manifest, arrays = _load_arrays(path, "pair")
    parts: dict[str, Any] = {}
    for side in ("reference", "candidate"):
        own = {name.removeprefix(f"{side}."): array for name, array in arrays.items() if name.startswith(f"{side}.")}
        parts[side] = _logit_trace(RunInfo.from_json(manifest["runs"][side]), manifest["n_vocab"], own, path)
    try:
        parts |= {name: arrays[name] for name in PAIR_ARRAYS}
        return PairTrace(**parts, extra=decode(manifest["extra"]))
    except (KeyError, TraceMismatchError) as error:
        raise RecordError("the stored pair is not sound", place=path, found=error) from error


def _logit_trace(run: RunInfo, n_vocab: int, arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> LogitTrace:
    try:
        return LogitTrace(run=run, n_vocab=n_vocab, **{name: arrays[name] for name in LOGIT_ARRAYS})
    except (KeyError, TraceMismatchError) as error:
        raise RecordError("the stored trace is not sound", place=path, found=error) from error


def _load_arrays(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    path = Path(path).with_suffix(".npz")
    manifest = load_record(path.with_suffix(".json"), "trace")
    stated = manifest.pop("manifest_sha256")
    if _digest(manifest) != stated:
        raise RecordError("the manifest was changed", place=path, expected=stated, found=_digest(manifest))
    if (manifest["kind"], manifest["file"]) != (kind, path.name):
        raise RecordError(
            "is another record",
            place=path,
            expected=f"{kind} {path.name}",
            found=f"{manifest['kind']} {manifest['file']}",
        )
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest["sha256"]:
        raise RecordError("the trace was changed", place=path, expected=manifest["sha256"], found=digest)
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    found = {name: {"dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()}
    if found != manifest["arrays"]:
        raise RecordError("the trace holds other arrays", place=path, expected=manifest["arrays"], found=found)
    return manifest, arrays


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(dump_line(manifest).encode()).hexdigest()
