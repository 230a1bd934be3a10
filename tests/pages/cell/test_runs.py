from __future__ import annotations

import re
from collections.abc import Callable

from parity_lib.pages.cell.runs import run_table
from parity_lib.records.verdicts import Verdict
from tests.run_info import BURN_BUILD, BURN_SETTINGS, LLAMA_BUILD, LLAMA_SETTINGS


def test_sides_stand_in_one_order_and_differences_are_bold(make_verdict: Callable[..., Verdict]) -> None:
    verdict = make_verdict()
    shuffled = make_verdict(runs=dict(sorted(verdict.runs.items())))
    html = run_table(shuffled).html
    assert re.findall(r'<th scope="col">([^<]*)', html)[:4] == [
        "what",
        "reference (llama.cpp)",
        "reference-twin (llama.cpp)",
        "candidate (burn)",
    ]
    assert "<div><b>burn</b></div>" in html
    assert '">llama.cpp</td>' in html
    assert '">x86-64 avx512 2 cores</td>' in html
    assert "<b>x86-64 avx512 2 cores</b>" not in html


def test_requested_and_observed_are_two_rows(make_verdict: Callable[..., Verdict]) -> None:
    lines = run_table(make_verdict()).plain.splitlines()
    assert any(re.match(r"ISA requested +avx512 +avx512 +avx512", line) for line in lines)
    assert any(re.match(r"ISA observed +unproven +unproven +unproven", line) for line in lines)


def test_build_and_settings_are_folded_with_every_entry(make_verdict: Callable[..., Verdict]) -> None:
    html = run_table(make_verdict()).html
    both = {"build": (LLAMA_BUILD, BURN_BUILD), "settings": (LLAMA_SETTINGS, BURN_SETTINGS)}
    for name, (llama, burn) in both.items():
        found = re.search(rf"<summary>{name}: (\d+) entries</summary>", html)
        assert found is not None
        assert int(found[1]) >= len({*llama.__struct_fields__, *burn.__struct_fields__})
    assert "-DGGML_AVX512=ON" in html
    assert re.search(r"<summary>ISA evidence: \d+ entries</summary>", html)


def test_a_cell_without_engines_says_so(make_verdict: Callable[..., Verdict]) -> None:
    assert run_table(make_verdict(runs={})).plain.startswith("No engine ran")
