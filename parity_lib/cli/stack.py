"""``parity stack``: build the candidate on other dependencies, list what is built, show what a build is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from parity_lib.cli import options

if TYPE_CHECKING:
    from parity_lib.cell.steps import Cell, Reference
    from parity_lib.fork.diagnose import Without, WrongOp
    from parity_lib.fork.reader import TypeResult
    from parity_lib.fork.tiles import Tiles
    from parity_lib.numerics.bits import BitDifference
    from parity_lib.records.stack_pins import StackPin


OK, DIFFERS, INCOMPLETE = 0, 1, 3
TILES_EPILOG = "Exit status: 0 right and on AMX tiles; 1 wrong; 2 usage error; 3 AMX did not run, or not built here."
FORK_STACK, TILE_STACK = "spine", "spine-amx"  # whose extensions can call the fork's own functions by name
SOUND = 1e-5  # of a product, largest difference over its rms: f32 sums of 512 terms reach a fifth of it


@click.group(name="stack")
def group() -> None:
    """Build the candidate on other dependencies, and show what each build is."""


@group.command(name="build", epilog="Exit status: 0 built; 2 usage error; 3 no source, another source, or no build.")
@click.argument("stack")
@click.option(
    "--source",
    "from_",
    default="",
    envvar="PARITY_FORK_SOURCE",
    metavar="DIR|GIT",
    help="The fork: a checkout, a git directory, or what git clones. Default: $PARITY_FORK_SOURCE, or as last time.",
)
@click.option(
    "--faults",
    is_flag=True,
    help="Build the library in which faults can be seeded, for red controls; it is never judged.",
)
@click.option("--again", is_flag=True, help="Build although the build of these sources is there.")
@click.option("--relock", is_flag=True, help="Resolve the stack's Cargo.lock again, after a manifest was changed.")
def build_command(stack: str, from_: str, faults: bool, again: bool, relock: bool) -> int:
    """Build STACK from this checkout into the cache, unless that build exists."""
    from parity_lib.fork.build import build
    from parity_lib.records.pins import load_pins

    pin = load_pins().stack(stack)
    given = click.get_current_context().get_parameter_source("from_")
    if pin.source is None and given is click.core.ParameterSource.ENVIRONMENT:
        from_ = ""  # the variable is for the stacks that need it
    build(stack, from_, click.echo, faults=faults, again=again, relock=relock)
    return OK


@group.command(name="list")
def list_command() -> int:
    """Show each stack: built, or NOT_RUN and what to do about it."""
    from parity_lib.records.pins import load_pins

    for pin in load_pins().stacks.values():
        state, words = build_state(pin)
        click.echo(f"{pin.id:10} {state:6} {words}")
        click.echo(f"{'':10} {'':6} {pin.what}")
    return OK


@group.command(
    name="prove", epilog="Exit status: 0 the build multiplies as it should; 1 it does not; 3 not built here."
)
@click.argument("stack")
def prove_command(stack: str) -> int:
    """Show the build of STACK and one of its products: the distance to float64 and the digest of its bits."""
    from parity_lib.engines.worker.client import Worker
    from parity_lib.records.pins import load_pins

    pin = load_pins().stack(stack)
    state, words = build_state(pin)
    click.echo(f"{pin.id}: {state}: {words}")
    if state != "built":
        return INCOMPLETE
    with Worker("parity_lib.fork.probe:StackProbe", {"stack": stack}, timeout=120) as probe:
        isa, product = probe.call("isa"), probe.call("multiply")
    click.echo(f"  kernel that it would choose: {isa['expected_kernel']}")
    click.echo(f"  observed: {isa['observed']}, {isa['reason']}")
    distance = f"{product['error']:.2g} from float64, limit {SOUND:g}"
    click.echo(f"  product {product['shape']}: {distance}; bits {product['sha256'][:16]}")
    return OK if product["error"] < SOUND else DIFFERS


def build_state(pin: StackPin) -> tuple[str, str]:
    """Return ("built" or "NOT_RUN", what the build is or why there is none)."""
    from parity_lib.base.errors import EngineError, PinError
    from parity_lib.engines.burn import stacks
    from parity_lib.engines.burn.build_info import CRATES_IO, load

    try:
        if pin.id == CRATES_IO:
            _, build = load(CRATES_IO)
            return "built", f"lock {build.lock_sha256[:12]}, {build.rustc}, installed by `make setup`"
        return "built", stacks.find(pin).words()
    except (EngineError, PinError) as error:
        return "NOT_RUN", str(error)


@group.command(name="compare", epilog="Exit status: 0 every bit equal; 1 not; 2 usage error; 3 a stack is not built.")
@click.argument("first")
@click.argument("second")
@click.argument("model", default="")
@click.argument("quant", default="")
@click.option("--plan", default="", metavar="PLAN", help="Instead of MODEL: every model and quant of a plan.")
@click.option("--plain", default="", metavar="OPS", help="Ops of SECOND that plain twins replace: soft_max,swiglu,..")
@options.compute
@options.isa
@options.prompts
@options.threads
def compare_command(
    first: str,
    second: str,
    model: str,
    quant: str,
    plan: str,
    plain: str,
    compute: str,
    isa: str,
    prompts: str,
    n_threads: int,
) -> int:
    """Compare all logits of two stacks on the same tokens, bit by bit: FIRST and SECOND under burn on MODEL QUANT."""
    from parity_lib.fork.compare import Side, compare_sides

    if bool(model) == bool(plan):
        raise click.UsageError("give MODEL QUANT, or --plan PLAN")
    ask = {"compute": compute, "isa": isa, "prompts": prompts, "n_threads": n_threads}
    other = Side(second, tuple(filter(None, plain.split(","))))
    status = OK
    for name, kind in _models_of(plan) if plan else [(model, quant)]:
        with _opened(first, model=name, quant=kind, **ask) as (cell, reference):
            [(side, found)] = compare_sides(cell, reference, Side(first), [other])
        click.echo(f"{first} against {side} on {cell.id.model} {cell.id.quant} {compute}: {bits_words(found)}")
        status = status if found.equal else DIFFERS
    return status


def _models_of(plan: str) -> list[tuple[str, str]]:
    """Return the models and quants of a plan that this machine can make or has, each once."""
    from parity_lib.models.cache import models_dir
    from parity_lib.models.recipes import command_for
    from parity_lib.night.plan import load_plan, plan_path
    from parity_lib.records.pins import ON_REQUEST, load_pins

    pins, found = load_pins(), []
    for name, quant in dict.fromkeys((cell.model, cell.quant) for cell in load_plan(plan_path(plan)).cells):
        pin = pins.model(name, quant)
        if pin.recipe.kind in ON_REQUEST and not (models_dir() / pin.file_name).exists():
            click.echo(f"left out: {name} {quant} is not on this machine; next: {command_for(pin)}")
        else:
            found.append((name, quant))
    return found


@contextmanager
def _opened(stack: str, **ask: Any) -> Iterator[tuple[Cell, Reference]]:  # noqa: ANN401 - fields of a request
    """Yield a cell in a folder that goes away, and what llama.cpp generated for it."""
    from parity_lib.cell.request import let_go
    from parity_lib.cell.steps import capture_reference, check_pins, open_cell

    with tempfile.TemporaryDirectory(prefix="parity-stack-") as folder:
        cell = open_cell(**ask, stack=stack, out_dir=Path(folder) / "cell")
        try:
            check_pins(cell)
            yield cell, capture_reference(cell)
        finally:
            let_go(cell.out_dir)


@group.command(name="ops", epilog="Exit status: 0 every op sound; 1 one is not; 2 usage error; 3 not built here.")
@click.argument("stack")
def ops_command(stack: str) -> int:
    """Run single ops of STACK on hard inputs: distance to float64, and whether a value depends on its place."""
    from parity_lib.engines.worker.client import Worker
    from parity_lib.fork.op_sweep import LIMIT
    from parity_lib.records.pins import load_pins

    state, words = build_state(load_pins().stack(stack))
    if state != "built":
        click.echo(f"{stack}: {state}: {words}")
        return INCOMPLETE
    with Worker("parity_lib.fork.op_sweep:StackOps", {"stack": stack}, timeout=120) as engine:
        cases = engine.call("sweep")
    for case in cases:
        place = {None: "", True: "; same bits at every place", False: "; bits depend on the place"}[case.same_bits]
        click.echo(
            f"{'ok   ' if case.sound else 'WRONG'} {case.op:9} {case.case:32} {case.share:.2g}{place}; {case.worst}"
        )
    wrong = sorted({case.op for case in cases if not case.sound})
    click.echo(f"{stack}: {', '.join(wrong) or 'no op'} wrong, limit {LIMIT:g} of a result")
    return DIFFERS if wrong else OK


@group.command(name="diagnose", epilog="Exit status: 0 no op is wrong; 1 one is; 2 usage error; 3 not built here.")
@click.argument("stack")
@options.model
@options.prompt
@click.option("--ops-only", is_flag=True, help="Leave out the model with its ops replaced one by one.")
@options.isa
@options.prompts
@options.threads
def diagnose_command(
    stack: str, model: str, quant: str, prompt: str, ops_only: bool, isa: str, prompts: str, n_threads: int
) -> int:
    """Name the ops of STACK that are wrong on MODEL QUANT, with layer and inputs, and show the model without each."""
    from parity_lib.cell.place import find_place
    from parity_lib.fork.diagnose import replay_ops, without_ops

    ask = {"model": model, "quant": quant, "isa": isa, "prompts": prompts, "n_threads": n_threads}
    with _opened(stack, **ask) as (cell, reference):
        number = cell.suite.get(prompt).idx
        last = len(reference.sequences[number]) - len(reference.prompts[number])
        place = find_place(cell, reference, prompt, last)
        found = replay_ops(cell, stack, place)
        click.echo(
            f"{stack} on {cell.id.model} {cell.id.quant}, prompt {number} ({place.prompt}), positions {place.first} to "
            f"{place.row}: {found.n_ops:,} ops on llama.cpp's own inputs, {len(found.wrong)} kinds of them wrong; "
            f"scores down to {found.deepest:.1f} below their row's largest"
        )
        for op in found.wrong:
            for line in op_lines(op):
                click.echo(line)
        twins = list(dict.fromkeys(op.twin for op in found.wrong if op.twin))
        if found.wrong and not ops_only:
            click.echo("the whole model, with plain twins in the place of what is wrong:")
            for without in without_ops(cell, reference, stack, twins):
                click.echo(without_line(without))
    return DIFFERS if found.wrong else OK


@group.command(name="tiles", epilog=TILES_EPILOG)
@options.model
@options.prompt
@options.isa
@options.prompts
@options.threads
@click.option("--repaired", is_flag=True, help="Use the stack spine-amx, whose AMX is repaired, in place of spine.")
def tiles_command(model: str, quant: str, prompt: str, isa: str, prompts: str, n_threads: int, repaired: bool) -> int:
    """Call the fork's BF16 tile kernel for every weight product of MODEL QUANT, and show whether AMX ran."""
    from parity_lib.cell.place import find_place
    from parity_lib.fork.tile_engine import KERNEL
    from parity_lib.fork.tiles import replay_tiles

    stack = TILE_STACK if repaired else FORK_STACK
    ask = {"model": model, "quant": quant, "isa": isa, "prompts": prompts, "n_threads": n_threads}
    with _opened(stack, **ask) as (cell, reference):
        number = cell.suite.get(prompt).idx
        place = find_place(cell, reference, prompt, len(reference.sequences[number]) - len(reference.prompts[number]))
        found = replay_tiles(cell, stack, place)
        click.echo(f"{KERNEL} on {cell.id.model} {cell.id.quant}, prompt {number} ({place.prompt}), BF16 twin:")
    for line in tiles_lines(found):
        click.echo(line)
    return DIFFERS if found.wrong else OK if found.amx else INCOMPLETE


