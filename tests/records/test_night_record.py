"""The rules that turn cells into one exit status, and a record that cannot say what its cells deny."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import RecordError
from parity_lib.base.names import Outcome
from parity_lib.night.summary import last_line, write_summary
from parity_lib.records.night_record import FILE_NAME, CellRecord, Night, PageRecord, load_night
from parity_lib.records.verdicts import CellId

CELL = CellRecord(
    key="m-Q8_0-12345678",
    cell=CellId("m", "Q8_0", "avx2", "crates-io", "f32"),
    required=True,
    expect="parity",
    reason="",
    fault="",
    control=False,
    outcome=Outcome.PARITY,
    good=True,
    causes=(),
    lines=(),
    worst_margin=2.5,
    lowest_broken="",
    folder="cells/m",
    html="cells/m/02_logits.html",
    verdict="cells/m/verdict.json",
    seconds=1.0,
    peak_rss_bytes=1,
)
KINDS = {
    "parity": CELL,
    "diverged": replace(CELL, outcome=Outcome.DIVERGED, good=False),
    "expected": replace(CELL, outcome=Outcome.DIVERGED, good=True, expect="diverged", reason="known"),
    "gone": replace(CELL, good=False, expect="diverged", reason="known"),
    "gap": replace(CELL, outcome=Outcome.INCOMPLETE, good=False),
    "not_run": replace(CELL, outcome=Outcome.NOT_RUN, good=True, required=False),
    "caught": replace(CELL, outcome=Outcome.DIVERGED, good=True, control=True, fault="f"),
    "missed": replace(CELL, outcome=Outcome.INVALID, good=False, control=True, fault="f"),
}


def night(*cells: CellRecord, pages: tuple[PageRecord, ...] = (), interrupted: bool = False) -> Night:
    return Night(
        run_id="20261123T021000Z-5e1c0d2a",
        plan="smoke",
        title="t",
        headline="h",
        plan_sha256="0" * 64,
        started_at="2026-11-23T02:10:00+00:00",
        seconds=3.0,
        host="here",
        machine_class="x",
        interrupted=interrupted,
        cells=cells,
        pages=pages,
    )


@pytest.mark.parametrize("kinds", list(product(KINDS, repeat=2)), ids="-".join)
def test_exit_status_is_the_design_s(kinds: tuple[str, str]) -> None:
    found = night(*(KINDS[kind] for kind in kinds))
    if "missed" in kinds:
        wanted = (3, Outcome.INVALID)
    elif {"diverged", "gone"} & set(kinds):
        wanted = (1, Outcome.DIVERGED)
    elif "gap" in kinds or set(kinds) == {"not_run"}:
        wanted = (3, Outcome.INCOMPLETE)
    else:
        wanted = (0, Outcome.PARITY)
    assert (found.exit_status, found.outcome) == wanted


def test_the_last_line_and_the_summary_say_which_divergence_was_expected(tmp_path: Path) -> None:
    both = night(KINDS["parity"], KINDS["expected"], KINDS["diverged"], KINDS["caught"])
    assert last_line(both).startswith("DIVERGED: 2 diverged (1 as expected), 1 parity; red control 1/1 caught; 3 s")
    assert last_line(night(KINDS["diverged"])).startswith("DIVERGED: 1 diverged; 3 s")
    text = write_summary(both, tmp_path).read_text()
    assert text.count("| DIVERGED |") == 1
    assert text.count("| DIVERGED, as expected |") == 1
    assert text.count("| control caught |") == 1


def test_night_without_cells_is_no_parity() -> None:
    assert night().exit_status == 3


def test_broken_page_or_interrupt_is_a_gap_but_hides_no_divergence() -> None:
    page = PageRecord("06_night", "", Outcome.INCOMPLETE, ("the kernel died",))
    assert night(CELL, pages=(page,)).exit_status == 3
    assert night(CELL, interrupted=True).exit_status == 3
    assert night(KINDS["diverged"], pages=(page,), interrupted=True).exit_status == 1


def test_record_survives_the_disk(tmp_path: Path) -> None:
    record = night(*KINDS.values(), pages=(PageRecord("06_night", "index.html", Outcome.PARITY, ()),))
    record.save(tmp_path)
    assert load_night(tmp_path) == record
    assert [p.name for p in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exit_status": 0}, "does not follow"),
        ({"outcome": "PARITY"}, "does not follow"),
        ({"schema": "parity/night/1"}, "another schema; expected parity/night/2; found parity/night/1; next: "),
        ({"night": {}}, r"at \$\.night: is no StoredNight.*missing required field `run_id`"),
    ],
)
def test_record_that_was_changed_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = night(KINDS["gap"]).save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match=message):
        load_night(tmp_path)


def test_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=FILE_NAME):
        load_night(tmp_path)
