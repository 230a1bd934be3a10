"""Noise on the nodes of llama.cpp's graph: repeatable, proportional, on every kernel, and gone when it is of size 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.perturb import _Noise, kernel_of
from parity_lib.engines.worker.client import Worker
from parity_lib.models.synthetic import Shape, build
from parity_lib.numerics.kernel_noise import ADD, GLU, KERNELS, KEYS, NORM, ROPE, SOFT_MAX, VALUES, WEIGHT, KernelNoise
from parity_lib.records.traces import F64

SEQUENCES = [[(i * 37) % 501 + 1 for i in range(19)], [7]]
N_VOCAB = 512
EVERY = KernelNoise({kernel: {256: 1e-14} for kernel in KERNELS})


def alone(kernel: str) -> KernelNoise:
    """Return noise on one kernel and none on the others."""
    return KernelNoise({name: {1: 1e-12 if name == kernel else 0.0} for name in KERNELS})


class Perturbed:
    """A worker with a model, and its clean rows."""

    def __init__(self, folder: Path, target: str, quant: str = "F32") -> None:
        model = build("qwen2", quant, folder / "model.gguf", Shape(n_layer=2, n_vocab=N_VOCAB))
        asked = {"path": str(model), "isa": target, "settings": "strict", "n_threads": 1}
        self.worker = Worker("llama_perturbed", asked, env=worker_env("strict"))
        self.clean = folder / "clean.f32"
        self.worker.call("score", SEQUENCES, self.clean)
        self.ids = np.tile(np.arange(3, dtype=np.int32), (20, 1))

    def moved(self, noise: KernelNoise, seed: int = 0) -> tuple[F64, F64]:
        rms, errors = self.worker.call("perturb", SEQUENCES, self.clean, self.ids, noise, seed=seed)
        return rms, errors


@pytest.fixture(scope="module")
def perturbed(tmp_path_factory: pytest.TempPathFactory, target: str) -> Iterator[Perturbed]:
    opened = Perturbed(tmp_path_factory.mktemp("model"), target)
    with opened.worker:
        yield opened


@pytest.mark.engine
def test_no_noise_moves_no_bit(perturbed: Perturbed) -> None:
    rms, errors = perturbed.moved(KernelNoise({kernel: {1: 0.0} for kernel in KERNELS}))
    assert not rms.any()
    assert not errors.any()
    perturbed.worker.call("score", SEQUENCES, perturbed.clean.with_name("again.f32"))
    assert perturbed.clean.with_name("again.f32").read_bytes() == perturbed.clean.read_bytes()


@pytest.mark.engine
def test_the_seed_decides_the_noise(perturbed: Perturbed) -> None:
    first, again, other = (perturbed.moved(EVERY.times(16), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first > 0).all()


@pytest.mark.engine
def test_logits_move_in_proportion_to_the_noise(perturbed: Perturbed) -> None:
    small, large = (perturbed.moved(EVERY.times(factor), 3)[1] for factor in (64, 256))
    assert np.linalg.norm(large / 4 - small) < 0.05 * np.linalg.norm(small)


@pytest.mark.engine
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_has_a_noise_of_its_own(kernel: str, perturbed: Perturbed) -> None:
    rms, _ = perturbed.moved(alone(kernel))
    assert (rms[1:19] > 0).all()


def test_what_a_product_sums_is_found_without_a_second_product() -> None:
    """Inputs of a few large channels, as those of trained models: the scale of an output to a few percent."""
    generator = np.random.default_rng(3)
    inputs = generator.standard_normal((40, 576)) * np.exp(2 * generator.standard_normal(576))
    weights = generator.standard_normal((300, 576)) * np.exp(generator.standard_normal(300))[:, None]
    squares = np.square(inputs).astype(np.float32)
    noise = _Noise(None, EVERY, generator)  # type: ignore[arg-type] - no graph is asked
    left, right = noise._scale(weights.astype(np.float32), squares)
    assert left.shape[1] < 0.1 * 576
    ratio = np.sqrt((left @ right) / (np.square(inputs) @ np.square(weights).T))
    assert np.percentile(ratio, [1, 50, 99]) == pytest.approx([1, 1, 1], abs=0.12)


@pytest.mark.engine
def test_a_file_that_is_not_float32_is_refused(tmp_path: Path, target: str) -> None:
    quantised = Perturbed(tmp_path, target, "Q8_0")
    with quantised.worker, pytest.raises(EngineError, match="not float32"):
        quantised.moved(EVERY)


@pytest.mark.parametrize(
    ("node", "kernel"),
    [
        (("Qcur-1", "MUL_MAT", "blk.1.attn_q.weight"), WEIGHT),
        (("result_output", "MUL_MAT", "output.weight"), WEIGHT),
        (("kq-0", "MUL_MAT", "cache_k_l0"), KEYS),
        (("kqv-0", "MUL_MAT", "cache_v_l0"), VALUES),
        (("attn_norm-0", "MUL", "norm-0"), NORM),
        (("kq_soft_max-0", "SOFT_MAX", "kq-0"), SOFT_MAX),
        (("ffn_swiglu-0", "GLU", "ffn_gate-0"), GLU),
        (("Kcur-0", "ROPE", "Kcur-0"), ROPE),
        (("l_out-0", "ADD", "ffn_out-0"), ADD),
        (("embd", "GET_ROWS", "token_embd.weight"), None),
        (("kqv_out-0", "CONT", "kqv_merged-0"), None),
        (("norm-0", "RMS_NORM", "embd"), None),  # its product with the weight is the site
    ],
)
def test_a_node_is_one_kernel_or_none(node: tuple[str, str, str], kernel: str | None) -> None:
    assert kernel_of(*node) == kernel
