"""Rung T7 of a cell, both engines real: proven, required, refused, built for another ISA target or not."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec import structs

from parity_lib.base.errors import PinError, RecordError
from parity_lib.base.json_text import encode
from parity_lib.base.names import Isa, Outcome, Settings
from parity_lib.base.record import decode_record
from parity_lib.cell import reference_cache, steps, t7_isa
from parity_lib.cell.rows import Rows
from parity_lib.cell.steps import Cell, Finding, Reference
from parity_lib.engines import machine, targets
from parity_lib.engines.llamacpp import isa_build
from parity_lib.engines.targets import Side, Sides
from parity_lib.records.isa_evidence import BURN, LLAMA_CPP, Evidence
from parity_lib.records.pins import load_pins
from parity_lib.records.runs import BurnRun, burn
from tests.shared import SoundCell, link_tree, reference_kept_in

pytestmark = pytest.mark.engine


class Proved(NamedTuple):
    cell: Cell
    reference: Reference
    candidate: Rows
    finding: Finding


@pytest.fixture(scope="module")
def proved(sound_cell: SoundCell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proved]:
    """The T7 part of a sound cell, with a diary and a cache of this module's own."""
    cell, climbed = sound_cell.cell, sound_cell.climbed
    assert isinstance(climbed.reference, Reference)
    assert isinstance(climbed.candidate, Rows)
    assert isinstance(climbed.isa, Finding)
    with reference_kept_in(link_tree(sound_cell.traces, tmp_path_factory.mktemp("isa"))):
        own = replace(cell, diary=deepcopy(cell.diary))
        yield Proved(own, climbed.reference, climbed.candidate, climbed.isa)


def test_both_engines_are_proved_by_what_they_ran(proved: Proved) -> None:
    rung, sides = proved.finding.rung, proved.cell.sides
    whole = not sides.reference.lacks and not sides.candidate.lacks
    assert (rung.expected, rung.compared) == (2, 2)
    assert rung.outcome is (Outcome.PARITY if whole else Outcome.REPORTED)
    assert sides.reference.lacks in rung.note
    proofs = proved.finding.measured.proofs
    assert [(p.evidence.engine, p.observed, p.proven) for p in proofs] == [
        (BURN, sides.candidate.isa, True),
        (LLAMA_CPP, sides.reference.isa, True),
    ]
    assert [bool(p.evidence.impossible) for p in proofs] == [bool(sides.candidate.lacks), bool(sides.reference.lacks)]
    assert [b.name for b in proofs[1].evidence.buffers] == ["CPU_Mapped"]
    assert proved.finding.measured.isa.deployed.evidence.run == "default settings"
    assert proved.cell.diary.cache["dispatch"] == "computed"
    steps.prove_isa(proved.cell, proved.reference, proved.candidate)
    assert proved.cell.diary.cache["dispatch"] == "cached"


def test_what_was_kept_is_not_believed_where_it_saw_too_little(
    proved: Proved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reference_cache, "traces_dir", lambda: tmp_path)
    nothing = Evidence(LLAMA_CPP, "strict settings", proved.cell.sides.reference.isa, None, "lost")
    real, calls = t7_isa._run, []

    def run(cell: Cell, settings: Settings, sequence: list[int]) -> Evidence:
        calls.append(settings)
        return nothing if len(calls) <= 2 else real(cell, settings, sequence)

    monkeypatch.setattr(t7_isa, "_run", run)
    strict, _ = t7_isa.reference_evidence(proved.cell, proved.reference.sequences)
    assert strict.sampled is not None
    assert len(calls) == 4


@pytest.mark.parametrize(("required", "outcome"), [(False, Outcome.NOT_RUN), (True, Outcome.INCOMPLETE)])
def test_unproven_is_not_run_unless_the_cell_requires_it(proved: Proved, required: bool, outcome: Outcome) -> None:
    cell = replace(proved.cell, request=replace(proved.cell.request, require_isa=required))
    said = burn(proved.candidate.run).isa_evidence
    samples = Evidence(BURN, "teacher-forced pass", cell.id.isa, None, "no sampler here")
    unseen = structs.replace(said, samples=samples)
    candidate = replace(proved.candidate, run=structs.replace(proved.candidate.run, isa_evidence=unseen))
    finding = steps.prove_isa(cell, proved.reference, candidate)
    assert (finding.rung.outcome, finding.divergences) == (outcome, ())
    assert "no sampler here" in finding.rung.note


