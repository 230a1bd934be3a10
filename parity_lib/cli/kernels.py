"""``parity kernels``: measure the baseline from which rung T3's limits are derived."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.cell.kernels import Baseline
    from parity_lib.judge.kernels import Worst

EPILOG = "Exit status: 0 every op is inside of rung T3's limits; 1 one is not; 2 usage error; 3 an engine failed."


@click.command(name="kernels", epilog=EPILOG)
@options.model
@click.option("--prompt", default="", metavar="P", help="Number or name of a prompt; the longest if not given.")
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="How many of its tokens.",
)
@options.isa
@options.stack
@click.option("--repacked", is_flag=True, help="Run llama.cpp with re-ordered weights (its repacked kernels).")
@options.fault
@options.prompts
@options.threads
@options.out("the logs, used by no other run")
def command(
    model: str, quant: str, prompt: str, n_tokens: int, repacked: bool, out: Path | None, **asked: object
) -> int:
    """Measure each kernel of llama.cpp and of burn on MODEL against float64, both on llama.cpp's own inputs.

    Every op of every layer, in one prefill and two decodes. Numbers are mean squares of the error over mean squares of
    the value: over the tensor, of the worst position, of the worst channel.
    """
    from parity_lib.base.names import Settings
    from parity_lib.cell.kernels import measure_kernels

    folder = out or options.run_folder(model, quant, "kernels")
    found = measure_kernels(
        {"model": model, "quant": quant, "out_dir": str(folder), **asked},
        settings=Settings.REPACKED if repacked else Settings.STRICT,
        prompt=prompt,
        n_tokens=n_tokens,
    )
    for line in lines(found):
        click.echo(line)
    return 0 if all(kernel.share <= 1 for kernel in found.kernels) else 1


def lines(found: Baseline) -> list[str]:
    """Return what was run, and the table, its head first; the last line has the limits."""
    from parity_lib.judge.kernels import limits

    passes = f"one prefill of {found.passes[0]} and {len(found.passes) - 1} decodes"
    buffers = ", ".join(f"{n} products from {name}" for name, n in sorted(found.weights_in.items()))
    head = ("llama.cpp to float64", "burn to float64", "burn to llama.cpp")
    said = [
        f"{found.cell}, llama.cpp {found.settings}: prompt {found.prompt}, {passes}; {buffers}",
        f"{'kernel':24} {'ops':>5}  {head[0]:27} {head[1]:27} {head[2]:27} of the limit",
        f"{'':24} {'':>5}  " + " ".join(f"{'tensor':8} {'position':8} {'channel':9}" for _ in head),
    ]
    said += [
        f"{kernel.name:24} {kernel.n_ops:5,}  "
        f"{_numbers(kernel.reference)} {_numbers(kernel.candidate)} {_numbers(kernel.between)} {kernel.share:7.0%}"
        for kernel in found.kernels
    ]
    return [*said, f"{'limit':24} {'':5}  {'':27} {'':27} {_numbers(limits())}"]


def _numbers(worst: Worst) -> str:
    shown = ["-" if value is None else f"{value:.1e}" for value in (worst.tensor, worst.position, worst.channel)]
    return f"{shown[0]:8} {shown[1]:8} {shown[2]:9}"
