"""``parity spread``, for real, on a synthetic model: what it prints and leaves, and that it writes only if asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from parity_lib.base.toml_table import fixture_path
from parity_lib.cli.app import cli, main
from parity_lib.records.self_spread_pins import load_spreads
from parity_lib.records.store import load_spread

pytestmark = pytest.mark.slow

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"


def test_it_measures_prints_and_leaves_the_record(tmp_path: Path) -> None:
    before = fixture_path("spread.toml").read_bytes()
    words = ["spread", "synthetic-llama", "Q8_0", "--threads", "1", "--prompts", str(PROMPTS), "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
    assert result.return_value == 0
    (tmp_path / "spread.toml").write_text(result.stdout)
    (pin,) = load_spreads(tmp_path / "spread.toml").pins
    assert (pin.model, pin.quant) == ("synthetic-llama", "Q8_0")
    assert "20 positions" in pin.source
    assert "parity spread synthetic-llama Q8_0 --prompts" in pin.source
    record = load_spread(tmp_path)
    assert record.model_sha256 == pin.model_sha256
    for name in ("default ", "flash_f16 ", "default_decode ", "twin ", "rms: twin", "displaced: "):
        assert name in result.stderr
    assert fixture_path("spread.toml").read_bytes() == before
    assert not (tmp_path / ".spool").exists()


def test_an_unknown_model_is_a_usage_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["spread", "no-such-model", "Q8_0", "--out", str(tmp_path)]) == 2
    assert "no-such-model" in capsys.readouterr().err
