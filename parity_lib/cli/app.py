"""The command line. Each command imports its modules when it runs, so that every command starts quickly."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from parity_lib.base.exit_status import DIVERGED, INCOMPLETE, OK, ended, guard_streams
from parity_lib.base.surroundings import restart_clean
from parity_lib.cli import options
from parity_lib.cli.baseline import baseline, predict
from parity_lib.cli.faults import command as faults
from parity_lib.cli.finding import group as finding
from parity_lib.cli.isa import command as isa_group
from parity_lib.cli.kernels import command as kernels
from parity_lib.cli.models import command as models
from parity_lib.cli.replay import command as replay
from parity_lib.cli.spread import command as spread
from parity_lib.cli.stack import group as stack_group
from parity_lib.cli.trace import command as trace

EPILOG = "Exit status: 0 parity; 1 diverged; 2 usage error; 3 incomplete, invalid, or a file that cannot be read."


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gguf-parity", prog_name="parity")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Compare burn with llama.cpp on GGUF files, logit by logit and op by op."""
    context.obj = {"debug": debug}


@cli.command()
def doctor() -> int:
    """Check this machine's set-up: what works, what does not, and what to do about it."""
    from parity_lib.cli.doctor import examine

    worst = OK
    for check in examine():
        click.echo(check.text())
        if check.blocks:
            worst = INCOMPLETE
    return worst


@cli.command(epilog=EPILOG)
@click.option(
    "--plan", default="smoke", show_default=True, metavar="PLAN", help="A plan file, or a shipped plan's name."
)
@options.out("all nightly runs; this one gets a folder inside")
@options.only("cells")
@click.option(
    "--require-all", is_flag=True, help="A cell that cannot run makes the nightly run incomplete, instead of NOT_RUN."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Cells at once, each on its own cores; overrides the plan.",
)
@click.option(
    "--full",
    is_flag=True,
    help="Replay every prompt op by op, and recompute every row (T3, T6); default: some of them.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    default="",
    metavar="[RUN]",
    help="Resume the newest unfinished run of this plan, or the named one; finished cells are kept.",
)
def nightly(
    plan: str, out: Path | None, only: str, require_all: bool, jobs: int | None, full: bool, resume: str
) -> int:
    """Run a plan: each cell a notebook in its own process, verdicts, pages, index, one exit status."""
    from parity_lib.night.night import NightOptions, run_night

    # A cancelled job is an interrupted run: finished cells are kept, and no process is left behind.
    signal.signal(signal.SIGTERM, _as_interrupt)
    asked = NightOptions(plan=plan, out=out, only=only, require_all=require_all, jobs=jobs, full=full, resume=resume)
    night, _ = run_night(asked)
    return night.exit_status


@cli.command(epilog=EPILOG)
@options.model
@options.isa
@options.stack
@options.implementation
@options.compute
@options.prompts
@options.threads
@click.option("--full", is_flag=True, help="Replay every prompt op by op, and make every row again (T3, T6).")
@click.option(
    "--candidate-file", default="", metavar="GGUF", help="Another GGUF file for the candidate, as a red control."
)
@options.fault
@options.out("the record and the traces")
def run(
    model: str,
    quant: str,
    stack: str,
    implementation: str,
    fault: str,
    out: Path | None,
    **asked: Any,  # noqa: ANN401 - strings, and n_threads
) -> int:
    """Compare one cell: MODEL is a pinned id, or the path of any GGUF file (then QUANT is read from it)."""
    from parity_lib.cell.steps import CellRequest, run_cell
    from parity_lib.faults.names import check_faults

    check_faults([(fault, "--fault")] if fault else [])
    folder = out or options.run_folder(model, quant)
    stack = options.stack_of(stack, implementation)
    request = CellRequest(model=model, quant=quant, stack=stack, fault=fault, out_dir=folder, **asked)
    verdict = run_cell(request)
    _print_verdict(verdict)
    click.echo(f"record: {Path(request.out_dir) / 'verdict.json'}")
    return _status(verdict.outcome.value)


