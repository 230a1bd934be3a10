"""The printed side of ``parity faults --trace``: which op each seeded fault is named at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from parity_lib.capture.cell_request import CellRequest
    from parity_lib.compare.place_drills import Trial, TrialTable

GOOD, BAD = 0, 1


def run(request: CellRequest, only: str, faults: Path | None) -> int:
    """Seed every drill of rung T3 into a cell, print the table, return the exit status."""
    from parity_lib.capture.cell_request import open_cell
    from parity_lib.capture.place_drills import TRIALS, run_place_drills

    cell = open_cell(request)
    said: list[str] = []

    def say(trial: Trial) -> None:
        said.append(line(trial))
        click.echo(said[-1] if len(said) > 1 else f"{HEAD}\n{said[-1]}")

    table = run_place_drills(cell, say, only, faults)
    for text in summary(table):
        click.echo(text)
    click.echo(f"record: {cell.out_dir / TRIALS}")
    return GOOD if table.is_good else BAD


HEAD = "\n".join(
    (
        "| fault | where | named | local error: tensor | worst position | worst channel | at |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
)


def line(trial: Trial) -> str:
    """Return one row of the table, as Markdown: what was named, and what should have been where that is another op."""
    named = f"`{trial.named}`" if trial.named else "nothing"
    wrong = "" if trial.is_op else f", **not** `{trial.expected}`"
    where = "burn" if trial.at == "engine" else f"the file, `{trial.at}`"
    errors = f"{trial.nmse:.1e} | {trial.position_nmse:.1e} | {trial.channel_nmse:.1e}"
    return (
        f"| {trial.fault}: {trial.what} | {where} | {named}{wrong} | {errors} | "
        f"position {trial.position}, channel {trial.channel} |"
    )


def summary(table: TrialTable) -> list[str]:
    """Return what the table comes to, line by line."""
    n = len(table.trials)
    size = f"{n} faults, each replayed at {table.n_positions} positions, {table.n_ops:,} ops"
    sound = f"without a fault the worst op uses {table.sound_share * 100:.0f} % of its limit"
    named = f"layer named {table.layers_named} of {n}, op named {table.ops_named} of {n}"
    said = [f"{table.cell.model} {table.cell.quant}: {size}", f"{named}; {sound}; {table.seconds:.0f} s"]
    return said + [f"not seeded: {fault}: {reason}" for fault, reason in table.not_seeded.items()]
