"""``parity isa``: build a leg of llama.cpp, prove which instructions run, split a delta by engine and leg."""

from __future__ import annotations

import click

EPILOG = "Exit status: 0 proven, built or split; 1 other instructions ran; 2 usage error; 3 unproven, or not possible."


@click.group(name="isa", epilog=EPILOG)
def command() -> None:
    """Instruction sets: build a leg of llama.cpp, prove what runs, split a delta by engine and leg."""


@command.command(epilog=EPILOG)
@click.argument("leg")
def build(leg: str) -> int:
    """Build llama.cpp for LEG into the cache, beside the installed one; about 5 minutes on 2 cores, once.

    Nothing is installed: a cell of that leg finds it there. A leg that this CPU lacks can be built and not run.
    """
    from parity_lib.model_file import cache_dir
    from parity_lib.pins import load_pins
    from parity_lib.reference_build import ensure_wheel
    from parity_lib.reference_recipe import compiler_version, recipe_for

    pin = load_pins().llama_cpp
    recipe = recipe_for(pin, pin.leg(leg).isa, compiler_version())
    wheel = ensure_wheel(recipe, cache_dir(), lambda line: click.echo(f"reference: {line}", err=True))
    click.echo(wheel)
    return 0
