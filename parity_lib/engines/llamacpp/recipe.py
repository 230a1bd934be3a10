"""What decides the reference's libraries: version, flags of the ISA target, compiler, machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.names import Isa
from parity_lib.engines import machine
from parity_lib.records.builds import Receipt
from parity_lib.records.pins import LlamaCppPin

PACKAGE = "llama-cpp-python"
# Whatever the user's shell says to compilers and CMake would not be in the receipt.
NOT_INHERITED = ("CMAKE", "SKBUILD", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "GGML_", "LLAMA_", "PYTHONPATH")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what the compiled libraries are."""

    version: str
    commit: str
    sdist_sha256: str
    target: str
    cmake_args: tuple[str, ...]
    cpu_flags: tuple[str, ...]
    compiler: str  # first line of ``c++ --version``
    architecture: str

    @property
    def key(self) -> str:
        """Return the name of the wheel's cache folder: package, version, ISA target and a digest of the recipe."""
        fields = [self.version, self.sdist_sha256, sorted(self.cmake_args), self.compiler, self.architecture]
        digest = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]
        return f"{PACKAGE}-{self.version}-{self.target}-{digest}"

    def matches(self, receipt: Receipt) -> bool:
        """Return whether ``receipt`` is of a build by this recipe."""
        return all(getattr(receipt, name) == getattr(self, name) for name in self.__slots__)


def host_target(pin: LlamaCppPin, cpuinfo: Path = machine.CPUINFO) -> Isa:
    """Return the widest pinned ISA target that this machine can run; raise ``PinError`` if there is none."""
    target = machine.widest_target(pin, cpuinfo)
    if target is not None:
        return target
    raise PinError(
        "no pinned build of llama.cpp can run on this machine",
        place=machine.machine_class(cpuinfo),
        expected=f"the flags of one of {', '.join(machine.HOST_TARGETS)}",
        found=", ".join(sorted(machine.cpu_flags(cpuinfo))) or "no list of flags",
        next_step="run on x86-64 with AVX2 and FMA, or on ARM with dotprod and fp16",
    )


def recipe_for(pin: LlamaCppPin, target: Isa, compiler: str) -> Recipe:
    """Return the recipe of one ISA target on this machine."""
    return Recipe(
        version=pin.version,
        commit=pin.commit,
        sdist_sha256=pin.sdist_sha256,
        target=str(target),
        cmake_args=pin.build_args(target),
        cpu_flags=pin.target(target).cpu_flags,
        compiler=compiler,
        architecture=platform.machine(),
    )


def compilers() -> tuple[str, str]:
    """Return the C and C++ compiler commands: ``CC`` and ``CXX`` if set, else ``cc`` and ``c++``."""
    found = os.environ.get("CC") or shutil.which("cc"), os.environ.get("CXX") or shutil.which("c++")
    if not found[0] or not found[1]:
        raise EngineError(
            "there is no C++ compiler",
            place="PATH",
            expected="cc and c++",
            found="none",
            next_step="apt-get install g++, or conda install cxx-compiler",
        )
    return found[0], found[1]


def compiler_version() -> str:
    """Return the first line of the C++ compiler's ``--version``."""
    command = [*shlex.split(compilers()[1]), "--version"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise EngineError(
            "the C++ compiler does not run", place=command[0], found=error, next_step="correct CXX"
        ) from error
    return said.splitlines()[0]


def build_environment(recipe: Recipe) -> dict[str, str]:
    """Return the environment of the build: the recipe's flags and compilers, and no other numeric switch."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
    env["CMAKE_ARGS"] = shlex.join(recipe.cmake_args)
    env["CMAKE_GENERATOR"] = "Ninja"
    env["CMAKE_BUILD_PARALLEL_LEVEL"] = str(os.cpu_count() or 1)
    env["CC"], env["CXX"] = compilers()
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env
