from __future__ import annotations

from dataclasses import dataclass

from parity_lib.engines.machine import missing_flags
from parity_lib.models.ensure import list_models
from parity_lib.pages.files.machine import check_table, file_table, machine_header, stack_table, target_table
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP, Evidence, IsaProof, Sampled
from parity_lib.records.pins import load_pins


@dataclass(frozen=True)
class Checked:
    name: str
    ok: bool | None
    found: str
    next_step: str = ""
    blocks: bool = False


SOUND = [
    Checked("machine", None, "runner-3, class x, 2 cores"),
    Checked("ISA target of this machine", ok=True, found="avx512"),
    Checked("ISA target amx", ok=False, found="the CPU lacks amx_tile", next_step="cells of it are not run here"),
    Checked("burn extension", ok=True, found="fresh, stack crates-io: burn-ndarray 0.21.0"),
]
BROKEN = Checked("llama.cpp", ok=False, found="no receipt", next_step="make setup", blocks=True)


def test_header_says_which_burn_runs_and_that_all_is_well() -> None:
    lines = machine_header(SOUND).plain.splitlines()
    assert lines[0] == "This machine can run the default plan"
    assert "Which burn: fresh, stack crates-io: burn-ndarray 0.21.0." in lines
    assert lines[-1] == "Next: make nightly."


def test_header_names_what_is_missing_and_the_next_step() -> None:
    lines = machine_header([*SOUND, BROKEN]).plain.splitlines()
    assert lines[0] == "This machine cannot run the default plan: llama.cpp"
    assert lines[-1] == "Next: make setup."


def test_what_blocks_comes_first_and_what_is_merely_absent_second() -> None:
    lines = check_table([*SOUND, BROKEN]).plain.splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["llama.cpp", "ISA target amx"]
    assert "✗ missing" in lines[1]
    assert "not here" in lines[2]


def test_no_target_is_called_proven_without_a_proof() -> None:
    lines = target_table(load_pins()).plain.splitlines()[1:-1]  # without header and note
    assert [line.split()[0] for line in lines] == ["avx512", "avx2", "amx", "neon"]
    for line in lines:
        assert "unproven" in line
        assert ", proven" not in line


def test_a_target_says_what_was_seen_of_each_engine() -> None:
    pins = load_pins()
    target = next(name for name, target in pins.llama_cpp.targets.items() if not missing_flags(target.cpu_flags))
    sampled = Sampled(50, 0, 40, {target: 40}, {target: 30}, ())
    good = IsaProof(Evidence(BURN, "teacher-forced pass", target, sampled), target, proven=True, reason="30 samples")
    bad = IsaProof(Evidence(LLAMA_CPP, "strict settings", target, None, "no sampler"), "unproven", False, "no sampler")
    shown = target_table(pins, [good, bad])
    [line] = [line for line in shown.plain.splitlines() if line.startswith(f"{target} ")]
    assert f"{target}, proven" in line
    assert "unproven: no sampler" in line
    assert "burn, teacher-forced pass" in shown.plain


def test_every_pinned_file_and_stack_is_listed() -> None:
    pins = load_pins()
    files = file_table(list_models(pins)).plain.splitlines()
    assert len(files) == len(pins.models) + 1
    assert any("llama-3-8b Q4_K_M" in line and "not staged" in line for line in files)
    assert "crates-io" in stack_table(pins).plain
