"""``parity baseline`` and ``parity predict``, for real: kernels of both engines, and logits as far off as predicted."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from parity_lib.base.record import load_record
from parity_lib.cli.app import cli
from parity_lib.models.synthetic import Shape, build
from parity_lib.numerics.kernel_noise import KERNELS
from parity_lib.records import kernel_baseline
from parity_lib.records.kernel_baseline import KernelBaseline

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"


def run(*words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, list(words), catch_exceptions=False, standalone_mode=False)
    return result.return_value, result.stdout.splitlines()


@pytest.mark.engine
def test_kernels_are_measured_and_the_prediction_from_them_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way on a model of the user's own: no number of the stored baselines takes part."""
    fixtures = tmp_path / "fixtures"
    monkeypatch.setattr(kernel_baseline, "baseline_path", lambda engine, isa: fixtures / f"{engine}-{isa}.json")
    model = build("qwen2", "Q4_K_M", tmp_path / "model.gguf", Shape(n_layer=2, n_vocab=512))
    shared = ("--threads", "1", "--isa", "avx2")
    status, said = run("baseline", str(model), *shared, "--tokens", "40", "--write", "--out", str(tmp_path / "b"))
    assert status == 0
    assert {line[:16].strip() for line in said if line[:16].strip() in KERNELS} == set(KERNELS)
    stored = [load_record(path, KernelBaseline) for path in sorted(fixtures.iterdir())]
    assert [one.engine for one in stored] == ["crates-io", "llama.cpp"]
    words = ("--prompts", str(PROMPTS), "--out", str(tmp_path / "p"))
    status, said = run("predict", str(model), *shared, *words)
    assert status == 0, said
    assert [line[:20].strip() for line in said[2:]] == ["llama.cpp to float64", "burn to float64", "burn to llama.cpp"]
    for line in said[2:]:
        lowest, *_, highest = map(float, line.split()[-7:])
        assert 0.3 < lowest < highest < 3, line
