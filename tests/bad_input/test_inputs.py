"""Ids, prompts and plans that do not exist or ask for what cannot be: refused by name, with nothing run or written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parity_lib.base.errors import UsageError
from parity_lib.base.names import Outcome
from parity_lib.cli.app import main
from parity_lib.records import store
from parity_lib.records.prompts import load_prompts

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
HEAD = 'schema = "parity/plan/1"\ntitle = "a test"\nheadline = "a test"\n'
CELL = '[[cell]]\nmodel = "synthetic-llama"\nquant = "Q8_0"\n'

Clear = Callable[[str, str], None]


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Return a function that runs a plan, finds it refused before anything is made, and returns what is said."""

    def give(text: str) -> str:
        path, out = tmp_path / "plan.toml", tmp_path / "out"
        path.write_text(text)
        assert main(["nightly", "--plan", str(path), "--out", str(out)]) == 2
        assert not out.exists()
        return capsys.readouterr().err

    return give


def test_prompt_longer_than_the_context(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model has 64 positions: the text alone, or what is to be generated, is more."""
    text = PROMPTS.read_text()
    long = {
        "text": text.replace("def fibonacci(n):", "def fibonacci(n): " * 40),
        "tokens": text.replace("n_tokens = 5", "n_tokens = 500000"),
    }
    for name, content in long.items():
        prompts, out = tmp_path / f"{name}.toml", tmp_path / name
        prompts.write_text(content)
        assert main(["run", str(sound), "--prompts", str(prompts), "--out", str(out), "--threads", "1"]) == 3
        said = capsys.readouterr().out
        assert "INCOMPLETE model=sound" in said
        assert "prompt 1 (second): a prompt does not fit the model; expected 1 to 64 tokens" in said
        assert "next: shorten the prompt" in said
        verdict = store.load_verdict(out)
        assert verdict.outcome is Outcome.INCOMPLETE
        assert "does not fit" in verdict.causes[0]
        assert not list(out.glob("**/*.part"))
        assert not (out / ".spool").exists()


def test_unknown_prompt_id(
    tmp_path: Path, plan: Callable[[str], str], capsys: pytest.CaptureFixture[str], clear: Clear
) -> None:
    with pytest.raises(UsageError) as caught:
        load_prompts(PROMPTS).get("secund")
    assert caught.value.exit_status == 2
    assert "'secund' (did you mean second?); expected 0 to 1, or one of first, second" in str(caught.value)
    out = tmp_path / "run"
    assert main(["run", "synthetic-llama", "Q8_0", "--prompts", str(tmp_path / "none.toml"), "--out", str(out)]) == 2
    clear(capsys.readouterr().err, "none.toml")
    assert not out.exists()
    assert "no-such-prompts.toml" in plan(HEAD + CELL + 'prompts = "no-such-prompts.toml"\n')


@pytest.mark.parametrize(
    "words",
    [
        ["run", "synthetic-lama", "Q8_0", "--out", "out"],
        ["faults", "synthetic-lama", "Q8_0", "--out", "out"],
        ["bands", "synthetic-lama", "Q8_0"],
        ["models", "prepare", "synthetic-lama"],
        ["models", "stage", "synthetic-lama", "Q8_0", str(PROMPTS)],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_unknown_model_id(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    text = capsys.readouterr().err
    assert "did you mean synthetic-llama" in text
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


def test_unknown_model_id_in_a_plan(plan: Callable[[str], str]) -> None:
    assert "did you mean synthetic-llama" in plan(HEAD + CELL.replace("llama", "lama"))


def test_an_unknown_id_leaves_the_record_of_an_earlier_run(tmp_path: Path) -> None:
    record = tmp_path / "verdict.json"
    record.write_text("an earlier run")
    assert main(["run", "synthetic-lama", "Q8_0", "--out", str(tmp_path)]) == 2
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("verdict.json", "an earlier run")]


@pytest.mark.parametrize("text", [HEAD, HEAD + "cell = []\n"])
def test_empty_plan(plan: Callable[[str], str], text: str, clear: Clear) -> None:
    said = plan(text)
    assert "the plan is empty" in said
    assert "at least one [[cell]]" in said
    assert "plan.toml" in said


def test_plan_naming_a_missing_notebook(plan: Callable[[str], str]) -> None:
    said = plan(HEAD + CELL + 'notebook = "03_no_such"\n')
    assert "names a notebook that is not there" in said
    assert "02_logits" in said
    assert "found 03_no_such" in said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "'schema' is missing"),
        ("schema = [", "not valid TOML"),
        ("\x00\xff", "not valid TOML"),
        (HEAD.replace("plan/1", "plan/9") + CELL, "of another version"),
        (HEAD + CELL + "limit = 3\n", "unknown key 'limit' (did you mean limit_s?)"),
    ],
)
def test_plan_that_is_no_plan(plan: Callable[[str], str], text: str, named: str) -> None:
    assert named in plan(text)
