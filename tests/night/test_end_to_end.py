"""Real nights on a synthetic model: both engines, papermill, pages; then the same with faults in the candidate."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import jsonschema
import pytest
import scrapbook

from parity_lib.base.names import Outcome, Rung
from parity_lib.base.toml_table import fixture_path
from parity_lib.cli.app import main
from parity_lib.night.night import NightOptions, run_night
from parity_lib.records import store
from parity_lib.records.night_record import Night, load_night

pytestmark = pytest.mark.slow

REPORTS = Path(__file__).resolve().parents[2] / "reports" / "README.md"
MODEL = '[[cell]]\nmodel = "synthetic-llama"\nquant = "Q8_0"\n'
FAULTS = {"rope_base=20000": "DIVERGED", "drop_row=1": "INCOMPLETE"}
EXTERNAL = re.compile(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Return the exit status and the folder of the shipped plan ``tiny``."""
    out = tmp_path_factory.mktemp("sound")
    status = main(["nightly", "--plan", "tiny", "--out", str(out)])
    return status, next(path.parent for path in out.glob("*/night.json"))


def test_tiny_plan_is_at_parity(sound: tuple[int, Path]) -> None:
    status, folder = sound
    night = load_night(folder)
    assert (status, night.exit_status, night.outcome) == (0, 0, Outcome.PARITY)
    assert [(cell.control, cell.good) for cell in night.cells] == [(False, True), (True, True)]
    verdict = store.load_verdict(folder / night.cells[0].verdict)
    assert not verdict.unpinned
    for rung in set(Rung) - {Rung.T1}:  # no vocabulary
        result = verdict.rung(rung)
        assert result is not None
        assert result.compared == result.expected > 0
    assert len(store.load_pair(folder / night.cells[0].folder / "twin.npz")) == verdict.rung(Rung.T4).expected  # type: ignore[union-attr]


def test_every_record_of_a_run_matches_its_schema(sound: tuple[int, Path]) -> None:
    _, folder = sound
    names = {"night.json": "night", "verdict.json": "verdict", "spread.json": "spread"}
    names |= {
        "twin.json": "trace",
        "native.json": "trace",
        "divergences.jsonl": "divergence",
        "history.jsonl": "history",
    }
    seen = set()
    for path in (folder.parent / "history.jsonl", *folder.rglob("*.json*")):
        if (name := names.get(path.name)) is None:
            continue
        schema = json.loads(fixture_path(f"schemas/{name}.json").read_text("utf-8"))
        lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
        for line in lines:
            jsonschema.Draft202012Validator(schema).validate(json.loads(line))
            seen.add(path.name)
    assert seen == set(names)  # the red control has divergences


def test_red_control_of_the_tiny_plan_is_caught_by_ops_and_logits_and_adds_no_divergence(
    sound: tuple[int, Path],
) -> None:
    _, folder = sound
    control = load_night(folder).cells[1]
    assert (control.outcome, control.lowest_broken) == (Outcome.DIVERGED, Rung.T3)
    log = (folder / "night.log").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("CONTROL model=synthetic-llama quant=Q8_0") and "rung=T4" in line for line in log)
    assert any("red control 1/1 caught" in line for line in log)
    assert not [line for line in log if line.startswith("DIVERGED")]


def test_pages_are_small_and_need_nothing_from_elsewhere(sound: tuple[int, Path]) -> None:
    _, folder = sound
    pages = sorted(folder.rglob("*.html"))
    assert {page.name for page in pages} == {"00_machine_and_pins.html", "02_logits.html", "index.html"}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert len(text.encode()) <= 1_500_000
        assert not EXTERNAL.search(text)
        assert "<script" not in text


def test_values_are_readable_by_scrapbook(sound: tuple[int, Path]) -> None:
    _, folder = sound
    scraps = scrapbook.read_notebook(str(folder / load_night(folder).cells[0].folder / "02_logits.ipynb")).scraps
    assert scraps["outcome"].data == "PARITY"


def test_the_page_about_reports_names_what_a_run_writes_and_nothing_else(sound: tuple[int, Path]) -> None:
    _, folder = sound
    tree = REPORTS.read_text(encoding="utf-8").split("```")[1]
    files = set(re.findall(r"[\w.]+\.(?:html|ipynb|json|jsonl|log|toml|xml|md|npz)\b", tree))
    written = {path.name for path in (*folder.parent.glob("*.jsonl"), *folder.rglob("*")) if path.is_file()}
    assert written - {".lock"} <= files | {f"{Path(name).stem}{end}" for name in files for end in (".ipynb", ".log")}
    elsewhere = {"oracle.log", "03_trace.html"}  # of a run that derives its limits, and of a cell that diverged
    assert files - written == elsewhere


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Night, Path, str]:
    """Return a night whose cells have a fault each, and a red control."""
    folder = tmp_path_factory.mktemp("faulty")
    text = 'schema = "parity/plan/1"\ntitle = "faults"\nheadline = "crates.io burn"\n'
    text += "".join(f'{MODEL}fault = "{fault}"\n' for fault in [*FAULTS, "die"])
    text += f'{MODEL}fault = "eps_x10@all"\ncontrol = true\n'
    (folder / "faults.toml").write_text(text)
    stream = io.StringIO()
    night, run = run_night(NightOptions(str(folder / "faults.toml"), folder / "out"), stream)
    return night, run, stream.getvalue()


@pytest.mark.parametrize("fault", FAULTS)
def test_seeded_fault_is_caught_through_the_notebook_with_a_line(faulty: tuple[Night, Path, str], fault: str) -> None:
    night, folder, text = faulty
    cell = night.cells[list(FAULTS).index(fault)]
    assert cell.outcome.value == FAULTS[fault]
    assert any(line.startswith(f"{FAULTS[fault]} model=synthetic-llama quant=Q8_0") for line in cell.lines)
    assert cell.lines[0] in text.splitlines()
    assert set(cell.lines) <= set((folder / "night.log").read_text(encoding="utf-8").splitlines())


def test_dropped_position_is_named(faulty: tuple[Night, Path, str]) -> None:
    cell = faulty[0].cells[list(FAULTS).index("drop_row=1")]
    assert any("1 positions missing: prompt 1 token" in cause for cause in cell.causes)


def test_engine_that_died_is_named_and_its_page_says_so(faulty: tuple[Night, Path, str]) -> None:
    night, folder, _ = faulty
    cell = night.cells[len(FAULTS)]
    assert cell.outcome is Outcome.INCOMPLETE
    assert any("SIGABRT" in cause for cause in cell.causes)
    page = (folder / cell.html).read_text(encoding="utf-8")
    assert "SIGABRT" in page
    assert ".partial" not in page
    assert f"{cell.folder}/burn.log" in page


def test_control_is_caught_and_the_night_ends_with_one(faulty: tuple[Night, Path, str]) -> None:
    night, _, text = faulty
    assert (night.cells[-1].control, night.cells[-1].good) == (True, True)
    assert any(line.startswith("CONTROL model=synthetic-llama") for line in text.splitlines())
    assert (night.outcome, night.exit_status) == (Outcome.DIVERGED, 1)
