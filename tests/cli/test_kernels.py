"""``parity kernels``, for real: both engines' ops against float64, by kernel, and what the command says of them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from parity_lib.cli.app import cli, main
from parity_lib.models.synthetic import Shape, build

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
INSIDE = {"RMS_NORM, MUL", "ROPE", "MUL_MAT keys", "SOFT_MAX", "MUL_MAT values", "GLU swiglu"}
ROUNDED = 5e-12  # a float32 sum is that near to float64; the wrong angle, scale or operand is 1e-3 away


def measured(*words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(cli, ["kernels", *words], catch_exceptions=False, standalone_mode=False)
    return result.return_value, result.stdout.splitlines()


def table(said: list[str]) -> dict[str, list[float]]:
    """Return the numbers of each kernel: how many ops, then tensor, position, channel of each pair of sides."""
    rows = {}
    for line in said[3:-1]:
        name, n_ops, rest = re.fullmatch(r"(\S.*?)\s+([\d,]+)  (.*) +\d+%", line).groups()  # type: ignore[union-attr]
        rows[name] = [float(n_ops), *(math.nan if word == "-" else float(word) for word in rest.split())]
    return rows


@pytest.mark.engine
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
    status, said = measured(str(model), "--tokens", "19", "--threads", "1", "--out", str(tmp_path / "out"))
    rows = table(said)
    assert status == 0
    assert "one prefill of 17 and 2 decodes" in said[0]
    exact = rows.pop("moves, sums")
    assert np.isnan(exact[1:7]).all()
    assert exact[7:] == [0, 0, 0]
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


@pytest.mark.engine
@pytest.mark.parametrize(
    ("fault", "kernel"), [("eps_x10@blk.1", "RMS_NORM, MUL"), ("dropped_bias=q@blk.0", "moves, sums")]
)
def test_a_kernel_that_is_wrong_is_over_and_ends_with_1(fault: str, kernel: str, tmp_path: Path) -> None:
    model = build("qwen2", "Q8_0", tmp_path / "model.gguf", Shape(n_layer=2, n_vocab=512))
    words = ["--tokens", "19", "--threads", "1", "--out", str(tmp_path / "out")]
    status, said = measured(str(model), *words, "--fault", fault)
    assert status == 1
    over = [line for line in said[3:-1] if not re.search(r" \d?\d%$", line)]
    assert [line[:24].strip() for line in over] == [kernel]


@pytest.mark.engine
def test_a_reordered_weight_is_a_kernel_of_its_own(tmp_path: Path) -> None:
    model = build("qwen2", "Q4_K_M", tmp_path / "model.gguf", Shape(n_layer=2, n_vocab=512))
    words = ["--tokens", "19", "--threads", "1", "--out", str(tmp_path / "out")]
    status, said = measured(str(model), *words, "--repacked")
    assert status == 0
    assert "llama.cpp repacked" in said[0]
    assert "products from CPU_REPACK" in said[0]
    assert any(re.fullmatch(r"MUL_MAT \S+ CPU_REPACK", name) for name in table(said))


@pytest.mark.engine
def test_nothing_re_ordered_is_an_error_where_that_was_the_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build("llama", "F16", tmp_path / "model.gguf", Shape(n_layer=2, n_vocab=512))
    words = ["--tokens", "19", "--threads", "1", "--out", str(tmp_path / "out")]
    assert main(["kernels", str(model), *words, "--repacked"]) == 3
    assert "the reference's weights are not in the requested buffers" in capsys.readouterr().err


@pytest.mark.engine
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "2"], "unknown prompt '2'"),
        (["--tokens", "17"], "that many tokens cannot be measured; expected 18 to 514; found 17"),
        (["--tokens", "-5"], "Invalid value for '--tokens': -5 is not in the range x>=1"),
        (["--tokens", "400"], "the prompt has fewer tokens; expected 400; found"),
    ],
    ids=["prompt", "few", "negative", "more_than_there_are"],
)
def test_what_cannot_be_measured_is_a_usage_error(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["synthetic-llama", "Q8_0", "--prompts", str(PROMPTS), "--out", str(tmp_path)]
    assert main(["kernels", *model, *words]) == 2
    assert said in capsys.readouterr().err
