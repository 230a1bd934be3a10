"""``parity replay``: recompute both sides of a failure reproducer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from parity_lib.trace.reproducer.replay import ReproducerReplay, Side

AGREE, DIFFER, MISSING = 0, 1, 3
EPILOG = (
    "Exit status: 0 both sides agree; 1 they differ; 2 usage error; 3 the reproducer cannot be read, or a side could "
    "not be recomputed here."
)
SHOWN = 3  # numbers of a value


@click.command(name="replay", epilog=EPILOG)
@click.argument("reproducer", type=click.Path(path_type=Path))
@click.option("--without-fault", is_flag=True, help="Leave out the fault that was seeded into the candidate.")
def command(reproducer: Path, without_fault: bool) -> int:
    """Recompute the op of a REPRODUCER folder with llama.cpp and with burn, without the model file."""
    from parity_lib.trace.reproducer.replay import replay_reproducer

    replayed = replay_reproducer(reproducer, sound=without_fault)
    for line in lines(replayed):
        click.echo(line)
    if replayed.agrees is None:
        return MISSING
    return AGREE if replayed.agrees else DIFFER


def lines(replayed: ReproducerReplay) -> list[str]:
    """Return the result of a replay as lines; the last begins with AGREE, DIFFER or UNDECIDED."""
    reproducer = replayed.reproducer
    at, op, limit = reproducer.at, reproducer.op, reproducer.limit
    head = f" of head {at.head}" if op.table.inner else ""
    policy = f"{at.settings}, {at.phase}, burn's policy {op.compute}"
    weight = "" if op.weight is None else f", {op.weight.type} {op.weight.tensor}"
    other = "" if op.other_weight is None else "; the candidate's file has other bytes in these rows"
    said = [
        f"{at.site} ({at.op}{weight}) of {reproducer.cell.model} {reproducer.cell.quant}, {policy}",
        f"prompt {at.prompt_idx}, token {at.token_idx} (position {at.position}), channel {at.channel}{head}",
        f"kept: {reproducer.step}, {len(op.judged)} of {len(reproducer.reference)} numbers judged{other}",
        f"made on {reproducer.architecture} ({reproducer.machine_class}), {reproducer.created_at}",
    ]
    if reproducer.asked_fault:
        left = "" if replayed.fault else ", left out" if reproducer.fault else ", not in this op"
        said.append(f"seeded fault: {reproducer.asked_fault}{left}")
    said += _side("llama.cpp", replayed, replayed.reference)
    said += _side("burn", replayed, replayed.candidate)
    said.append(f"float64    {_numbers(replayed, replayed.oracle)}")
    now = "not known" if replayed.now is None else f"{replayed.now:.6g}"
    said.append(
        f"mean square difference over llama.cpp's mean square: recorded {replayed.recorded:.6g}, recomputed {now}, "
        f"limit {limit.value:g}"
    )
    return [*said, _verdict(replayed)]


def _side(name: str, replayed: ReproducerReplay, side: Side) -> list[str]:
    found = [f"{name:10} {_numbers(replayed, side.recorded)} recorded"]
    if side.now is None:
        return [*found, f"{name:10} could not be recomputed here: {side.why}"]
    same = "the same bits" if side.is_same else "other bits"
    return [*found, f"{name:10} {_numbers(replayed, side.now)} recomputed, {same}"]


def _numbers(replayed: ReproducerReplay, values: object) -> str:
    import numpy as np

    judged = list(replayed.reproducer.op.judged)
    shown = [f"{value:.9g}" for value in np.asarray(values)[judged[:SHOWN]]]
    return ", ".join(shown) + (" .." if len(judged) > SHOWN else "")


def _verdict(replayed: ReproducerReplay) -> str:
    reference, candidate, agrees = replayed.reference.now, replayed.candidate.now, replayed.agrees
    if reference is None or candidate is None:
        missing = [name for name, value in (("llama.cpp", reference), ("burn", candidate)) if value is None]
        return f"UNDECIDED: {' and '.join(missing)} could not be recomputed on this machine"
    if agrees is None and not replayed.reference_stands:
        return (
            "UNDECIDED: llama.cpp does not give its recorded value again, although it is the same commit: what it "
            "computed then is not what it computes here"
        )
    if agrees is None:
        return (
            "UNDECIDED: this op by itself agrees, but it did so when the reproducer was made: what was over its limit "
            "in the recorded run does not show in it"
        )
    if agrees:
        return "AGREE"
    theirs, ours = (replayed.distance(replayed.oracle, value) for value in (reference, candidate))
    nearer = "llama.cpp is" if theirs < ours else "burn is" if ours < theirs else "neither is"
    return f"DIFFER: {nearer} nearer to float64 (llama.cpp {theirs:.3g}, burn {ours:.3g} in the same unit)"
