"""The command line as a user meets it: help, exit status, one clear paragraph for each error, red controls."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from parity_lib.cli.app import cli, main
from parity_lib.cli.options import run_folder
from parity_lib.model_file.facts import read_tensors

PROMPTS = (Path(__file__).parents[1] / "two_prompts.toml").read_text()
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.toml"
    path.write_text(PROMPTS)
    return path


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, str]:
    """A run at parity on one thread: its status, its folder and what it prints."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "prompts.toml").write_text(PROMPTS)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status, out = run_model(folder, folder / "prompts.toml", "--threads", "1")
    return status, out, printed.getvalue()


def run_model(tmp_path: Path, prompts: Path, *words: str, name: str = "run") -> tuple[int, Path]:
    out = tmp_path / name
    status = main(["run", "synthetic-llama", "Q8_0", "--prompts", str(prompts), "--out", str(out), *words])
    return status, out


NAMES = [
    "doctor",
    "nightly",
    "run",
    "compare",
    "bands",
    "faults",
    "finding",
    "isa",
    "baseline",
    "kernels",
    "predict",
    "replay",
    "spread",
    "stack",
    "trace",
    "models",
]
COMMANDS = [[], *([name] for name in NAMES)]
COMMANDS += [["models", name] for name in ("list", "prepare", "verify", "fetch", "stage")]
COMMANDS += [["finding", name] for name in ("check", "fix")]
COMMANDS += [["isa", name] for name in ("build", "prove", "split")]
COMMANDS += [["stack", name] for name in ("build", "compare", "diagnose", "list", "ops", "prove", "reader", "tiles")]


def test_help_on_everything(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for words in COMMANDS:
        status = main([*words, "--help"])
        text = capsys.readouterr().out
        begins = text.startswith(f"Usage: parity {' '.join(words)}".rstrip())
        if status != 0 or not begins or len(text.splitlines()) <= 3:
            wrong.append((" ".join(words), status, text))
    assert wrong == []


def test_every_command_is_in_the_list_above() -> None:
    groups = {name: getattr(command, "commands", {}) for name, command in cli.commands.items()}
    found = [[name] for name in groups] + [[name, inner] for name, inners in groups.items() for inner in inners]
    assert sorted(found) == sorted(words for words in COMMANDS if words)


def test_an_option_is_the_same_in_every_command() -> None:
    found: dict[str, set[tuple[object, ...]]] = {}
    groups = [cli, *(command for command in cli.commands.values() if hasattr(command, "commands"))]
    for command in (command for group in groups for command in group.commands.values()):
        for option in command.params:
            if option.opts[0] in ("--isa", "--stack", "--compute", "--fault", "--prompts", "--threads"):
                kind = (option.name, str(option.type), option.default, option.help, option.metavar)
                found.setdefault(option.opts[0], set()).add(kind)
    threads = found.pop("--threads")
    assert {len(kinds) for kinds in found.values()} == {1}
    assert len(threads) == 2  # those of an engine without a cell: at least one, two by default
    assert len(found) == 5


def test_a_run_without_a_folder_gets_one_of_its_own() -> None:
    folder = run_folder("/models/Tiny.Q8_0.gguf", "", "bands")
    assert folder.parent == ROOT / "reports" / "runs"
    assert re.fullmatch(r"\d{8}T\d{6}Z-Tiny\.Q8_0-bands", folder.name)


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom parity_lib.cli.app import main\nmain(['--help'])\n"
        "heavy = {'numpy', 'gguf', 'papermill', 'nbconvert', 'matplotlib', 'jsonschema', 'llama_cpp', 'burn_gguf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_night_starts_without_the_slow_packages() -> None:
    code = (
        "import sys, parity_lib.night.night, parity_lib.cell.steps\n"
        "slow = {'papermill', 'nbformat', 'nbconvert', 'matplotlib', 'jsonschema', 'llama_cpp', 'burn_gguf'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nightli"], "nightli"),
        (["nightly", "--fast"], "--fast"),
        (["nightly", "--plan", "smoky"], "no such plan"),
        (["run"], "MODEL"),
        (["run", "smollm2-135n", "Q8_0"], "smollm2-135m"),
        (["run", "smollm2-135m", "Q9_0"], "Q8_0"),
        (["run", "synthetic-llama", "Q8_0", "--isa", "sse"], "target"),
        (["run", "synthetic-llama", "Q8_0", "--stack", "overlai"], "stack"),
        (["run", "synthetic-llama", "Q8_0", "--compute", "f31"], "compute"),
        (["run", "synthetic-llama", "Q8_0", "--prompts", "no-such.toml"], "no-such.toml"),
        (["models", "prepare", "smollm2-135n"], "smollm2-135m"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_two_and_name_what_there_is(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, *(["--out", str(tmp_path / "out")] if words[0] == "run" and len(words) > 1 else [])]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error


def test_file_that_cannot_be_read_is_three_and_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + struct.pack("<I", 3) + b"\xff" * 40)
    for path in (tmp_path / "none.gguf", broken):
        assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 3
        error = capsys.readouterr().err
        assert path.name in error
        assert "Traceback" not in error
        assert len(error.strip().splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "run", str(tmp_path / "none.gguf"), "--out", str(tmp_path / "out")]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.engine
