"""``parity spread``: how far llama.cpp is from itself on one file, and the limits of rung T5 that follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.records.self_spread import SelfSpread
    from parity_lib.records.self_spread_pins import SpreadPin

EPILOG = "Exit status: 0 measured; 2 usage error; 3 a file cannot be read or the reference failed."


@click.command(name="spread", epilog=EPILOG)
@options.model
@options.isa
@options.prompts
@options.threads
@options.out("the record and the log")
@options.write("spread.toml")
def command(model: str, quant: str, isa: str, prompts: str, n_threads: int, out: Path | None, write: bool) -> int:
    """Measure llama.cpp's distance to itself on MODEL, strict settings against its other ways to run."""
    from parity_lib.base.record import save_record
    from parity_lib.cell.derive import measure_spread, write_pins
    from parity_lib.records.self_spread_pins import dump_spreads

    folder = out or options.run_folder(model, quant, "spread")
    spread, pin = measure_spread(model, quant, isa=isa, prompts=prompts, n_threads=n_threads, out_dir=folder)
    save_record(spread, folder / "spread.json")
    for line in _lines(spread, pin):
        click.echo(line, err=True)
    click.echo(dump_spreads([pin]), nl=False)
    if write:
        click.echo(f"written: {write_pins([pin])}", err=True)
    return 0


def _lines(spread: SelfSpread, pin: SpreadPin) -> list[str]:
    """Return a line for each variant, and one for each limit."""
    from parity_lib.judge.self_spread import METRICS, numbers

    lines = []
    for variant in (*spread.variants, spread.twin):
        n = numbers(variant)
        lines.append(
            f"{variant.name:14} against {variant.against:7} {n.positions:5,} positions  rms/std {n.rms:.3g}"
            f" ({n.rms_over_std_of_all:.3g} of all logits)  p99 {n.p99:.3g}  KL {n.kl:.3g}  top-1 {n.top1_share:.1%}"
            f"  top-5 set {n.top5_set_share:.1%}" + (f"  the same bits as {variant.same_as}" if variant.same_as else "")
        )
    lines += [f"{name:14} not run: {why}" for name, why in spread.absent.items()]
    for metric in METRICS:
        lines.append(f"{metric}: twin {pin.ratio(metric):.3g} of the self-spread, limit {pin.limit(metric):.3g}")
    lines.append(f"displaced: {len(pin.displaced)} flips of the twin that the self-spread does not explain")
    return lines
