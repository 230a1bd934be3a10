"""Measure what limits are pinned by, and write it: tolerances of T4, self-spread of T5."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from parity_lib.base.errors import EngineError
from parity_lib.base.files import write_atomic
from parity_lib.base.toml_table import fixture_path
from parity_lib.cell import steps
from parity_lib.cell.reference import Reference
from parity_lib.cell.request import Cell, CellRequest
from parity_lib.cell.rows import Rows
from parity_lib.cell.t4_limits import measure_limits
from parity_lib.cell.t5_spread import capture_spread
from parity_lib.engines.machine import machine_class
from parity_lib.judge.self_spread import QUANTILE, RESAMPLES, limits, pooled
from parity_lib.records.drift_limits import DriftLimits
from parity_lib.records.self_spread import SelfSpread
from parity_lib.records.self_spread_pins import SpreadPin, dump_spreads, load_spreads
from parity_lib.records.tolerances import Tolerance, dump_tolerances, load_tolerances


def measure_spread(
    model: str, quant: str, *, out_dir: Path, isa: str = "host", prompts: str = "", n_threads: int = 0
) -> tuple[SelfSpread, SpreadPin]:
    """Measure llama.cpp's self-spread on a cell: generate, score the twin and each variant; return spread and pin."""
    request = CellRequest(model, quant, isa=isa, prompts=prompts, n_threads=n_threads, out_dir=out_dir)
    with _scored(request) as (cell, reference, twin):
        spread = capture_spread(cell, reference, twin)
    return spread, pin_of(spread, cell.id.model, cell.id.quant, _command("spread", cell))


@contextmanager
def _scored(request: CellRequest) -> Iterator[tuple[Cell, Reference, Rows]]:
    """Yield an opened cell, what its reference generated, and its rows on the F32 twin; afterwards they are gone."""
    cell = steps.open_cell(request)
    try:
        steps.check_pins(cell)
        reference = steps.capture_reference(cell)
        yield cell, reference, steps.capture_twin(cell, reference)
    finally:
        shutil.rmtree(cell.spools, ignore_errors=True)


def _command(name: str, cell: Cell) -> str:
    """Return the command line that measures a cell's pin again."""
    prompts = ["--prompts", cell.request.prompts] if cell.request.prompts else []
    return shlex.join(["parity", name, cell.id.model, cell.id.quant, *prompts])


def pin_of(spread: SelfSpread, model: str, quant: str, command: str) -> SpreadPin:
    """Return the pin of a measured self-spread. The candidate has no part in it.

    Raises:
        EngineError: a position is missing, or no limit can be derived.
    """
    short = [v.name for v in (*spread.variants, spread.twin) if len(v) != v.asked or not v.asked]
    if short:
        raise EngineError("a variant gave no row for some position", place=f"{model} {quant}", found=", ".join(short))
    base = pooled(spread, spread.counted)
    found = {limit.metric: limit for limit in limits(spread, spread.counted)}
    source = (
        f"llama.cpp {spread.commit} on {spread.model_sha256[:12]}, {len(spread)} positions: strict settings against "
        f"{', '.join(spread.counted)}; limits: {QUANTILE} quantile of {RESAMPLES} resamples of prompts of its own F32 "
        f"twin over that; {datetime.now(UTC):%Y-%m-%d}; {command}"
    )
    names = ("rms", "rms_over_std_of_all", "p99", "kl", "pair_sigma", "top1_share", "top5_set_share")
    return SpreadPin(
        model=model,
        quant=quant,
        isa=spread.isa,
        machine_class=spread.machine_class,
        prompts_sha256=spread.prompts_sha256,
        model_sha256=spread.model_sha256,
        variants=spread.counted,
        **{name: base.metric(name) for name in names},
        **{f"{metric}_ratio": limit.ratio for metric, limit in found.items()},
        **{f"{metric}_limit": limit.limit for metric, limit in found.items()},
        displaced=spread.displaced,
        source=source,
    )


def write_pins(pins: Iterable[SpreadPin], path: Path | None = None) -> Path:
    """Put pins into a file in place of the old ones of the same key, or of the same file with other prompts.

    Raises:
        RecordError: the file cannot be written.
    """
    path = fixture_path("spread.toml") if path is None else path
    new = list(pins)
    replaced = {pin.key[:4] for pin in new}
    kept = [pin for pin in load_spreads(path).pins if pin.key[:4] not in replaced]
    write_atomic(path, dump_spreads([*kept, *new]).encode())
    return path


def measure_tolerance(
    model: str, quant: str, *, out_dir: Path, isa: str = "host", prompts: str = "", n_threads: int = 0
) -> tuple[DriftLimits, Tolerance]:
    """Predict the limits of T4 for one model: llama.cpp generates, scores its twin, and scores it again with noise.

    Returns:
        The limits of each position, and what is pinned of them.
    """
    request = CellRequest(model, quant, isa=isa, prompts=prompts, n_threads=n_threads, out_dir=out_dir)
    with _scored(request) as (cell, reference, twin):
        limits = measure_limits(cell, reference, twin)
    return limits, tolerance_of(limits, cell.id.model, cell.id.quant, _command("bands", cell))


def tolerance_of(limits: DriftLimits, model: str, quant: str, command: str) -> Tolerance:
    """Return what is pinned of limits. The candidate's logits have no part in them."""
    return Tolerance(
        model=model,
        quant=quant,
        reference=limits.reference,
        candidate=limits.candidate,
        false_alarm=limits.false_alarm,
        typical=limits.typical,
        worst=limits.worst,
        source=f"{len(limits)} positions; {limits.source}, {machine_class()}; {command}",
    )


def write_tolerance(tolerance: Tolerance, path: Path | None = None) -> Path:
    """Put a tolerance into a tolerances file in place of the old one of the same key; return its path.

    Raises:
        RecordError: the file cannot be written.
    """
    path = fixture_path("tolerances.toml") if path is None else path
    kept = [one for one in load_tolerances(path).all if one.key != tolerance.key]
    write_atomic(path, dump_tolerances([*kept, tolerance]).encode())
    return path
