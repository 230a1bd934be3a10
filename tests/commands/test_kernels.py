"""``parity kernels``, for real: both engines' ops against float64, by kernel, and what the command says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from parity_lib.capture.synthetic import Shape, build
from parity_lib.cli import cli, main

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
INSIDE = {"RMS_NORM, MUL", "ROPE", "MUL_MAT keys", "SOFT_MAX", "MUL_MAT values", "GLU swiglu"}
ROUNDED = 5e-12  # a float32 sum is that near to float64; the wrong angle, scale or operand is 1e-3 away


def measured(*words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["kernels", *words], catch_exceptions=False, standalone_mode=False)
    return result.return_value, result.stdout.splitlines()


def table(said: list[str]) -> dict[str, list[float]]:
    """Return the numbers of each kernel: how many ops, then tensor, position, channel of each pair of sides."""
    rows = {}
    for line in said[2:-1]:
        name, n_ops, rest = re.fullmatch(r"(\S.*?)\s+([\d,]+)  (.*) +\d+%", line).groups()  # type: ignore[union-attr]
        rows[name] = [float(n_ops), *map(float, rest.split())]
    return rows


@pytest.mark.parametrize(
    ("arch", "quant", "types"),
    [("llama", "MIXED", {"Q4_0", "Q5_1", "Q6_K", "F16"}), ("qwen2", "Q4_K_M", {"Q4_K", "Q6_K"})],
    ids=["llama", "qwen2"],
)
def test_every_kernel_of_both_engines_is_a_rounding_away_from_float64(
    arch: str, quant: str, types: set[str], tmp_path: Path
) -> None:
    shape = Shape(n_layer=3, n_vocab=512, rope_freqs=int(arch == "llama"))
    model = build(arch, quant, tmp_path / "model.gguf", shape)
    status, said = measured(
        str(model), "--prompts", str(PROMPTS), "--tokens", "40", "--threads", "1", "--out", str(tmp_path / "out")
    )
    rows = table(said)
    assert status == 0
    assert INSIDE | {f"MUL_MAT {kind}" for kind in types} <= set(rows)
    for name, (n_ops, *numbers) in rows.items():
        assert len(numbers) == 9, name
        assert n_ops % 3 == 0, name  # one prefill, two decodes
        assert 0 < max(numbers[:2]) < ROUNDED, name
        assert 0 < max(numbers[3:5]) < ROUNDED, name
        assert max(numbers[6:8]) < ROUNDED, name
    assert rows["ROPE"][0] == 2 * 3 * 3
    assert said[-1].split() == ["limit", "2.0e-12", "1.0e-11", "1.0e-07"]
    assert not (tmp_path / "out" / ".spool" / "nodes").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "2"], "there is no such prompt; expected 0 to 1; found 2"),
        (["--tokens", "2"], "too few tokens; expected more than 2; found 2"),
    ],
    ids=["prompt", "tokens"],
)
def test_what_cannot_be_measured_is_a_usage_error(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--out", str(tmp_path)]
    assert main(["kernels", *model, *words]) == 2
    assert said in capsys.readouterr().err
