"""The stored baselines load, hold every kernel, and are joined by kernel and length."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import PinError, RecordError
from parity_lib.base.record import load_record, save_record
from parity_lib.numerics.kernel_noise import KERNELS, WEIGHT, KernelNoise
from parity_lib.records import kernel_baseline
from parity_lib.records.kernel_baseline import (
    KernelBaseline,
    KernelVariance,
    baseline_path,
    find_baseline,
    load_baseline,
)

SOME = KernelVariance(WEIGHT, 256, 3, 1e-14, 2e-14, "synthetic-llama", "Q8_0")


@pytest.mark.parametrize("engine", ["llama.cpp", "crates-io"])
def test_each_engine_has_a_baseline_of_every_kernel(engine: str) -> None:
    found = load_baseline(engine, "avx2")
    assert set(found.variances) == set(KERNELS)
    assert all(0 < k.mean <= k.worst < 1e-11 for k in found.kernels)
    assert KernelNoise(found.variances).sigma(WEIGHT, 4096) < 1e-5
    assert bool(found.commit) is (engine == "llama.cpp")
    assert bool(found.lock_sha256) is (engine != "llama.cpp")


def test_a_target_that_was_not_measured_has_no_baseline() -> None:
    with pytest.raises(PinError, match=r"llama\.cpp neon: no baseline was measured"):
        load_baseline("llama.cpp", "neon")


@pytest.mark.parametrize("isa", ["avx2", "avx512", "amx"])
def test_wider_registers_have_the_baseline_of_avx2_until_their_own_is_measured(isa: str) -> None:
    assert find_baseline("llama.cpp", isa) == load_baseline("llama.cpp", "avx2")


def test_narrower_registers_have_longer_chains_in_ggml_only() -> None:
    theirs, measured = find_baseline("llama.cpp", "neon"), load_baseline("llama.cpp", "avx2")
    assert theirs.kernels[0].mean == 2 * measured.kernels[0].mean
    assert theirs.name == measured.name
    assert find_baseline("crates-io", "neon") == load_baseline("crates-io", "avx2")


def test_a_stack_without_a_baseline_has_that_of_published_burn() -> None:
    assert find_baseline("overlay", "avx512").name == "crates-io-avx2"


def test_without_any_baseline_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_baseline, "baseline_path", lambda engine, isa: tmp_path / f"{engine}-{isa}.json")
    with pytest.raises(PinError, match=r"overlay avx512: no baseline was measured.*parity baseline"):
        find_baseline("overlay", "avx512")


def test_new_kernels_take_the_place_of_old_ones_of_their_length() -> None:
    stored = replace(load_baseline("llama.cpp", "avx2"), kernels=(SOME, replace(SOME, length=512)))
    found = stored.joined([replace(SOME, mean=3e-15), replace(SOME, length=1024)])
    assert [(k.length, k.mean) for k in found.kernels] == [(256, 3e-15), (512, 1e-14), (1024, 1e-14)]


def test_an_error_that_is_no_variance_is_refused(tmp_path: Path) -> None:
    stored = load_record(baseline_path("llama.cpp", "avx2"), KernelBaseline)
    with pytest.raises(RecordError, match="mean"):
        save_record(replace(stored, kernels=(replace(SOME, mean=0.0),)), tmp_path / "a.json")
