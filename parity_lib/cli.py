"""The command line. Each command imports what it needs when it runs, so that all of them start at once."""

from __future__ import annotations

import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from parity_lib.commands.faults import command as faults
from parity_lib.commands.finding import command as finding
from parity_lib.commands.isa import command as isa_group
from parity_lib.commands.kernels import command as kernels
from parity_lib.commands.models import command as models
from parity_lib.commands.replay import command as replay
from parity_lib.commands.spread import command as spread
from parity_lib.commands.stack import group as stack_group
from parity_lib.commands.trace import command as trace
from parity_lib.errors import ParityError

STATUS_OK, STATUS_DIVERGED, STATUS_USAGE, STATUS_INCOMPLETE, STATUS_INTERRUPTED = 0, 1, 2, 3, 130
EPILOG = "Exit status: 0 parity; 1 diverged; 2 usage error; 3 incomplete, invalid, or a file that cannot be read."


def _leg(command: Any) -> Any:  # noqa: ANN401 - click's decorators are untyped here
    """Add the options that choose what runs."""
    for option in (
        click.option(
            "--isa", default="host", show_default=True, help="Instruction-set leg, or 'host': the widest here."
        ),
        click.option("--stack", default="crates-io", show_default=True, help="What stands under the candidate."),
        click.option("--compute", default="f32", show_default=True, help="Arithmetic of the candidate's matmuls."),
        click.option("--prompts", default="", metavar="FILE", help="A prompts file of your own."),
        click.option("--threads", default=0, metavar="N", help="Threads of each engine; 0 is every core."),
    ):
        command = option(command)
    return command


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gguf-parity", prog_name="parity")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Prove or refute that burn computes what llama.cpp computes, logit by logit."""
    context.obj = {"debug": debug}


@cli.command()
def doctor() -> int:
    """Say what works on this machine, what does not, and what to do about it."""
    from parity_lib.doctor import examine

    worst = STATUS_OK
    for check in examine():
        click.echo(check.text())
        if check.blocks:
            worst = STATUS_INCOMPLETE
    return worst


@cli.command(epilog=EPILOG)
@click.option(
    "--plan", default="smoke", show_default=True, metavar="PLAN", help="A plan file, or a shipped plan's name."
)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder in which the run's folder is made.")
@click.option("--only", default="", metavar="GLOB", help="Only the cells whose name matches.")
@click.option("--require-all", is_flag=True, help="A cell that cannot run makes the night incomplete; no holes.")
@click.option(
    "--jobs", type=int, default=None, metavar="N", help="Cells at once, each on cores of its own, not as planned."
)
@click.option("--full", is_flag=True, help="Replay every prompt op by op, and make every row again (T3, T6).")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    default="",
    metavar="[NIGHT]",
    help="Go on with the newest unfinished night of this plan, or with the one named; finished cells are kept.",
)
def nightly(
    plan: str, out: Path | None, only: str, require_all: bool, jobs: int | None, full: bool, resume: str
) -> int:
    """Run a plan: each cell a notebook in its own process, verdicts, pages, index, one exit status."""
    from parity_lib.nightly import NightOptions, run_night

    # A cancelled job is an interrupted night: what was finished is kept, and no process is left behind.
    signal.signal(signal.SIGTERM, _as_interrupt)
    options = NightOptions(plan=plan, out=out, only=only, require_all=require_all, jobs=jobs, full=full, resume=resume)
    night, _ = run_night(options)
    return night.exit_status


