"""``parity faults``: seed every known fault into one cell and show which rung caught it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.cell.request import CellRequest
    from parity_lib.faults.judge import Kill, KillMatrix
    from parity_lib.faults.op_judge import Trial, TrialTable
    from parity_lib.records.verdicts import Verdict

GOOD, BAD = 0, 1
HEAD = "\n".join(
    (
        "| fault | where | named | local error: tensor | worst position | worst channel | at |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    )
)

PARITY, DIVERGED, INCOMPLETE = 0, 1, 3
EPILOG = (
    "Exit status: 0 every fault ended as it has to; 1 one survived or ended otherwise, or the cell diverges without "
    "any fault, or with --trace a layer, or more than one op in twenty, is not named; 2 usage error; 3 the cell without"
    " a fault is incomplete, or a file cannot be read."
)
LINE_WIDTH = 200  # of a line under the table; divergences.jsonl of the fault's folder has all of it


@click.command(name="faults", epilog=EPILOG)
@options.model
@options.only("faults")
@click.option(
    "--faults",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="Your own list, shaped like fixtures/faults.toml, or with --trace op_faults.toml.",
)
@click.option(
    "--trace",
    "by_op",
    is_flag=True,
    help="Seed faults of one op each, and show which op the replay of all ops names (rung T3).",
)
@options.isa
@options.prompts
@options.threads
@options.out("the kill matrix and of each fault's records")
def command(
    model: str,
    quant: str,
    only: str,
    faults: Path | None,
    by_op: bool,
    isa: str,
    prompts: str,
    n_threads: int,
    out: Path | None,
) -> int:
    """Seed every fault that fits MODEL into the candidate, and show which rung catches each (the kill matrix)."""
    from parity_lib.base.names import Outcome
    from parity_lib.base.toml_table import read_toml
    from parity_lib.cell.steps import CellRequest
    from parity_lib.faults.matrix import KILLS, capture_baseline, seed_faults

    if faults is not None:
        read_toml(faults)  # refused before the folder's earlier record is touched
    folder = out or options.run_folder(model, quant, "faults")
    request = CellRequest(model=model, quant=quant, isa=isa, prompts=prompts, out_dir=folder, n_threads=n_threads)
    if by_op:
        return run(request, only, faults)
    baseline = capture_baseline(request, only, faults)
    if baseline.verdict.outcome is not Outcome.PARITY:
        return report_baseline(baseline.verdict)
    click.echo(f"{baseline.cell.id}: PARITY without a fault; {len(baseline.faults)} faults to seed")
    matrix = seed_faults(baseline, _show)
    _summary(matrix)
    click.echo(f"record: {folder / KILLS}")
    return DIVERGED if matrix.problems else PARITY


def report_baseline(verdict: Verdict) -> int:
    """Print what a cell without a fault diverged in, or lacks; return the exit status."""
    from parity_lib.base.names import Outcome

    click.echo(f"{verdict.outcome}: {verdict.cell}, without any fault: no fault was seeded")
    for line in verdict.lines():
        click.echo(line)
    return DIVERGED if verdict.outcome is Outcome.DIVERGED else INCOMPLETE


def _show(kill: Kill) -> None:
    """Print one row of the table, and under it the line that names the fault's trace."""
    changed = "-" if kill.rows_changed is None else f"{kill.rows_changed:,}"
    click.echo(
        f"{kill.word:10} {kill.fault:24} {kill.outcome:10} {kill.lowest or '-':3} rows changed {changed:>6}"
        f"  T4 {_margin(kill.worst_margin):14} {kill.seconds:5.1f} s"
    )
    if kill.problem:
        click.echo(f"           {kill.problem}")
    if kill.survived and kill.blind:
        click.echo(f"           known blind spot: {kill.blind}")
    if kill.line:
        click.echo(f"           {kill.line if len(kill.line) <= LINE_WIDTH else kill.line[: LINE_WIDTH - 2] + '..'}")


def _margin(margin: float | None) -> str:
    from parity_lib.records.verdicts import margin_words

    return "-" if margin is None else margin_words(margin)


def _summary(matrix: KillMatrix) -> None:
    n, survivors = len(matrix.kills), matrix.survivors
    known = [kill.fault for kill in survivors if kill.blind]
    unknown = [kill.fault for kill in survivors if not kill.blind]
    click.echo(
        f"{n - len(survivors)} of {n} faults were caught, each judged at {matrix.positions:,} positions; seen as a "
        f"divergence by {', '.join(f'{rung} {count}' for rung, count in matrix.caught().items())}; "
        f"T4 without a fault: {_margin(matrix.baseline_margin)}; {matrix.seconds:.0f} s"
    )
    click.echo(f"without a fault both libraries of the candidate have equal bits: {matrix.same_rows} rows compared")
    click.echo(f"survivors: {', '.join(unknown) or 'none'}; known blind spots: {', '.join(known) or 'none'}")
    others = [f"{kill.fault} ({kill.problem})" for kill in matrix.problems if not kill.survived]
    if others:
        click.echo(f"ended otherwise than they have to: {', '.join(others)}")
    for fault, reason in matrix.not_seeded.items():
        click.echo(f"not seeded: {fault}: {reason}")


def run(request: CellRequest, only: str, faults: Path | None) -> int:
    """Seed every fault of one op into a cell, print which op T3 named, and return the exit status."""
    from parity_lib.cell.request import open_cell
    from parity_lib.faults.op_faults import TRIALS, seed_op_faults

    cell = open_cell(request)
    said: list[str] = []

    def say(trial: Trial) -> None:
        said.append(line(trial))
        click.echo(said[-1] if len(said) > 1 else f"{HEAD}\n{said[-1]}")

    table = seed_op_faults(cell, say, only, faults)
    for text in summary(table):
        click.echo(text)
    click.echo(f"record: {cell.out_dir / TRIALS}")
    return GOOD if table.is_good else BAD


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
