from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from parity_lib.base.errors import FixtureError
from parity_lib.pages.cell.t5_literal import literal_table, load_expectations
from parity_lib.records.measured import Measured
from parity_lib.records.row_numbers import NonFinite, PairReport
from parity_lib.records.verdicts import Verdict

MakeVerdict = Callable[..., Verdict]


def rows(verdict: Verdict) -> dict[str, list[str]]:
    lines = literal_table(verdict).plain.splitlines()
    split = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {line[0]: line[1:] for line in split if len(line) in (3, 5)}


def test_measured_numbers_stand_beside_the_expected_ones(make_verdict: MakeVerdict) -> None:
    found = rows(make_verdict())
    assert found["positions"] == ["850", "1,412", "–", "–"]
    assert found["top-1 equal"] == ["97.1 %", "97.1 %", "96.8 %", "95.4 %"]
    assert found["top-5 set equal"] == ["85.4 %", "85.4 %", "85.8 %", "83.0 %"]
    assert found["KL llama.cpp to burn, mean, nats"] == ["0.0028", "0.0028", "0.0028", "0.0030"]


def test_a_model_without_expectation_gets_none(make_verdict: MakeVerdict) -> None:
    verdict = make_verdict()
    verdict = structs.replace(verdict, cell=structs.replace(verdict.cell, model="mine"))
    assert rows(verdict)["top-1 equal"] == ["97.1 %", "97.1 %"]
    assert "No expectation is recorded" in literal_table(verdict).plain


def test_nothing_compared_is_said(make_verdict: MakeVerdict) -> None:
    for native in (None, PairReport(None, None, (), NonFinite(0, 0))):
        assert "No literal numbers" in literal_table(make_verdict(measured=Measured(native=native))).plain


def test_where_greedy_texts_part_is_named(make_verdict: MakeVerdict) -> None:
    assert "prompt 3 at token 17." in literal_table(make_verdict()).html


def test_the_shipped_expectations_load_and_are_shares_and_distances() -> None:
    known, source = load_expectations()
    assert "SmolLM2-135M" in source
    assert len(known) == 10
    for numbers in known.values():
        assert 0.5 < numbers["top5_set_share"] < numbers["top1_share"] <= 1
        assert 0 < numbers["kl_mean"] < numbers["kl_p99"]


def test_a_misspelt_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "expectations.toml"
    path.write_text('schema = "parity/expectations/1"\nsource = "s"\n[[expectation]]\nmodel = "m"\nqant = "Q8_0"\n')
    with pytest.raises(FixtureError, match="quant"):
        load_expectations(path)
