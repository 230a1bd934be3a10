"""Evidence of instructions from both engines on small real models: looking changes no bit, and shows what ran."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import burn_gguf
import numpy as np
import pytest

from parity_lib.base.names import Compute, Settings
from parity_lib.engines import sampler
from parity_lib.engines.burn import isa as burn_isa
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.settings import ASLEEP
from parity_lib.engines.sampler import Watch
from parity_lib.engines.targets import own_target
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t7_isa import prove
from parity_lib.records.isa_evidence import UNPROVEN, Evidence
from parity_lib.records.pins import load_pins
from parity_lib.records.traces import F32

pytestmark = pytest.mark.engine

SEQUENCES = [[(37 * i + 3 * s) % 512 for i in range(64)] for s in range(4)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("compute", [Compute.F32, Compute.BF16])
def test_sampling_changes_no_bit_of_burn_and_proves_its_target(
    tiny_models: dict[str, Path], tmp_path: Path, compute: Compute
) -> None:
    path, target = tiny_models["Q8_0"], own_target(load_pins().stack("crates-io"))
    plain, watched = Burn(path, isa=target, compute=compute), Burn(path, isa=target, compute=compute, sampled=True)
    plain.score(SEQUENCES, tmp_path / "plain")
    watched.score(SEQUENCES, tmp_path / "watched")
    proof = prove(watched.prove_isa(SEQUENCES, tmp_path, seconds=20.0))
    watched.score(SEQUENCES, tmp_path / "again")
    assert digest(tmp_path / "plain") == digest(tmp_path / "watched") == digest(tmp_path / "again")
    assert (proof.proven, proof.observed) == (True, target)
    assert (
        watched.run_info().isa_observed == plain.run_info().isa_observed == UNPROVEN
    )  # an engine does not judge itself
    assert watched.run_info().isa_evidence.samples.sampled is not None
    assert plain.run_info().isa_evidence.samples.sampled is None
    operands = "bf16" if compute is Compute.BF16 else "f32"
    assert proof.evidence.arithmetic["operands"] == operands
    assert not (tmp_path / "sampled.f32").exists()


def test_sampling_changes_no_bit_of_llama_cpp(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    settings = {"path": tiny_models["Q4_K_M"], "settings": Settings.STRICT, "isa": target, "n_threads": 2}
    for engine in ("llama_cpp", "llama_dispatch"):
        with Worker(engine, settings, env=worker_env(Settings.STRICT)) as worker:
            if engine == "llama_dispatch":
                worker.call("prove_isa", SEQUENCES[0], 0.1)
            worker.call("score", SEQUENCES, tmp_path / engine)
    assert digest(tmp_path / "llama_cpp") == digest(tmp_path / "llama_dispatch")


def dispatch(path: Path, target: str, settings: Settings) -> Evidence:
    asked = {"path": path, "settings": settings, "isa": target, "n_threads": 2}
    env = worker_env(settings) | ASLEEP
    with Worker("llama_dispatch", asked, env=env) as worker:
        evidence: Evidence = worker.call("prove_isa", SEQUENCES[0], 20.0)
    return evidence


def test_every_weight_lies_in_a_buffer_and_strict_settings_repack_none(
    tiny_models: dict[str, Path], target: str
) -> None:
    strict = dispatch(tiny_models["Q4_K_M"], target, Settings.STRICT)
    deployed = dispatch(tiny_models["Q4_K_M"], target, Settings.DEFAULT)
    names = [{buffer.name for buffer in evidence.buffers} for evidence in (strict, deployed)]
    assert "CPU_REPACK" not in names[0]
    assert "CPU_REPACK" in names[1]
    totals = [
        tuple(sum(getattr(b, field) for b in e.buffers) for field in ("weights", "flops")) for e in (strict, deployed)
    ]
    assert totals[0] == totals[1]
    assert totals[0][0] == 2 * 7 + 1  # of two blocks, and the output
    assert sum(b.bytes for b in strict.buffers) < tiny_models["Q4_K_M"].stat().st_size
    assert prove(strict).proven
    assert strict.sampled is not None
    assert all(kernel.library.startswith(("libggml", "libllama")) for kernel in strict.sampled.kernels)
    assert strict.features["AVX2"] if target != "neon" else strict.features["NEON"]


def test_a_process_has_one_sampler(tmp_path: Path) -> None:
    burn_gguf.sampling_start()
    try:
        with pytest.raises(burn_gguf.BurnError, match="one at a time"):
            burn_gguf.sampling_start()
        watch = Watch(burn_gguf, ("burn_gguf",))
        with watch.watching():
            pass
        assert "one at a time" in watch.absent
        assert watch.seen() is None
    finally:
        samples = json.loads(burn_gguf.sampling_stop())
    assert set(samples) == {"n", "lost", "places"}
    with pytest.raises(burn_gguf.BurnError, match="not running"):
        burn_gguf.sampling_stop()


def test_samples_name_the_library_that_took_the_time() -> None:
    watch = Watch(burn_gguf, ("lib",))
    matrix = np.ones((300, 300), np.float32)
    end = time.process_time() + 0.3
    with watch.watching():
        while time.process_time() < end:
            matrix @ matrix
    seen = watch.seen()
    assert seen is not None
    assert seen.n > 0
    blas = [place for place in watch.places if "blas" in place.library]
    assert sum(watch.places[place] for place in blas) > seen.n / 2


def test_without_a_sampler_the_run_goes_on_and_says_so() -> None:
    watch = Watch(SimpleNamespace(), ("burn_gguf",))
    ran = []
    with watch.watching():
        ran.append(1)
    assert (ran, watch.seen(), watch.absent) == ([1], None, sampler.ABSENT)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((1 + 2**-12, 2**-24), {"operands": "f32", "fma": "yes"}),
        ((1 + 2**-12, 0.0), {"operands": "f32", "fma": "no"}),
        ((1.0, 0.0), {"operands": "bf16", "fma": "not told"}),
        ((1 + 2**-12 + 2**-20, 2**-24 + 2**-35), {"operands": "f32", "fma": "yes"}),  # wrong low bits
    ],
)
def test_two_products_tell_the_arithmetic(answers: Sequence[float], told: dict[str, str]) -> None:
    given = iter(answers)
    assert burn_isa.fingerprint(lambda *_: np.array([next(given)], np.float32), "f32") == told


@pytest.mark.parametrize(
    ("n_sums", "fused", "told"),
    [(1, True, "yes"), (4, True, "yes"), (1, False, "no"), (4, False, "no")],
)
def test_other_code_for_one_row_or_two_terms_does_not_answer_for_the_kernel(
    n_sums: int, fused: bool, told: str
) -> None:
    """Multiply as a crate does that rounds where a product is small, and keeps ``n_sums`` partial sums elsewhere."""

    def linear(_: str, blocks: bytes, n_out: int, n_in: int, x: F32, policy: str) -> F32:
        assert policy == "f32"
        weights, rows = np.frombuffer(blocks, "<f4").reshape(n_out, n_in), x.reshape(-1, n_in)
        small = n_in <= 2 or min(n_out, len(rows)) == 1
        sums = np.zeros((n_sums, len(rows), n_out), np.float32)
        for term in range(n_in):
            wide = np.outer(rows[:, term].astype(np.float64), weights[:, term])
            product = wide if fused and not small else wide.astype(np.float32)
            sums[term % n_sums] = (sums[term % n_sums] + product).astype(np.float32)
        total: F32 = sums.sum(0, dtype=np.float32).ravel()
        return total

    assert burn_isa.fingerprint(linear, "f32") == {"operands": "f32", "fma": told}