@group.command(name="reader", epilog="Exit status: 0 every tensor equal; 1 not; 2 usage error; 3 not built here.")
@options.model
def reader_command(model: str, quant: str) -> int:
    """Read every tensor of MODEL QUANT with the fork's own GGUF reader, and compare it bit by bit."""
    from parity_lib.fork.reader import compare_reader
    from parity_lib.models.ensure import ensure
    from parity_lib.records.pins import load_pins

    path = Path(model) if Path(model).is_file() else ensure(model, quant, load_pins())
    results = compare_reader(path, FORK_STACK)
    for result in results:
        click.echo(reader_line(result))
    return OK if all(result.right for result in results) else DIFFERS


def bits_words(found: BitDifference) -> str:
    """Return a comparison in a sentence."""
    total = f"{found.n_rows:,} positions x {found.n_vocab:,} logits"
    if found.equal:
        return f"all bits equal, {total}"
    words = f"{found.n_rows - found.equal_rows:,} of {total} differ in bits"
    words += f" ({found.n_rows * found.n_vocab - found.equal_logits:,} logits)"
    words += f"; rms {found.rms_over_std:.3g} of std, largest {found.max_abs:.3g}"
    words += f"; top-1 equal at {found.same_top1:,} positions"
    if any(found.nonfinite):
        words += f"; not finite {found.nonfinite[0]:,} against {found.nonfinite[1]:,} logits"
    part = found.part
    if part is not None:
        words += f"; first at prompt {part.position.prompt_idx}, token {part.position.token_idx}, id {part.token}:"
        words += f" {part.first:.7g} against {part.second:.7g}"
    return words


