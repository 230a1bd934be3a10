"""``parity trace``: trace one token down to one op, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.night.job import NotebookEnd

PARITY, DIVERGED, INCOMPLETE = 0, 1, 3
LIMIT_S = 4 * 3600.0  # an 8B model on two cores takes its time; a hung engine does not stay for ever
EPILOG = (
    "Exit status: 0 nothing is over its limit at that token; 1 something is, or burn's decode is not its prefill; "
    "2 usage error; 3 the trace could not be made, or a file cannot be read."
)


@click.command(name="trace", epilog=EPILOG)
@options.model
@options.prompt
@click.option(
    "--token",
    type=click.IntRange(-(2**31), 2**31 - 1),
    default=0,
    show_default=True,
    metavar="N",
    help="Row: 0 chooses the first generated token; rows of the prompt are -1, -2, ..",
)
@options.fault
@options.isa
@options.stack
@click.option(
    "--against",
    default="",
    metavar="STACK",
    help="Compare with burn on this stack in llama.cpp's place, op by op on its values.",
)
@options.compute
@options.prompts
@options.out("the page")
def command(out: Path | None, **asked: Any) -> int:  # noqa: ANN401 - strings, but for the token's number
    """Trace one token of MODEL QUANT: the first wrong op, where the delta comes from, which engine is at fault.

    With --against two stacks of burn are compared: --stack is the candidate, --against leads it.
    """
    folder = out or options.run_folder(
        asked["model"], asked["quant"], "trace", asked["against"], f"p{asked['prompt']}", f"t{asked['token']}"
    )
    folder = folder.resolve()
    for name in ("model", "prompts"):  # the notebook runs in a folder of its own
        if asked[name] and Path(asked[name]).is_file():
            asked[name] = str(Path(asked[name]).resolve())
    return run_trace(asked, folder)


def run_trace(asked: dict[str, Any], folder: Path) -> int:
    """Run notebook 03 into a folder, draw its page, print its conclusion, and return the exit status.

    Args:
        asked: parameters of the notebook but ``out_dir``.
        folder: gets ``03_trace.ipynb``, ``03_trace.html`` and the logs.

    Raises:
        UsageError: there is no such model or prompt.
    """
    from parity_lib.night.job import NotebookJob, run_notebook
    from parity_lib.night.pages import banner_of, draw
    from parity_lib.night.plan import NOTEBOOKS
    from parity_lib.night.result import inspect_run, repair
    from parity_lib.pages.kit.scraps import read_records
    from parity_lib.trace.deployed import REPRODUCER
    from parity_lib.trace.reproducer.format import MANIFEST

    _check(asked)
    source = NOTEBOOKS / "03_trace.ipynb"
    html = folder / "03_trace.html"
    html.unlink(missing_ok=True)  # of an earlier trace
    parameters = {**asked, "out_dir": str(folder)}
    end = run_notebook(NotebookJob(source, folder / source.name, parameters, folder / "run.log", LIMIT_S))
    result = inspect_run(end)
    repair(end, result)
    page = draw(folder / source.name, html, banner_of(end, result), click.echo)
    if result.causes:
        return _broken(end, result.causes, page)
    found = read_records(folder / source.name)
    click.echo(f"{found['outcome']}: {found['sentence']}")
    for line in found["more"]:
        click.echo(f"  {line}")
    click.echo(f"page: {page}")
    if (folder / REPRODUCER / MANIFEST).is_file():
        click.echo(f"reproducer: {folder / REPRODUCER}; replay it with: parity replay {folder / REPRODUCER}")
    return {"PARITY": PARITY, "DIVERGED": DIVERGED}.get(found["outcome"], INCOMPLETE)


def _check(asked: dict[str, Any]) -> None:
    """Refuse an unknown model, prompt or stack before a kernel is started for it. Raises ``UsageError``."""
    from parity_lib.records.pins import load_pins
    from parity_lib.records.prompts import load_prompts

    if not Path(asked["model"]).is_file():
        load_pins().model(asked["model"], asked["quant"])
    load_prompts(asked["prompts"] or None).get(asked["prompt"])
    if asked.get("against"):
        load_pins().stack(asked["against"])


def _broken(end: NotebookEnd, causes: tuple[str, ...], page: Path | None) -> int:
    """Report why there is no trace: a usage error for a wrong argument, else incomplete."""
    for cause in causes:
        click.echo(f"INCOMPLETE: {cause}", err=True)
    click.echo(f"page: {page}; log: {end.job.log}", err=True)
    return 2 if any("UsageError" in cause for cause in causes) else INCOMPLETE
