"""The options that several commands have, each written once, with the range of its numbers.

A number out of its range is a usage error, named by its option.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from parity_lib.base.errors import UsageError
from parity_lib.records.pins import load_pins
from parity_lib.records.stack_pins import MODULES, OPS

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

MOST_THREADS = 512  # GGML_MAX_N_THREADS: ggml ends its process beyond it

isa = click.option(
    "--isa", default="host", show_default=True, help="ISA target: avx2, avx512, amx, neon, or 'host': the widest here."
)
stack = click.option(
    "--stack",
    default="crates-io",
    show_default=True,
    help="Which build of burn the candidate uses (see `parity stack list`).",
)
implementation = click.option(
    "--implementation",
    type=click.Choice([OPS, MODULES]),
    default=OPS,
    show_default=True,
    help="How the candidate calls burn: op by op, or through burn-nn's modules, which the stack `modules` has.",
)
compute = click.option(
    "--compute", default="f32", show_default=True, help="Arithmetic of the candidate's matmuls: f32, bf16 or ggml."
)
fault = click.option("--fault", default="", metavar="NAME", help="Seed a fault into the candidate, as a red control.")
prompts = click.option(
    "--prompts", default="", metavar="FILE", help="Your own prompts file, shaped like fixtures/prompts.toml."
)
prompt = click.option("--prompt", default="0", show_default=True, metavar="ID", help="Number or name of the prompt.")
threads = click.option(
    "--threads",
    "n_threads",
    type=click.IntRange(0, MOST_THREADS),
    default=0,
    metavar="N",
    help="Threads of each engine; 0 is every core.",
)


def model(command: Command) -> Command:
    """Add the arguments MODEL and QUANT, the second one optional."""
    return click.argument("model")(click.argument("quant", default="")(command))


def out(content: str) -> Decorator:
    """Return the option of the folder that gets ``content``; without it a command uses ``run_folder``."""
    return click.option(
        "--out", type=click.Path(path_type=Path), default=None, metavar="DIR", help=f"Folder of {content}."
    )


def only(things: str) -> Decorator:
    """Return the option that chooses among things by their names."""
    return click.option("--only", default="", metavar="GLOB", help=f"Only the {things} whose name matches.")


def write(fixture: str) -> Decorator:
    """Return the option that puts what was measured into a fixture."""
    return click.option("--write", is_flag=True, help=f"Write the result to fixtures/{fixture}, replacing the old one.")


def stack_of(stack: str, implementation: str) -> str:
    """Return the stack that has an implementation: the one that was asked for, or in the default's place its own.

    Raises:
        UsageError: the stack that was asked for has another implementation.
    """
    stacks = load_pins().stacks.values()
    if stack == "crates-io" and implementation != OPS:
        return next(pin.id for pin in stacks if pin.implementation == implementation)
    if implementation != OPS and load_pins().stack(stack).implementation != implementation:
        fitting = ", ".join(pin.id for pin in stacks if pin.implementation == implementation)
        raise UsageError(
            "the stack has another implementation",
            place=f"--implementation {implementation}",
            expected=fitting,
            found=stack,
        )
    return stack


def run_folder(model: str, *parts: str) -> Path:
    """Return the default output folder of a run: ``reports/runs/<time>-<model>-<parts>``."""
    name = "-".join(part for part in (Path(model).stem, *parts) if part)
    root = Path(__file__).resolve().parents[2] / "reports" / "runs"
    return root / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
