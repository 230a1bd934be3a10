"""``parity models``: make, find and check the model files."""

from __future__ import annotations

from pathlib import Path

import click

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
    """Make the default models and their F32 twins (or only MODEL, QUANT); does nothing twice."""
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
        if pin.role != DEFAULT and status.state in ("not staged", "absent") and not everything:
            continue
        twin = "with its F32 twin" if status.twin else "no F32 twin yet"
        click.echo(
            f"{pin.id:20} {pin.quant:7} {pin.file.bytes / 1e6:9,.1f} MB  {status.state:10}  {twin}  {status.path}"
        )
        if status.types:
            click.echo("    " + ", ".join(f"{n} {kind}" for kind, n in status.types.items()))
        for one in status.equalities:
            same = f"{one.rms_over_std:.1e} of std over {one.positions} positions, limit {one.limit:g}"
            click.echo(f"    {one.step} of {one.source}: {same}")
        if status.note:
            click.echo(f"    {status.note}")
            worst = INCOMPLETE
    return worst
