"""``parity faults``: seed every known fault into one cell and show which gate caught it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.commands import place_drills

if TYPE_CHECKING:
    from parity_lib.compare.kills import Kill, KillMatrix
    from parity_lib.verdicts import Verdict

PARITY, DIVERGED, INCOMPLETE = 0, 1, 3
EPILOG = (
    "Exit status: 0 every fault ended as it has to; 1 one survived or ended otherwise, or the cell diverges without "
    "any fault, or with --trace a layer, or more than one op in twenty, is not named; 2 usage error; 3 the cell without"
    " a fault is incomplete, or a file cannot be read."
)
LINE_WIDTH = 200  # of a line under the table; divergences.jsonl of the fault's folder has all of it


@click.command(name="faults", epilog=EPILOG)
@click.argument("model")
@click.argument("quant", default="")
@click.option("--only", default="", metavar="GLOB", help="Only the faults whose name matches.")
@click.option(
    "--faults", type=click.Path(path_type=Path), default=None, metavar="FILE", help="A list of faults of your own."
)
@click.option(
    "--trace", "by_op", is_flag=True, help="Faults of one op each: which op does the replay of all ops name (rung T3)?"
)
@click.option("--isa", default="host", show_default=True, help="Instruction-set leg, or 'host': the widest here.")
@click.option("--prompts", default="", metavar="FILE", help="A prompts file of your own.")
@click.option("--threads", default=0, metavar="N", help="Threads of each engine; 0 is every core.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the matrix and of every cell.")
def command(
    model: str,
    quant: str,
    only: str,
    faults: Path | None,
    by_op: bool,
    isa: str,
    prompts: str,
    threads: int,
    out: Path | None,
) -> int:
    """Seed every fault that fits MODEL into the candidate: what catches it, and what survives."""
    from parity_lib.capture.cell import CellRequest
    from parity_lib.capture.faults import KILLS, capture_baseline, seed_faults
    from parity_lib.names import Outcome

    folder = out or _folder(model, quant)
    request = CellRequest(model=model, quant=quant, isa=isa, prompts=prompts, out_dir=folder, n_threads=threads)
    if by_op:
        return place_drills.run(request, only, faults)
    baseline = capture_baseline(request, only, faults)
    if baseline.verdict.outcome is not Outcome.PARITY:
        return report_baseline(baseline.verdict)
    click.echo(f"{baseline.cell.id}: PARITY without a fault; {len(baseline.drills)} faults to seed")
    matrix = seed_faults(baseline, _show)
    _summary(matrix)
    click.echo(f"record: {folder / KILLS}")
    return DIVERGED if matrix.problems else PARITY


def report_baseline(verdict: Verdict) -> int:
    """Print what a cell without a fault diverged in, or lacks; return the exit status."""
    from parity_lib.names import Outcome

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
    from parity_lib.verdicts import margin_words

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
    click.echo(f"survivors: {', '.join(unknown) or 'none'}; known blind spots: {', '.join(known) or 'none'}")
    others = [f"{kill.fault} ({kill.problem})" for kill in matrix.problems if not kill.survived]
    if others:
        click.echo(f"ended otherwise than they have to: {', '.join(others)}")
    for fault, reason in matrix.not_seeded.items():
        click.echo(f"not seeded: {fault}: {reason}")


def _folder(model: str, quant: str) -> Path:
    from datetime import UTC, datetime

    name = "-".join(part for part in (Path(model).stem, quant, "faults") if part)
    root = Path(__file__).resolve().parents[2] / "reports" / "runs"
    return root / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
