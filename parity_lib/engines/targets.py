"""Chooses the ISA target that each engine runs: the widest that it has and that was asked for.

A cell asks for one target, and is named by it. A target that a side cannot run is a result of rung T7 and keeps
no other rung from being judged: on `amx`, llama.cpp on tiles is compared with whatever burn has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import PinError
from parity_lib.base.names import Isa
from parity_lib.engines import machine
from parity_lib.numerics.isa_samples import WIDTH
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP
from parity_lib.records.pins import LlamaCppPin, Pins
from parity_lib.records.stack_pins import StackPin

BURN_FLAGS: Mapping[Isa, tuple[str, ...]] = {Isa.AVX2: ("avx2", "fma"), Isa.AVX512: ("avx512f",), Isa.NEON: ("asimd",)}
"""The kernels among which burn's f32 matmul chooses by the CPU, and the flags that each needs. None has tiles."""
TILES = ("amx_tile", "amx_bf16")  # what a stack of tiles needs
X86 = (Isa.AVX2, Isa.AVX512, Isa.AMX)  # each has the instructions of those before it


@dataclass(frozen=True, slots=True)
class Side:
    """What one engine is asked to run in a cell."""

    isa: str  # the ISA target
    lacks: str = ""  # why it is not the cell's, in words; empty where it is


@dataclass(frozen=True, slots=True)
class Sides:
    """What both engines are asked to run in a cell."""

    reference: Side
    candidate: Side

    def by_engine(self) -> tuple[tuple[str, Side], tuple[str, Side]]:
        """Return each side with its engine's name."""
        return (LLAMA_CPP, self.reference), (BURN, self.candidate)


def sides(pins: Pins, stack: str, isa: str, cpuinfo: Path = machine.CPUINFO) -> Sides:
    """Return what each engine runs on this machine when a cell asks for an ISA target.

    Raises:
        UsageError: the stack or the target is unknown.
        PinError: neither engine can run the target here.
    """
    found = Sides(reference_side(pins.llama_cpp, isa, cpuinfo), candidate_side(pins.stack(stack), isa, cpuinfo))
    if found.reference.lacks and found.candidate.lacks:
        raise PinError(
            "this machine lacks the instructions of the ISA target",
            place=f"isa {isa}",
            expected=f"an engine that can run {isa} here",
            found=f"llama.cpp: {found.reference.lacks}; burn: {found.candidate.lacks}",
            next_step="run these cells on a machine of that ISA target; `parity doctor` lists those of this one",
        )
    return found


def reference_side(pin: LlamaCppPin, isa: str, cpuinfo: Path = machine.CPUINFO) -> Side:
    """Return the widest pinned build of llama.cpp that this CPU can run and that is no wider than ``isa``.

    Raises:
        UsageError: no such target is pinned.
    """
    missing = machine.missing_flags(pin.target(isa).cpu_flags, cpuinfo)
    if not missing:
        return Side(isa)
    fitting = [t for t in pin.targets if not machine.missing_flags(pin.target(t).cpu_flags, cpuinfo)]
    return Side(_widest(fitting, isa) or isa, f"this CPU lacks {', '.join(missing)}, which its build uses")


def candidate_side(stack: StackPin, isa: str, cpuinfo: Path = machine.CPUINFO) -> Side:
    """Return the widest kernel that a stack of burn has on this CPU and that is no wider than ``isa``.

    A stack chooses its kernel by the CPU. One that is asked for less than it would choose is asked all the same, and
    its samples show other instructions.
    """
    own = own_target(stack, cpuinfo)
    if own == isa or _is_within(isa, own):
        return Side(isa)
    fallback = own if _is_within(own, isa) else isa
    missing = machine.missing_flags(BURN_FLAGS.get(Isa(isa), ()), cpuinfo)
    if missing:
        return Side(fallback, f"this CPU lacks {', '.join(missing)}")
    if stack.isa:
        return Side(fallback, f"the stack {stack.id} has kernels of {stack.isa} alone")
    return Side(fallback, "it has no kernel of tiles")


def own_target(stack: StackPin, cpuinfo: Path = machine.CPUINFO) -> str:
    """Return the ISA target whose kernel a stack chooses on this CPU.

    Raises:
        PinError: this CPU can run none of its kernels.
    """
    flags = {Isa(stack.isa): _needed(stack.isa)} if stack.isa else BURN_FLAGS
    own = max((t for t, f in flags.items() if not machine.missing_flags(f, cpuinfo)), key=WIDTH.__getitem__, default="")
    if own:
        return str(own)
    raise PinError(
        "this machine lacks the instructions of burn's kernels",
        place=f"stack {stack.id}",
        expected=" or ".join(", ".join(needed) for needed in flags.values()),
        found=f"a CPU without {', '.join(machine.missing_flags(sorted(set().union(*flags.values())), cpuinfo))}",
        next_step="run on a machine that has them; `parity doctor` lists the ISA targets of this one",
    )


def host(pins: Pins, stack: str, cpuinfo: Path = machine.CPUINFO) -> str:
    """Return the ISA target of a cell that asks for the host's: the widest that either engine runs by default.

    llama.cpp's default is what set-up installs, which never has tiles: they are asked for by name, or by a stack.

    Raises:
        UsageError: the stack is unknown.
        PinError: this CPU can run no kernel of the stack.
    """
    pin = pins.stack(stack)
    if pin.isa and machine.missing_flags(_needed(pin.isa), cpuinfo):
        return pin.isa  # refused by its name where it is asked for
    installed, own = machine.widest_target(pins.llama_cpp, cpuinfo), own_target(pin, cpuinfo)
    return own if installed is None or _is_within(installed, own) else str(installed)


def _needed(isa: str) -> tuple[str, ...]:
    """Return the CPU flags that a stack needs which is built for one ISA target alone."""
    return BURN_FLAGS.get(Isa(isa), TILES)


def _widest(targets: Sequence[str], limit: str) -> str:
    """Return the widest of some targets that is no wider than ``limit``; "" if there is none."""
    return max((t for t in targets if _is_within(t, limit)), key=WIDTH.__getitem__, default="")


def _is_within(target: str, limit: str) -> bool:
    """Return whether a CPU of target ``limit`` runs ``target`` too."""
    return target == limit or ({target, limit} <= set(X86) and WIDTH[target] < WIDTH[limit])
