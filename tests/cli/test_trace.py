"""``parity trace``, for real, on a synthetic model: what it prints, leaves and returns."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from parity_lib.cli.app import cli, main

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
WORDS = ["trace", "synthetic-llama", "Q8_0", "--prompts", str(PROMPTS)]


def test_a_seeded_fault_is_named_on_the_screen_and_on_the_page(tmp_path: Path) -> None:
    words = [*WORDS, "--prompt", "first", "--token", "-1", "--fault", "norm_weight_1pct@blk.1", "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 1
    sentence = "First over its limit: layer 1 `attn_norm`, local error "
    assert result.stdout.startswith(f"DIVERGED: {sentence}")
    assert "against 1.0e-11; at the logits flat, over from position 0 on. burn is " in result.stdout
    assert "oints to" not in result.stdout  # the op is named: no cause is guessed beside it
    assert "times as far from the float64 oracle as llama.cpp: burn's fault." in result.stdout
    assert "most comes from layer 1, " in result.stdout
    assert f"page: {tmp_path / '03_trace.html'}" in result.stdout
    command = f"parity replay {tmp_path / 'reproducer'}"
    assert f"reproducer: {tmp_path / 'reproducer'}; replay it with: {command}" in result.stdout
    page = (tmp_path / "03_trace.html").read_text()
    assert command in page
    assert "First over its limit: layer 1 <code>attn_norm</code>" in page[: page.index("<h2")]
    assert "seeded fault: norm_weight_1pct@blk.1" in page
    assert "parity trace synthetic-llama Q8_0 --prompt 0 --token 0 --fault norm_weight_1pct@blk.1" in page
    assert not (tmp_path / ".spool").exists()


def test_what_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*WORDS, "--prompt", "third", "--out", str(tmp_path)]) == 2
    assert "unknown prompt 'third'" in capsys.readouterr().err
    assert main(["trace", "no-such-model", "Q8_0", "--out", str(tmp_path)]) == 2
    assert "no-such-model" in capsys.readouterr().err
    assert main([*WORDS, "--against", "no-such-stack", "--out", str(tmp_path)]) == 2
    assert "no-such-stack" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no kernel was started
    assert main([*WORDS, "--token", "99", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "the prompt has no such token; expected -" in error
    assert "page: " in error
