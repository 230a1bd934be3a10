"""Where the limits of rung T4 come from: the reference's own distance to a float64 oracle, never the candidate's."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from parity_lib.capture import logits
from parity_lib.capture.logits import Rows
from parity_lib.compare.align import align
from parity_lib.compare.metrics import pair_sigma, pooled_rms_over_std
from parity_lib.engines.worker import Worker
from parity_lib.errors import EngineError
from parity_lib.fixture_file import fixture_path
from parity_lib.names import TOP_JUDGED, Rung
from parity_lib.record_file import write_atomic
from parity_lib.tolerances import FIRST, LATER, METRICS, Band, BandSet, ToleranceTable, dump_tolerances, load_tolerances
from parity_lib.traces import PairTrace, Position

if TYPE_CHECKING:
    from parity_lib.capture.cell_request import Cell

BANDS_FILE = "bands.toml"
CHAINS = 8.1
"""How much larger than the reference's a correct engine's f32 error may be, from how the two add up, not from what the
candidate shows. ggml's f32 dot product keeps 64 partial sums on AVX-512 (32 on AVX2), matrixmultiply's sgemm one for
each output; the rounding error of a chain grows with the root of its length, so sqrt(64) = 8 times the reference's is
sound, and both err independently: sqrt(1 + 64) = 8.1.
"""
SAMPLE = 1.5
"""Room on top of that for a limit on the *largest* error: over one set of prompts the largest is a sample."""
FACTORS = {
    "pooled_rms_over_std": CHAINS,
    "position_rms_over_std": CHAINS * SAMPLE,
    "delta_over_std": CHAINS * SAMPLE,
    "pair_sigma_over_std": CHAINS,
}
"""Limit over what was measured. A fault below it is not seen at T4; finding it is T3's task."""


def derive(pair: PairTrace, expected: Sequence[Position], model: str, quant: str, source: str) -> list[Band]:
    """Return the T4 bands from a pair of (reference on the F32 twin, float64 oracle on the same file).

    Each limit is its factor of ``FACTORS`` times what the metric measures between the two: pooled rms, the worst
    position's rms, the worst delta at its id, and the spread of the error of the difference of two top logits, each
    over the standard deviation of the reference's row, apart for the first row of a prompt and for all later ones.

    Raises:
        EngineError: a position is missing, or a value is not finite: nothing can be derived from that.
    """
    seen = align(pair, expected)
    if seen.causes or not seen.finite.all():
        raise EngineError(
            "the limits cannot be derived",
            place=f"{model} {quant}",
            expected="the reference and the oracle at every position, all finite",
            found="; ".join(seen.causes) or f"{int((~seen.finite).sum())} positions with non-finite logits",
        )
    errors = seen.pair.candidate_at_reference[:, :TOP_JUDGED].astype(np.float64)
    sigma = pair_sigma(errors - seen.pair.reference.topk_logits[:, :TOP_JUDGED])
    rms, std = seen.pair.rms, seen.pair.reference.std
    bands = []
    for where, mask in ((FIRST, seen.first), (LATER, ~seen.first)):
        measured = {
            "pooled_rms_over_std": pooled_rms_over_std(rms[mask], std[mask]),
            "position_rms_over_std": float((rms[mask] / std[mask]).max()),
            "delta_over_std": float((np.abs(seen.delta[mask]) / std[mask]).max()),
            "pair_sigma_over_std": float(np.sqrt(np.mean((sigma[mask] / std[mask]) ** 2))),
        }
        for metric, value in measured.items():
            factor = FACTORS[metric]
            text = f"{factor:g} x {value:.3g}, {int(mask.sum())} positions; {source}"
            bands.append(Band(model, quant, Rung.T4, metric, where, factor * value, METRICS[metric], text, True))
    return bands


def derive_for(
    cell: Cell, sequences: Sequence[Sequence[int]], lengths: Sequence[int], twin: Rows, expected: Sequence[Position]
) -> BandSet:
    """Return limits for a file or prompts of the user's own, measured now.

    Args:
        cell: the cell.
        sequences: what the engines were fed.
        lengths: tokens of each prompt.
        twin: the reference's rows on the F32 twin.
        expected: every position of the cell.
    """
    table = ToleranceTable(measure(cell, sequences, lengths, twin, expected, command="derived on the fly"))
    return table.cell(cell.id.model, cell.id.quant, Rung.T4)


def measure(
    cell: Cell,
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int],
    twin: Rows,
    expected: Sequence[Position],
    *,
    command: str,
) -> list[Band]:
    """Let the float64 oracle score the same tokens on the F32 twin, and derive the bands."""
    spool = cell.spools / "oracle.f32"
    with Worker("oracle", {"path": str(cell.twin_path), "n_threads": cell.n_threads}, log=cell.log("oracle")) as oracle:
        counts = oracle.call("score", sequences, spool, progress=cell.progress.step("float64 oracle scores"))
        run, n_vocab = oracle.call("run_info"), oracle.call("n_vocab")
    rows = logits.delivered(run, spool, n_vocab, sequences, lengths, counts)
    pair = logits.pair(twin, rows, expected)
    source = (
        f"llama.cpp {twin.run.commit} strict on the F32 twin {twin.run.model_sha256[:12]}, against float64 numpy, "
        f"prompts {cell.suite.sha256[:12]}; {datetime.now(UTC):%Y-%m-%d}, {twin.run.machine_class}; {command}"
    )
    return derive(pair, expected, cell.id.model, cell.id.quant, source)


def measure_bands(
    model: str, quant: str, *, out_dir: Path, isa: str = "host", prompts: str = "", n_threads: int = 0
) -> list[Band]:
    """Derive the bands of one model: llama.cpp generates, then scores its twin; the oracle scores the same tokens."""
    from parity_lib.capture import cell as steps

    cell = steps.open_cell(model=model, quant=quant, isa=isa, prompts=prompts, n_threads=n_threads, out_dir=out_dir)
    steps.check_pins(cell)
    reference = steps.capture_reference(cell)
    twin = steps.capture_twin(cell, reference)
    expected = steps.positions(cell, reference)
    words = shlex.join(["parity", "bands", cell.id.model, cell.id.quant])
    try:
        return measure(cell, reference.sequences, reference.prompt_lengths, twin, expected, command=words)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)


def save_bands(bands: BandSet, folder: Path) -> Path:
    """Write the limits that a verdict stands on beside it, so that its traces can be judged again."""
    path = folder / BANDS_FILE
    own = [band for band in bands.table.bands if band.key[:3] == (bands.model, bands.quant, bands.rung.value)]
    write_atomic(path, dump_tolerances(own).encode())
    return path


def write_bands(bands: Iterable[Band], path: Path | None = None) -> Path:
    """Put bands into a tolerances file in place of the old ones of the same model, quant and rung; return its path.

    Raises:
        RecordError: the file cannot be written.
    """
    path = fixture_path("tolerances.toml") if path is None else path
    new = list(bands)
    replaced = {band.key[:3] for band in new}
    kept = [band for band in load_tolerances(path).bands if band.key[:3] not in replaced]
    write_atomic(path, dump_tolerances([*kept, *new]).encode())
    return path
