from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec import structs

from parity_lib.base.names import Outcome
from parity_lib.pages.night.matrix import brief, night_matrix
from parity_lib.records import store
from parity_lib.records.night_record import Night
from parity_lib.records.verdicts import Verdict


def test_matrix_orders_quants_by_bits(night: Night) -> None:
    lines = night_matrix(night).plain.splitlines()[1:]  # without the caption
    assert lines[0].split() == ["model", "Q4_1", "Q4_K_M", "Q8_0", "BF16"]
    assert "ok 4.5x" in lines[1]
    assert "DIVERGED 340x over at T4" in lines[1]
    assert lines[4].split()[:5] == ["llama-3-8b", "–", "○", "not", "run"]


def test_other_arithmetic_and_controls_stand_apart(night: Night) -> None:
    lines = night_matrix(night).plain.splitlines()[1:]
    bf16 = structs.replace(night.cells[0], cell=structs.replace(night.cells[0].cell, compute="bf16"))
    assert lines[3].split() == ["synthetic-llama", "–", "–", "✓", "ok", "–"]
    assert lines[6].endswith(" ✗ DIVERGED, as expected 1,000x over at T4 (overlay)")
    assert lines[8].endswith("control · eps_x10@blk.12: ✓ caught 10,000x over at T4")
    more = night_matrix(structs.replace(night, cells=(*night.cells, bf16)))
    assert "✓ ok 4.5x, logits reported, not gated (bf16)" in more.plain
    grid, apart = more.html.split("Other ISA target, stack or compute")
    assert "(bf16)" not in grid
    assert "(bf16)" in apart


def test_squares_link_to_their_page_and_not_run_say_why(night: Night) -> None:
    html = night_matrix(night).html
    assert html.count("02_logits.html") == 7
    assert html.count("<small>the file is not staged</small>") == 2
    assert "<small>the notebook&#39;s process ended with SIGABRT</small>" in html


def test_a_not_run_names_its_reason_and_not_the_folder_of_a_machine() -> None:
    assert brief("/srv/models/a.Q8_0.gguf: not staged on this machine; expected 3") == "not staged on this machine"
    assert brief("llama.cpp: no receipt; next: make setup") == "llama.cpp: no receipt"


def test_a_green_square_names_the_rung_that_is_nearest_to_its_limit(
    night: Night, make_verdict: Callable[..., Verdict], tmp_path: Path
) -> None:
    record = night.cells[0]
    store.save_verdict(structs.replace(make_verdict(), cell=record.cell), tmp_path / record.folder)
    line = night_matrix(night, tmp_path).plain.splitlines()[2]
    assert "ok 4.5x at T4" in line
    assert line.rstrip().endswith("ok 2.2x")  # its record is not there


def test_a_lost_expectation_is_no_plain_ok(night: Night) -> None:
    gone = structs.replace(night.cells[5], outcome=Outcome.PARITY, good=False, causes=("it is gone",))
    text = night_matrix(structs.replace(night, cells=(gone,))).plain
    assert "ok, a divergence was expected" in text