@cli.command(epilog=EPILOG)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option(
    "--side",
    type=click.Choice(["reference", "candidate"]),
    default=None,
    help="Compare this side of both. Default: llama.cpp of REFERENCE against burn of CANDIDATE.",
)
def compare(reference: Path, candidate: Path, side: str | None) -> int:
    """Judge stored traces again, without an engine: REFERENCE and CANDIDATE are folders of cells, or the same one."""
    from parity_lib.judge.again import rejudge

    verdict = rejudge(reference, candidate, side or "")
    _print_verdict(verdict)
    if verdict.measured.note:
        click.echo(f"note: {verdict.measured.note}")
    return _status(verdict.outcome.value)


@cli.command()
@options.model
@options.isa
@options.prompts
@options.threads
@options.write("tolerances.toml")
def bands(model: str, quant: str, isa: str, prompts: str, n_threads: int, write: bool) -> int:
    """Predict the T4 limits of a model from the kernels' baselines: llama.cpp's graph with noise on each node."""
    from parity_lib.cell.derive import measure_tolerance, write_tolerance
    from parity_lib.records.tolerances import dump_tolerances

    folder = options.run_folder(model, quant, "bands")
    limits, found = measure_tolerance(model, quant, isa=isa, prompts=prompts, n_threads=n_threads, out_dir=folder)
    click.echo(
        f"in predicted sigmas: {limits.delta_limit:.3g} a logit, {limits.rms_limit:.3g} the rms of a position, "
        f"{limits.pooled_limit:.3g} that of all, {limits.pair_limit:.3g} a margin",
        err=True,
    )
    click.echo(dump_tolerances([found]), nl=False)
    if write:
        click.echo(f"written: {write_tolerance(found)}", err=True)
    return OK


cli.add_command(faults)
cli.add_command(baseline)
cli.add_command(kernels)
cli.add_command(predict)
cli.add_command(models)
cli.add_command(replay)
cli.add_command(finding)
cli.add_command(isa_group)
cli.add_command(spread)
cli.add_command(stack_group)
cli.add_command(trace)


def _print_verdict(verdict: Any) -> None:  # noqa: ANN401 - its type is imported where it is made
    from parity_lib.records.verdicts import margin_words

    marks = [word for word, on in (("provisional limits", verdict.provisional), ("unpinned", verdict.unpinned)) if on]
    click.echo(f"{verdict.outcome}: {verdict.cell}" + (f" ({', '.join(marks)})" if marks else ""))
    for rung in verdict.rungs:
        worst = "-" if rung.worst is None else f"{rung.worst:.3g}"
        limit = "exact" if rung.limit is None else f"{rung.limit:.3g}"
        inside = "" if rung.margin is None else f"  {margin_words(rung.margin)}"
        click.echo(
            f"  {rung.rung.title:11} {rung.outcome:10} {rung.compared:,} of {rung.expected:,}"
            f"  worst {worst}, limit {limit} {rung.unit}{inside}" + (f"  {rung.note}" if rung.note else "")
        )
    for line in verdict.lines():
        click.echo(line)


def _status(outcome: str) -> int:
    return {"PARITY": OK, "DIVERGED": DIVERGED}.get(outcome, INCOMPLETE)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one paragraph, with ``--debug`` a traceback.

    Args:
        arguments: words of the command line; None: those of this process, which is then made ready for them.
    """
    if arguments is None:
        guard_streams()
    words = sys.argv[1:] if arguments is None else arguments

    def run() -> int:
        if arguments is None:
            restart_clean()
        return _invoke(words)

    return ended(run, program="parity", debug="--debug" in words)


def _invoke(words: list[str]) -> int:
    """Run a command and return its exit status; usage errors are shown by click.

    Not through ``cli.app.main``, which ends the process with 1 where a pipe is closed: here 1 means diverged.
    """
    try:
        _complete()
        with cli.make_context("parity", list(words)) as context:
            status: int = cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return status


def _complete() -> None:
    """Answer the shell where it asks how a word goes on, and end."""
    instruction = os.environ.get("_PARITY_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        raise click.exceptions.Exit(shell_complete(cli, {}, "parity", "_PARITY_COMPLETE", instruction))


if __name__ == "__main__":
    sys.exit(main())