def test_doctor_names_machine_engines_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    text = capsys.readouterr().out
    for word in (
        "machine",
        "ISA target of this machine",
        "llama.cpp",
        "burn extension",
        "smollm2-135m Q8_0",
        "disk: cache",
    ):
        assert word in text
    assert status == (3 if "\nFAIL" in f"\n{text}" else 0)
    assert text.count("next:") >= text.count("FAIL")


def test_models_list_shows_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--all"]) == 0
    text = capsys.readouterr().out
    for word in ("smollm2-135m", "synthetic-qwen2", "llama-3-8b", "not staged"):
        assert word in text


@pytest.mark.slow
def test_run_then_compare_the_stored_traces(sound: tuple[int, Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, text = sound
    assert (status, "PARITY: synthetic-llama · Q8_0" in text, "unpinned" in text) == (0, True, True)
    assert "T4 twin" in text
    assert {"verdict.json", "twin.npz", "native.npz", "limits.json", "words.json"} <= {p.name for p in out.iterdir()}
    assert not (out / ".spool").exists()
    assert main(["compare", str(out), str(out)]) == 0
    assert "PARITY" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_are_bit_equal_on_one_machine_and_compare_says_so(
    sound: tuple[int, Path, str], tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sound[1]
    _, second = run_model(tmp_path, prompts, "--threads", "2", name="second")
    capsys.readouterr()
    for side in ("reference", "candidate"):
        assert main(["compare", str(first), str(second), "--side", side]) == 0
        assert "worst 0," in capsys.readouterr().out


@pytest.mark.slow
def test_seeded_fault_is_one_with_a_line(
    sound: tuple[int, Path, str], tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out = run_model(tmp_path, prompts, "--fault", "rope_base=20000")
    text = capsys.readouterr().out
    assert status == 1
    lines = [line for line in text.splitlines() if line.startswith("DIVERGED model=synthetic-llama quant=Q8_0")]
    assert "rung=T3" in lines[0]
    assert any("rung=T4" in line for line in lines)
    assert lines[0].split("kind=")[0] in (out / "divergences.jsonl").read_text()
    assert main(["compare", str(sound[1]), str(out)]) == 1
    assert "DIVERGED" in capsys.readouterr().out


@pytest.mark.slow
def test_dropped_position_is_three_and_named(tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = run_model(tmp_path, prompts, "--fault", "drop_row=1")
    assert status == 3
    assert "prompt 1 token 4" in capsys.readouterr().out


@pytest.mark.slow
def test_engine_that_dies_is_three_and_named(tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run_model(tmp_path, prompts, "--fault", "die")
    text = capsys.readouterr().out
    assert status == 3
    assert "INCOMPLETE model=synthetic-llama" in text
    assert "SIGABRT" in text
    assert not (out / ".spool").exists()


@pytest.mark.slow
def test_flipped_bit_in_a_weight_block_is_one_and_names_the_tensor(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from parity_lib.models.ensure import ensure
    from parity_lib.records.pins import load_pins

    source = ensure("synthetic-llama", "Q8_0", load_pins())
    tensor = next(t for t in read_tensors(source).values() if t.name == "blk.1.ffn_down.weight")
    spoiled = tmp_path / "spoiled.gguf"
    shutil.copyfile(source, spoiled)
    with spoiled.open("r+b") as file:
        file.seek(tensor.offset + 34 * 7 + 5)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x40]))
    status, _ = run_model(tmp_path, prompts, "--candidate-file", str(spoiled))
    text = capsys.readouterr().out
    assert status == 1
    line = next(line for line in text.splitlines() if line.startswith("DIVERGED") and "rung=T2" in line)
    assert "where=blk.1.ffn_down.weight kind=TENSOR" in line
    assert "block 7" in line


@pytest.mark.slow
def test_any_gguf_file_is_a_model(tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from parity_lib.models.ensure import ensure
    from parity_lib.records.pins import load_pins

    own = tmp_path / "my-model.gguf"
    shutil.copyfile(ensure("synthetic-qwen2", "Q8_0", load_pins()), own)
    words = ["--prompts", str(prompts), "--out", str(tmp_path / "out")]
    assert main(["run", str(own), *words]) == 0
    assert "PARITY: my-model · Q8_0" in capsys.readouterr().out
    assert main(["run", str(own), "Q4_0", *words]) == 2
    assert "another quant" in capsys.readouterr().err


def test_compare_refuses_what_is_no_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 3
    assert "no cell's folder" in capsys.readouterr().err