def op_lines(op: WrongOp) -> list[str]:
    """Return what is wrong with one kind of op, in two or three lines."""
    first, worst = op.first, op.worst
    share = f"{op.n_wrong} of {op.n_all} over their limit"
    there = f"NMSE {worst.nmse:.2g}, there {worst.position_nmse:.2g}, largest difference {worst.max_abs:.3g}"
    lines = [
        f"WRONG {op.site} ({op.op}): {share}, first {first.site} in {first.phase}, NMSE {first.nmse:.2g}",
        f"      worst {worst.site}, position {worst.position}: {there}",
    ]
    return lines + ([f"      its inputs there: {op.inputs}"] if op.inputs else [])


def without_line(without: Without) -> str:
    """Return the model with some ops replaced, in a line."""
    rung, bits = without.twin, without.bits
    words = f"rms {bits.rms_over_std:.2g} of std from crates-io, top-1 equal at {bits.same_top1:,} of {bits.n_rows:,}"
    if bits.nonfinite[1]:
        words += f", {bits.nonfinite[1]:,} logits not finite"
    if rung is None or rung.worst is None or rung.limit is None:
        return f"  {without.side}: {words}"
    return f"  {without.side}: T4 {rung.outcome}, worst {rung.worst:.3g} of limit {rung.limit:.3g} {rung.unit}; {words}"


