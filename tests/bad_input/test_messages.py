"""The cause stands in the first line: what ended an engine, what a model holds, what a path is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.base.surroundings import kind_of
from parity_lib.cli.app import main
from parity_lib.engines.worker.client import last_words
from parity_lib.tokenizers.build import byte_alphabet

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
Clear = Callable[[str, str], None]


def copy_with_vocabulary(source: Path, path: Path, tokens: list[str]) -> Path:
    """Write a model of 256 tokens again, with these tokens as its vocabulary."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_vocabulary_with_a_token_twice_quotes_the_assertion(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = list(byte_alphabet().values())
    tokens[200] = tokens[201]
    path = copy_with_vocabulary(sound, tmp_path / "twice.gguf", tokens)
    out = tmp_path / "out"
    assert main(["run", str(path), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(out)]) == 3
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("INCOMPLETE model="))
    assert "GGML_ASSERT(id_to_token.size() == token_to_id.size()) failed" in line
    assert "killed by SIGABRT" in line
    assert str(out / "llama_cpp.log") in line
    assert "Fatal Python error" not in said
    assert "most recent call first" not in said


def test_scales_that_are_no_numbers_are_no_matter_of_disk_room(
    spoil: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], clear: Clear
) -> None:
    name = "blk.0.ffn_down.weight"
    path = spoil(lambda file: file.put("H", file.data_start + file.offsets[name], 0x7E00))
    words = ["run", str(path), "--prompts", str(PROMPTS), "--threads", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 3
    said = "".join(capsys.readouterr())
    assert name in said
    assert "invalid data" in said
    for word in ("room", "space", "disk"):
        assert word not in said


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", ""),
        ("Fatal Python error: Aborted\n  File x\n", ""),
        (
            "/a/b/ggml.c:12: GGML_ASSERT(a(b) == c) failed\nFatal Python error",
            "ggml.c:12: GGML_ASSERT(a(b) == c) failed",
        ),
        (
            "terminate called after throwing an instance of 'std::out_of_range'\n  what():  vector::at\nFatal",
            "terminate called after throwing an instance of 'std::out_of_range' what(): vector::at",
        ),
        ("python: /a/x.cpp:7: int f(): Assertion `n > 0' failed.\n", "x.cpp:7: int f(): Assertion `n > 0' failed"),
        ("/a/b/ggml-cpu.c:12: fatal error\n", "ggml-cpu.c:12: fatal error"),
    ],
)
def test_last_words(log: str, words: str) -> None:
    assert last_words(log) == words


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    """What is no regular file, each with the name of one."""
    found = {kind: tmp_path / f"{kind.split()[-1]}.gguf" for kind in ("a pipe", "a folder", "a socket", "a device")}
    os.mkfifo(found["a pipe"])
    found["a folder"].mkdir()
    with socket.socket(socket.AF_UNIX) as opened:
        before = Path.cwd()
        os.chdir(tmp_path)  # a socket's path has 107 characters at most
        opened.bind("socket.gguf")
        os.chdir(before)
    found["a device"].symlink_to("/dev/null")
    return found


def test_what_is_no_file_is_refused_at_once(
    odd: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], clear: Clear
) -> None:
    """A pipe would wait for somebody who writes into it."""
    out = ["--threads", "1", "--out", str(tmp_path / "out")]
    for kind, path in odd.items():
        assert kind_of(path) == kind
        commands = [
            (["run", str(path), *out], 3),
            (["run", "synthetic-llama", "Q8_0", "--prompts", str(path), *out], 2),
            (["run", "synthetic-llama", "Q8_0", "--candidate-file", str(path), *out], 3),
            (["kernels", str(path), *out], 3),
            (["faults", "synthetic-llama", "Q8_0", "--faults", str(path), *out], 2),
        ]
        for words, status in commands:
            assert main(words) == status, words
            said = capsys.readouterr().err
            clear(said, path.name)
            assert f"found {kind}" in said
        assert main(["nightly", "--plan", str(path), "--out", str(tmp_path / "out")]) == 2
        assert f"found {kind}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(["models", "stage", "llama-3-8b", "Q8_0", str(odd["a pipe"])]) == 3
    assert "found a pipe" in capsys.readouterr().err
