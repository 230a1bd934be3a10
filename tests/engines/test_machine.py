"""Machine classes from the kernel's own list."""

from __future__ import annotations

import platform
from pathlib import Path

from parity_lib.engines import machine
from parity_lib.records.pins import load_pins

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Some CPU
flags\t\t: fpu vme sse2 pni ssse3 avx avx2 fma f16c avx512f amx_tile {more}

processor\t: 1
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp fphp asimddp
CPU implementer\t: 0x41
CPU variant\t: 0x1
CPU part\t: 0xd40
"""


def test_the_class_names_vendor_family_model_and_numeric_flags(tmp_path: Path) -> None:
    one, other, wider = tmp_path / "one", tmp_path / "other", tmp_path / "wider"
    one.write_text(X86.format(more=""))
    other.write_text(X86.format(more="md_clear retbleed"))
    wider.write_text(X86.format(more="avx512_bf16"))
    names = [machine.machine_class(path) for path in (one, other, wider)]
    assert names[0].startswith(f"{platform.machine()}-GenuineIntel-6-143-")
    assert names[0] == names[1], "a kernel that knows one more mitigation is not another machine"
    assert names[0] != names[2]


def test_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(X86.format(more=""))
    assert machine.cpu_flags(path) == {"sse2", "pni", "ssse3", "avx", "avx2", "fma", "f16c", "avx512f", "amx_tile"}
    assert machine.missing_flags(["avx2", "avx512_bf16", "fma"], path) == ["avx512_bf16"]


def test_arm_lists_features(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(ARM)
    assert machine.missing_flags(["asimd", "asimddp"], path) == []
    assert "-0x41-0x1-0xd40-" in machine.machine_class(path)


def test_a_machine_without_the_list_is_unknown_and_lacks_everything(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert machine.machine_class(path).startswith(f"{platform.machine()}-unknown-0-0-")
    assert machine.missing_flags(["avx2"], path) == ["avx2"]


def test_this_machines_target_is_one_that_it_can_run() -> None:
    target = machine.host_target()
    assert target is not None
    assert machine.missing_flags(load_pins().llama_cpp.target(target).cpu_flags) == []


def test_peak_memory_is_of_this_process() -> None:
    before = machine.peak_rss_bytes()
    block = bytearray(b"x") * (before + (64 << 20))
    assert machine.peak_rss_bytes() >= len(block)


def test_the_host_has_a_name() -> None:
    assert machine.host()