def tiles_lines(found: Tiles) -> list[str]:
    """Return how the fork's BF16 kernel did, and which path it took."""
    lines = []
    for words, errors in (("rounded to nearest even", found.nearest), ("rounded by the fork's conversion", found.own)):
        over = sum(not error.share <= 1 for error in errors)
        worst = max(errors, key=lambda error: error.share)
        lines.append(
            f"  activations {words}: {over} of {len(errors)} products over their limit; worst {worst.site}, "
            f"{worst.phase}: NMSE {worst.nmse:.2g}, {worst.share:.2g} of its limit"
        )
    path = "AMX tiles by its own dispatch, not proven" if found.amx else "its fallback: AMX did not run"
    lines.append(f"  path: {path}")
    lines += [f"    {line.strip()}" for line in found.report.splitlines() if line.strip()]
    return lines


def reader_line(result: TypeResult) -> str:
    """Return how the fork's reader did on the tensors of one type."""
    head = (
        f"{'ok   ' if result.right else 'WRONG'} {result.kind:5} {result.n_equal} of {result.n_tensors} tensors equal"
    )
    if result.n_values:
        share = result.same_values / result.n_values
        head += f"; {share:.1%} of {result.n_values:,} values, cosine {result.cosine:.4f}"
    return head + (f"; refused: {result.refused}" if result.refused else "")
