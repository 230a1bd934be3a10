"""The finding about tile configurations: what this compiler keeps of one, with and without the pinned flags."""

from __future__ import annotations

import platform
import shlex
import subprocess
from pathlib import Path

import pytest

from parity_lib.engines.llamacpp.recipe import compiler_version, compilers
from parity_lib.records.pins import load_pins

SOURCE = Path(__file__).parents[3] / "docs" / "findings" / "tileconfig" / "tileconfig.cpp"
ROWS, COLUMNS = bytes([16] * 8), bytes([64, 0] * 8)  # of eight tiles, as the program stores them
FLAGS = "-DCMAKE_CXX_FLAGS="

X86 = platform.machine() == "x86_64"  # where a compiler knows tiles


def pinned_flags() -> list[str]:
    """Return the C++ flags of the target amx: CMake takes the last of several."""
    given = [arg for arg in load_pins().llama_cpp.build_args("amx") if arg.startswith(FLAGS)]
    return given[-1].removeprefix(FLAGS).split()


def kept(flags: list[str], folder: Path, optimise: str) -> tuple[bool, bool]:
    """Return whether the compiled program still has the rows, and the bytes per row."""
    out = folder / "config.o"
    command = [*shlex.split(compilers()[1]), optimise, "-mamx-tile", *flags, "-c", str(SOURCE), "-o", str(out)]
    subprocess.run(command, check=True)
    code = out.read_bytes()
    return ROWS in code, COLUMNS in code


@pytest.mark.slow
@pytest.mark.parametrize("optimise", ["-O2", "-O3"])
def test_the_pinned_flags_keep_the_whole_configuration(tmp_path: Path, optimise: str) -> None:
    assert {"-fno-tree-dse", "-fno-dse"} < set(pinned_flags())
    assert not X86 or kept(pinned_flags(), tmp_path, optimise) == (True, True)


@pytest.mark.slow
def test_gcc_12_loses_it_without_them(tmp_path: Path) -> None:
    flags = [flag for flag in pinned_flags() if "dse" not in flag]
    assert flags == ["-ffp-contract=off"]
    seen_with = X86 and " 12." in compiler_version()
    assert not seen_with or kept(flags, tmp_path, "-O3") == (False, False)


def test_only_the_target_amx_has_other_cxx_flags_than_the_rest() -> None:
    pins = load_pins().llama_cpp
    common = [arg for arg in pins.cmake_args if arg.startswith(FLAGS)]
    others = [arg for name, target in pins.targets.items() if name != "amx" for arg in target.cmake_args]
    assert common == ["-DCMAKE_CXX_FLAGS=-ffp-contract=off"]
    assert not any(arg.startswith(FLAGS) for arg in others)
