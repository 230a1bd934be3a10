"""``parity isa``: build an ISA target of llama.cpp, sample what runs, split a delta by engine and target."""

from __future__ import annotations

from pathlib import Path

import click

from parity_lib.cli import options

EPILOG = "Exit status: 0 proven, built or split; 1 other instructions ran; 2 usage error; 3 unproven, or not possible."


@click.group(name="isa", epilog=EPILOG)
def command() -> None:
    """Instruction sets: build an ISA target of llama.cpp, sample what runs, split a delta by engine and ISA target."""


@command.command(epilog=EPILOG)
@click.argument("targets", nargs=-1)
@click.option(
    "--threads",
    type=click.IntRange(1, options.MOST_THREADS),
    default=2,
    show_default=True,
    metavar="N",
    help="Threads of each engine.",
)
def prove(targets: tuple[str, ...], threads: int) -> int:
    """Run both engines briefly on each of TARGETS (default: all) and show which instructions were sampled.

    Each engine is judged apart. A target that it cannot run here is a failure only where it was named.
    """
    from parity_lib.cell.isa_machine import prove_machine
    from parity_lib.judge.t7_isa import side_word, words
    from parity_lib.records.pins import load_pins

    pins = load_pins()
    for target in targets:
        pins.llama_cpp.target(target)
    proofs = prove_machine(pins, targets, threads)
    for proof in proofs:
        evidence = proof.evidence
        click.echo(
            f"{side_word(proof):18} {evidence.engine:9} requested={evidence.requested} observed={proof.observed}"
            f" run={evidence.run!r}: {words(proof)}"
        )
    if any(proof.contradicted for proof in proofs):
        return 1
    wanted = [p for p in proofs if targets or not p.evidence.impossible]
    return 0 if all(p.proven for p in wanted) else 3


@command.command(epilog=EPILOG)
@options.model
@click.option(
    "--targets", default="avx512,avx2", show_default=True, help="The two ISA targets, the reference's own first."
)
@options.prompts
@options.threads
@options.out("the record and the logs")
def split(model: str, quant: str, targets: str, prompts: str, n_threads: int, out: Path | None) -> int:
    """Split a delta into the parts of the engine, of the instruction set, and of both together.

    Both engines score the same tokens on both ISA targets of this machine, on MODEL's file and on its F32 twin.
    """
    from parity_lib.base.files import write_atomic
    from parity_lib.base.json_text import dump_page
    from parity_lib.cell.isa_split import measure_split

    folder = out or options.run_folder(model, quant, "isa-split")
    found = measure_split(model, quant, targets.split(","), prompts=prompts, n_threads=n_threads, out_dir=folder)
    write_atomic(folder / "isa_split.json", dump_page(found).encode())
    for line in found.lines():
        click.echo(line)
    click.echo(f"record: {folder / 'isa_split.json'}")
    return 3 if found.absent else 0


@command.command(epilog=EPILOG)
@click.argument("target")
def build(target: str) -> int:
    """Build llama.cpp for TARGET into the cache, beside the installed one; about 5 minutes on 2 cores, once.

    Cells of that target load the build from the cache. It is tried first: a product of each weight type in a worker
    process; a build that crashes is refused, with the instruction that it stopped at. A target that this CPU lacks is
    built, and the output says that it was not tried.
    """
    from parity_lib.base.surroundings import cache_dir
    from parity_lib.engines.llamacpp.build import ensure_wheel
    from parity_lib.engines.llamacpp.isa_build import try_wheel
    from parity_lib.engines.llamacpp.recipe import compiler_version, recipe_for
    from parity_lib.records.pins import load_pins

    pin = load_pins().llama_cpp
    recipe = recipe_for(pin, pin.target(target).isa, compiler_version())
    wheel = ensure_wheel(recipe, cache_dir(), lambda line: click.echo(f"reference: {line}", err=True))
    click.echo(wheel)
    click.echo(f"tried: {try_wheel(wheel)} products, each right")
    return 0
