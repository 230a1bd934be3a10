"""``parity spread``: how far llama.cpp is from itself on one file, and the limits of rung T5 that follow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from parity_lib.spread_pins import SpreadPin
    from parity_lib.spreads import SelfSpread

EPILOG = "Exit status: 0 measured; 2 usage error; 3 a file cannot be read or the reference failed."


@click.command(name="spread", epilog=EPILOG)
@click.argument("model")
@click.argument("quant", default="")
@click.option("--isa", default="host", show_default=True, help="Instruction-set leg of llama.cpp.")
@click.option("--prompts", default="", metavar="FILE", help="A prompts file of your own.")
@click.option("--threads", default=0, metavar="N", help="Threads of the reference; 0 is every core.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the record and the log.")
@click.option("--write", is_flag=True, help="Put it into fixtures/spread.toml in place of the old one.")
def command(model: str, quant: str, isa: str, prompts: str, threads: int, out: Path | None, write: bool) -> int:
    """Measure llama.cpp's distance to itself on MODEL, strict settings against its other ways to run."""
    from parity_lib.capture.spread_pin import measure_spread, write_pins
    from parity_lib.json_text import dump_line
    from parity_lib.record_file import write_atomic
    from parity_lib.spread_pins import dump_spreads

    folder = out or _folder(model, quant)
    spread, pin = measure_spread(model, quant, isa=isa, prompts=prompts, n_threads=threads, out_dir=folder)
    write_atomic(folder / "spread.json", (dump_line(spread.to_json()) + "\n").encode())
    for line in _lines(spread, pin):
        click.echo(line, err=True)
    click.echo(dump_spreads([pin]), nl=False)
    if write:
        click.echo(f"written: {write_pins([pin])}", err=True)
    return 0


def _lines(spread: SelfSpread, pin: SpreadPin) -> list[str]:
    """Return a line for each variant, and one for each limit."""
    from parity_lib.compare.spread import METRICS, numbers

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


def _folder(model: str, quant: str) -> Path:
    from datetime import UTC, datetime

    name = "-".join(part for part in (Path(model).stem, quant, "spread") if part)
    root = Path(__file__).resolve().parents[2] / "reports" / "runs"
    return root / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
