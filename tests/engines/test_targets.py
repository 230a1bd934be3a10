"""What each engine runs when a cell asks for an ISA target, on CPUs of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parity_lib.base.errors import PinError, UsageError
from parity_lib.engines import targets
from parity_lib.engines.targets import Side
from parity_lib.records.pins import load_pins

PINS = load_pins()
AVX2 = "sse4_2 avx f16c bmi2 fma avx2"
ICE_LAKE = f"{AVX2} avx512f avx512cd avx512vl avx512dq avx512bw avx512vbmi avx512_vnni"
SAPPHIRE = f"{ICE_LAKE} avx512_bf16 amx_tile amx_int8 amx_bf16"
NO_BF16 = "this CPU lacks avx512_bf16, which its build uses"
NO_TILES = "it has no kernel of tiles"


def cpu(folder: Path, flags: str, word: str = "flags") -> Path:
    path = folder / f"cpuinfo-{len(flags)}"  # what a path says is read once
    path.write_text(f"processor\t: 0\nvendor_id\t: GenuineIntel\n{word}\t: {flags}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "stack", "isa", "reference", "candidate"),
    [
        (SAPPHIRE, "crates-io", "amx", Side("amx"), Side("avx512", NO_TILES)),
        (SAPPHIRE, "crates-io", "avx512", Side("avx512"), Side("avx512")),
        (SAPPHIRE, "avx2", "avx512", Side("avx512"), Side("avx2", "the stack avx2 has kernels of avx2 alone")),
        (SAPPHIRE, "crates-io", "avx2", Side("avx2"), Side("avx2")),  # it will run avx512, and T7 will see it
        (ICE_LAKE, "crates-io", "avx512", Side("avx2", NO_BF16), Side("avx512")),
        (ICE_LAKE, "avx2", "avx2", Side("avx2"), Side("avx2")),
        (AVX2, "crates-io", "avx2", Side("avx2"), Side("avx2")),
    ],
)
def test_each_engine_runs_the_widest_that_it_has_and_that_was_asked_for(
    tmp_path: Path, flags: str, stack: str, isa: str, reference: Side, candidate: Side
) -> None:
    found = targets.sides(PINS, stack, isa, cpu(tmp_path, flags))
    assert (found.reference, found.candidate) == (reference, candidate)


@pytest.mark.parametrize(
    ("flags", "isa"), [(AVX2, "avx512"), (ICE_LAKE, "amx"), (SAPPHIRE, "neon"), ("asimd asimddp fphp asimdhp", "avx2")]
)
def test_a_target_that_neither_engine_has_is_refused_with_both_reasons(tmp_path: Path, flags: str, isa: str) -> None:
    path = cpu(tmp_path, flags, "Features" if "asimd" in flags else "flags")
    with pytest.raises(PinError, match=rf"isa {isa}: this machine lacks .*llama\.cpp: .*; burn: "):
        targets.sides(PINS, "crates-io", isa, path)


@pytest.mark.parametrize(
    ("flags", "stack", "isa"),
    [
        (SAPPHIRE, "crates-io", "avx512"),  # tiles only where they are asked for by name
        (ICE_LAKE, "crates-io", "avx512"),
        (ICE_LAKE, "avx2", "avx2"),
        (AVX2, "crates-io", "avx2"),
    ],
)
def test_a_host_s_target_is_the_widest_of_either_engine(tmp_path: Path, flags: str, stack: str, isa: str) -> None:
    assert targets.host(PINS, stack, cpu(tmp_path, flags)) == isa


def test_a_stack_of_tiles_is_asked_for_them_only_where_the_cpu_has_them(tmp_path: Path) -> None:
    stack = PINS.stack("spine-amx")
    assert targets.candidate_side(stack, "amx", cpu(tmp_path, SAPPHIRE)) == Side("amx")
    with pytest.raises(PinError, match=r"burn's kernels.*found a CPU without amx_bf16, amx_tile"):
        targets.candidate_side(stack, "amx", cpu(tmp_path, ICE_LAKE))
    with pytest.raises(PinError, match=r"burn's kernels.*found a CPU without amx_bf16, amx_tile"):
        targets.sides(PINS, stack.id, "amx", cpu(tmp_path, AVX2))
    assert {targets.host(PINS, stack.id, cpu(tmp_path, flags)) for flags in (AVX2, ICE_LAKE, SAPPHIRE)} == {"amx"}


def test_the_machine_of_the_recorded_evidence_runs_tiles_on_both_sides(tmp_path: Path) -> None:
    recorded = json.loads((Path(__file__).parents[1] / "fixtures" / "amx.json").read_text())["cpu_flags"]
    found = targets.sides(PINS, "spine-amx", "amx", cpu(tmp_path, recorded))
    assert (found.reference, found.candidate) == (Side("amx"), Side("amx"))


def test_an_unknown_target_or_stack_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown ISA target"):
        targets.sides(PINS, "crates-io", "avx1024")
    with pytest.raises(UsageError, match="unknown stack"):
        targets.sides(PINS, "crates", "avx2")
