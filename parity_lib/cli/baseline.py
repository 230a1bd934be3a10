"""``parity baseline`` and ``parity predict``: how far each kernel rounds, and what that does to the logits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.cell.prediction import Predicted
    from parity_lib.records.kernel_baseline import KernelBaseline

EPILOG = "Exit status: 0 measured; 2 usage error; 3 a file cannot be read or an engine failed."
PREDICT_EPILOG = (
    "Exit status: 0 llama.cpp is as far from float64 as predicted; 1 it is not; 2 usage error; 3 an engine failed."
)


@click.command(name="baseline", epilog=EPILOG)
@options.model
@click.option("--prompt", default="", metavar="P", help="Number or name of a prompt; the longest if not given.")
@click.option("--tokens", "n_tokens", type=click.IntRange(min=1), default=64, show_default=True, metavar="N")
@options.isa
@options.stack
@options.prompts
@options.threads
@options.out("the logs, used by no other run")
@options.write("kernel_baseline/")
def baseline(model: str, quant: str, prompt: str, n_tokens: int, out: Path | None, write: bool, **asked: object) -> int:
    """Measure how far each kernel of both engines is from float64 on the F32 twin of MODEL.

    A number is the variance of the relative error: of a product relative to sqrt(sum a^2 b^2), else to the value.
    """
    from parity_lib.cell.kernels import measure_baselines
    from parity_lib.records.kernel_baseline import save_baseline

    folder = out or options.run_folder(model, quant, "baseline")
    request = {"model": model, "quant": quant, "out_dir": str(folder), **asked}
    found = measure_baselines(request, prompt=prompt, n_tokens=n_tokens)
    for line in lines(found):
        click.echo(line)
    if write:
        for one in found:
            click.echo(f"written: {save_baseline(one)}", err=True)
    return 0


def lines(found: tuple[KernelBaseline, ...]) -> list[str]:
    """Return a table of each engine, with the worst-case and the probable bound of a plain float32 sum beside it."""
    from parity_lib.numerics.kernel_noise import UNIT

    said = []
    for one in found:
        said.append(f"{one.engine} {one.isa}, {one.machine_class}")
        said.append(f"{'kernel':16} {'length':>6} {'ops':>5}  {'mean':8} {'worst':8} {'(sqrt(n) u)^2':13} (n u)^2")
        for k in one.kernels:
            probable, bound = k.length * UNIT**2, (k.length * UNIT) ** 2
            said.append(
                f"{k.kernel:16} {k.length:6,} {k.n_ops:5,}  {k.mean:.2e} {k.worst:.2e} {probable:<13.2e} {bound:.2e}"
            )
    return said


@click.command(name="predict", epilog=PREDICT_EPILOG)
@options.model
@click.option("--draws", type=click.IntRange(min=2), default=4, show_default=True, help="Passes with noise.")
@options.isa
@options.stack
@options.prompts
@options.threads
@options.out("the logs, used by no other run")
def predict(model: str, quant: str, draws: int, out: Path | None, **asked: object) -> int:
    """Predict from the kernels' baseline how far rounding moves the logits of MODEL, and compare with what it does."""
    from parity_lib.cell.prediction import LLAMA_CPP, measure_prediction

    folder = out or options.run_folder(model, quant, "predict")
    found = measure_prediction({"model": model, "quant": quant, "out_dir": str(folder), **asked}, draws=draws)
    for line in predicted_lines(found):
        click.echo(line)
    return 0 if found.shares[LLAMA_CPP].holds else 1


def predicted_lines(found: Predicted) -> list[str]:
    """Return the table of what was observed over what was predicted, its head first."""
    from parity_lib.judge.prediction import PERCENTILES

    percentiles = " ".join(f"{p:g}" for p in PERCENTILES)
    said = [
        f"{found.cell}: {found.n_positions:,} positions, {found.draws} passes with noise; rms over std of a row",
        f"{'':20}  {'observed: pooled, median, max':30} {'predicted':30} observed over predicted: {percentiles} %",
    ]
    for name, share in found.shares.items():
        numbers = (", ".join(f"{value:.2e}" for value in side) for side in (share.observed, share.predicted))
        ratio = " ".join(f"{value:.2f}" for value in share.percentiles)
        said.append(f"{name:20}  {' '.join(f'{text:30}' for text in numbers)} {ratio}")
    return said
