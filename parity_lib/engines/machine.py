"""Name the machine: its class, its instruction sets, what this process took of it."""

from __future__ import annotations

import hashlib
import platform
import resource
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from parity_lib.base.names import Isa
from parity_lib.records.pins import LlamaCppPin, load_pins

CPUINFO = Path("/proc/cpuinfo")
STATUS = Path("/proc/self/status")
# x86 flags that decide which kernel runs; the others (mitigations, virtualisation) change with the kernel's version.
NUMERIC = ("sse", "ssse", "pni", "avx", "fma", "f16c", "bmi", "amx", "gfni", "xop")
X86_KEYS = ("vendor_id", "cpu family", "model")
ARM_KEYS = ("CPU implementer", "CPU variant", "CPU part")
UNKNOWN = ("unknown", "0", "0")
# Strict settings are the same bits with AMX compiled in or not, so a host gets the plain target unless asked otherwise.
HOST_TARGETS = (Isa.AVX512, Isa.AVX2, Isa.NEON)


@cache
def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Return the instruction-set flags that the kernel lists for the first core; empty where there is no such list."""
    fields = _first_core(cpuinfo)
    words = fields.get("flags", fields.get("Features", "")).split()
    return frozenset(words if "Features" in fields else (w for w in words if w.startswith(NUMERIC)))


def missing_flags(needed: Iterable[str], cpuinfo: Path = CPUINFO) -> list[str]:
    """Return which of the ``needed`` flags this machine lacks: a build that uses one would crash."""
    return [flag for flag in needed if flag not in cpu_flags(cpuinfo)]


def widest_target(pin: LlamaCppPin, cpuinfo: Path = CPUINFO) -> Isa | None:
    """Return the widest pinned ISA target of the reference that this machine can run, or None if it can run none."""
    targets = (isa for isa in HOST_TARGETS if isa in pin.targets)
    return next((isa for isa in targets if not missing_flags(pin.target(isa).cpu_flags, cpuinfo)), None)


def host_target() -> Isa | None:
    """Return the ISA target that set-up installs on this machine, or None if the machine can run none."""
    return widest_target(load_pins().llama_cpp)


def machine_class(cpuinfo: Path = CPUINFO) -> str:
    """Return ``<arch>-<vendor>-<family>-<model>-<digest of the numeric flags>``.

    Two machines of one class run the same kernels; files made and spreads measured on one hold for the other.
    """
    fields = _first_core(cpuinfo)
    keys = X86_KEYS if "vendor_id" in fields else ARM_KEYS
    names = [fields.get(key, other).replace(" ", "_") for key, other in zip(keys, UNKNOWN, strict=True)]
    digest = hashlib.sha256(" ".join(sorted(cpu_flags(cpuinfo))).encode()).hexdigest()[:8]
    return "-".join((platform.machine(), *names, digest))


def host() -> str:
    """Return the name of this host, or "unnamed"."""
    return platform.node() or "unnamed"


def peak_rss_bytes() -> int:
    """Return the largest resident memory that this process had, in bytes.

    ``VmHWM`` belongs to the running program. ``ru_maxrss`` outlives ``exec``: a worker started by a
    large notebook would report the notebook's memory.
    """
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _first_core(cpuinfo: Path) -> dict[str, str]:
    if not cpuinfo.exists():
        return {}
    core = cpuinfo.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in core.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