def test_a_run_that_says_nothing_of_its_instructions_is_refused(proved: Proved) -> None:
    said = encode(proved.candidate.run)
    del said["isa_evidence"]["samples"]
    with pytest.raises(RecordError, match="missing required field `samples`"):
        decode_record(said, BurnRun, "here")
    with pytest.raises(RecordError, match="another engine ran"):
        steps.prove_isa(proved.cell, proved.reference, proved.reference.rows)


def test_a_polyfill_in_a_cell_is_a_divergence(proved: Proved) -> None:
    claim = burn(proved.candidate.run).isa_evidence.samples
    enough = structs.replace(claim, requested="amx", sampled=proved.finding.measured.proofs[0].evidence.sampled)
    finding = t7_isa.prove_isa(proved.cell, proved.reference, enough)
    assert finding.rung.outcome is Outcome.DIVERGED
    [divergence] = finding.divergences
    assert "asked for amx, saw" in divergence.note


@pytest.mark.parametrize(("required", "outcome"), [(False, Outcome.REPORTED), (True, Outcome.DIVERGED)])
def test_a_cell_of_a_target_that_burn_lacks_runs_and_says_so(
    proved: Proved, monkeypatch: pytest.MonkeyPatch, required: bool, outcome: Outcome
) -> None:
    """As on AMX, where the reference has what the cell asks for; here its part is played by the installed build."""
    lacks, real = "it has no kernel of tiles", proved.cell.sides
    sides = Sides(Side(real.reference.isa), Side(real.candidate.isa, lacks))
    monkeypatch.setattr(targets, "sides", lambda *_: sides)
    request = replace(proved.cell.request, require_isa=required)
    cell = replace(proved.cell, id=structs.replace(proved.cell.id, isa="amx"), request=request)
    candidate = steps.capture_candidate(cell, proved.reference)
    assert (candidate.digests == proved.candidate.digests).all()
    finding = steps.prove_isa(cell, proved.reference, candidate)
    words = f"amx is not possible for burn here, which ran {real.candidate.isa}: {lacks}"
    assert (finding.rung.outcome, finding.rung.compared) == (outcome, 2)
    assert finding.rung.note.startswith(words)
    assert [(d.where, d.note) for d in finding.divergences] == ([(BURN, words)] if required else [])


def test_strict_settings_of_the_amx_target_are_asked_for_what_they_can_run(
    proved: Proved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "missing_flags", lambda *_: [])  # a CPU that has everything
    cell = replace(proved.cell, id=structs.replace(proved.cell.id, isa="amx"))
    claims = dict.fromkeys((str(Settings.STRICT), str(Settings.DEFAULT)))
    kept = {name: encode(Evidence(LLAMA_CPP, f"{name} settings", "amx", None, "-")) for name in claims}
    strict, deployed = t7_isa._asked(cell, reference_cache.Kept(kept))
    assert (strict.requested, deployed.requested) == ("avx512", "amx")


def test_the_installed_build_needs_no_switch_and_another_target_its_folder(tmp_path: Path) -> None:
    pin = load_pins().llama_cpp
    host = str(machine.widest_target(pin))
    assert isa_build.target_env(pin, host) == {}
    assert isa_build.target_receipt(pin, host).target == host
    others = [
        target for target in pin.targets if target != host and not machine.missing_flags(pin.target(target).cpu_flags)
    ]
    assert others or host == Isa.AVX2  # on x86-64 with AVX-512 there is always avx2
    for target in others:
        with pytest.raises(PinError, match=rf"no build of llama\.cpp for the ISA target.*parity isa build {target}"):
            isa_build.target_env(pin, target, tmp_path)


def test_a_target_that_the_cpu_lacks_is_refused_by_name(tmp_path: Path) -> None:
    pin = load_pins().llama_cpp
    lacking = [target for target in pin.targets if machine.missing_flags(pin.target(target).cpu_flags)]
    assert lacking  # no CPU has both AMX and NEON
    for target in lacking:
        with pytest.raises(PinError, match=r"lacks the instructions of the ISA target.*found without"):
            isa_build.target_env(pin, target, tmp_path)