@cli.command(epilog=EPILOG)
@click.argument("model")
@click.argument("quant", default="")
@_leg
@click.option("--candidate-file", default="", metavar="GGUF", help="Another file for the candidate, for drills.")
@click.option("--fault", default="", metavar="NAME", help="A fault seeded into the candidate, for drills.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder of the record and the traces.")
def run(
    model: str,
    quant: str,
    isa: str,
    stack: str,
    compute: str,
    prompts: str,
    threads: int,
    candidate_file: str,
    fault: str,
    out: Path | None,
) -> int:
    """Compare one cell: MODEL is an id of the pins or the path of any GGUF file; then QUANT is read from it."""
    from parity_lib.capture.cell import CellRequest, run_cell
    from parity_lib.night.faults import check_faults

    check_faults([(fault, "--fault")] if fault else [])
    request = CellRequest(
        model=model,
        quant=quant,
        isa=isa,
        stack=stack,
        compute=compute,
        prompts=prompts,
        candidate_file=candidate_file,
        fault=fault,
        out_dir=out or _run_folder(model, quant),
        n_threads=threads,
    )
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
    help="Take this side of both, to compare one engine on two hosts. Default: llama.cpp of A against burn of B.",
)
def compare(reference: Path, candidate: Path, side: str | None) -> int:
    """Judge stored traces again, without an engine: REFERENCE and CANDIDATE are folders of cells, or the same one."""
    from parity_lib.rejudge import rejudge

    verdict = rejudge(reference, candidate, side or "")
    _print_verdict(verdict)
    if "note" in verdict.literal:
        click.echo(f"note: {verdict.literal['note']}")
    return _status(verdict.outcome.value)


@cli.command()
@click.argument("model")
@click.argument("quant", default="")
@click.option("--isa", default="host", show_default=True, help="Instruction-set leg of llama.cpp.")
@click.option("--prompts", default="", metavar="FILE", help="A prompts file of your own.")
@click.option("--threads", default=0, metavar="N", help="Threads of each engine; 0 is every core.")
@click.option("--write", is_flag=True, help="Put them into fixtures/tolerances.toml in place of the old ones.")
def bands(model: str, quant: str, isa: str, prompts: str, threads: int, write: bool) -> int:
    """Derive the T4 limits of a model from llama.cpp's own distance to the float64 oracle on the F32 twin."""
    from parity_lib.capture.bands import measure_bands, write_bands
    from parity_lib.tolerances import dump_tolerances

    folder = _run_folder(model, f"{quant}-bands")
    found = measure_bands(model, quant, isa=isa, prompts=prompts, n_threads=threads, out_dir=folder)
    click.echo(dump_tolerances(found), nl=False)
    if write:
        click.echo(f"written: {write_bands(found)}", err=True)
    return STATUS_OK


cli.add_command(faults)
cli.add_command(kernels)
cli.add_command(models)
cli.add_command(replay)
cli.add_command(finding)
cli.add_command(isa_group)
cli.add_command(spread)
cli.add_command(stack_group)
cli.add_command(trace)


def _run_folder(model: str, quant: str) -> Path:
    from datetime import UTC, datetime

    name = "-".join(part for part in (Path(model).stem, quant) if part)
    root = Path(__file__).resolve().parents[1] / "reports" / "runs"
    return root / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"


def _print_verdict(verdict: Any) -> None:  # noqa: ANN401 - its type is imported where it is made
    from parity_lib.verdicts import margin_words

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
    return {"PARITY": STATUS_OK, "DIVERGED": STATUS_DIVERGED}.get(outcome, STATUS_INCOMPLETE)


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one paragraph, with ``--debug`` a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        status = cli.main(args=words, prog_name="parity", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return STATUS_INTERRUPTED
    except ParityError as error:
        if "--debug" in words:
            traceback.print_exc()
        click.echo(f"parity: {type(error).__name__}: {error}", err=True)
        return error.exit_status
    except OSError as error:
        # A full disk or a lost folder; anything else is a defect of this program and shows its traceback.
        if "--debug" in words:
            traceback.print_exc()
        place, found = error.filename or "a file or a stream", error.strerror or error
        click.echo(
            f"parity: {place}: cannot be read or written; expected room and permission; found {found}; "
            "next: free some space, or give another --out",
            err=True,
        )
        return STATUS_INCOMPLETE
    return status if isinstance(status, int) else STATUS_OK


if __name__ == "__main__":
    sys.exit(main())
