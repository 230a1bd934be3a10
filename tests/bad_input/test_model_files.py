"""A GGUF file spoiled at one place: both readers and the front door refuse it by name, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from parity_lib.cli import main

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
N_TENSORS_AT, N_KEYS_AT, FIRST_KEY_AT = 8, 16, 24  # bytes of a GGUF file: counts, then the first key's length
K = "blk.0.attn_k.weight"
Q = "blk.0.attn_q.weight"
Spoiled = Any  # of conftest.py: a copy of the sound file with ``data``, places and ``put``
Edit = Callable[[Spoiled], None]
Spoil = Callable[[Edit], Path]
Refused = Callable[[Path], tuple[str, str]]  # what the Python reader says, and the Rust one


def cut(at: Callable[[Spoiled], int]) -> Edit:
    """Return an edit that cuts the file off."""

    def edit(file: Spoiled) -> None:
        del file.data[at(file) :]

    return edit


def put(form: str, at: Callable[[Spoiled], int], *values: int) -> Edit:
    """Return an edit that writes little-endian numbers."""
    return lambda file: file.put(form, at(file), *values)


def key(name: str, value: int) -> Edit:
    """Return an edit that writes a 32-bit metadata value."""
    return lambda file: file.set_key(name, "I", value)


@pytest.mark.parametrize(
    ("edit", "python", "rust"),
    [
        (cut(lambda _: 0), "magic", "ends inside the header"),
        (cut(lambda _: 15), "left in the file", "ends inside the header"),
        (cut(lambda f: f.values["llama.block_count"]), "metadata keys, room for", "absurd number of"),
        (cut(lambda f: f.entries[K].dims), "tensors, room for", "ends inside the tensor list"),
        (cut(lambda f: f.data_start + 1000), "behind the end", "past the end of the file"),
        (cut(lambda f: len(f.data) - 33), "behind the end", "past the end of the file"),
    ],
    ids=["empty", "in-the-header", "in-the-metadata", "in-the-tensor-list", "in-the-tensors", "last-bytes"],
)
def test_truncated_file(
    spoil: Spoil,
    refused: Refused,
    edit: Edit,
    python: str,
    rust: str,
) -> None:
    said = refused(spoil(edit))
    assert python in said[0]
    assert rust in said[1]


@pytest.mark.parametrize("magic", [b"GGML", b"GGUG", b"PK\x03\x04", b"\0\0\0\0"])
def test_wrong_magic(spoil: Spoil, refused: Refused, magic: bytes) -> None:
    def edit(file: Spoiled) -> None:
        file.data[:4] = magic

    python, rust = refused(spoil(edit))
    assert f"magic {magic!r}" in python
    assert "wrong magic" in rust


def test_big_endian(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    python, rust = refused(path)
    assert "(big-endian?)" in python
    assert "big-endian" in rust


COUNTS: dict[str, tuple[Edit, str, str]] = {
    "tensors": (put("Q", lambda _: N_TENSORS_AT, 1 << 63), "9223372036854775808 tensors", "absurd number of tensors"),
    "keys": (put("Q", lambda _: N_KEYS_AT, (1 << 64) - 1), "metadata keys, room for", "absurd number of metadata"),
    "length-of-a-key": (
        put("Q", lambda _: FIRST_KEY_AT, 1 << 62),
        "4611686018427387904 bytes",
        "absurd length of a metadata",
    ),
    "dimensions": (put("I", lambda f: f.entries[K].n_dims, 1 << 31), "2147483648 dimensions", "too many dimensions"),
    "dimension": (put("Q", lambda f: f.entries[K].dims, 1 << 62), "behind the end", "absurdly large"),
    "product-of-dimensions": (put("QQ", lambda f: f.entries[K].dims, 1 << 32, 1 << 32), "behind the end", "absurdly"),
    "offset": (put("Q", lambda f: f.entries[K].offset, (1 << 64) - 32), "behind the end", "past the end"),
    "blocks": (key("llama.block_count", (1 << 32) - 1), "llama.block_count", "missing tensor"),
    "vocabulary": (key("llama.vocab_size", (1 << 32) - 1), "token_embd.weight", "wrong shape"),
    "embedding": (key("llama.embedding_length", (1 << 32) - 4), "token_embd.weight", "wrong shape"),
    "heads": (key("llama.attention.head_count", 0), "attention.head_count", "attention.head_count"),
    "context": (key("llama.context_length", 0), "context_length", "context_length"),
}


@pytest.mark.parametrize("what", COUNTS)
def test_absurd_counts_and_dimensions(spoil: Spoil, refused: Refused, what: str) -> None:
    edit, python, rust = COUNTS[what]
    said = refused(spoil(edit))
    assert python in said[0]
    assert rust in said[1]


@pytest.mark.parametrize("step", [0, 32, -32], ids=["same-start", "inside", "begins-before"])
def test_overlapping_tensors(spoil: Spoil, refused: Refused, step: int) -> None:
    path = spoil(lambda file: file.put("Q", file.entries[K].offset, file.offsets[Q] + step))
    python, rust = refused(path)
    assert "begins before" in python
    assert "tensors overlap" in rust
    assert any(name in python for name in (K, Q))


def test_tensor_that_is_not_aligned(spoil: Spoil, refused: Refused) -> None:
    path = spoil(lambda file: file.put("Q", file.entries[K].offset, file.offsets[K] + 4))
    python, rust = refused(path)
    assert "not aligned" in python
    assert "misaligned" in rust


@pytest.mark.parametrize(("number", "rust"), [(999, "number 999"), (4, "number 4"), (20, "IQ4_NL"), (27, "I64")])
def test_unknown_type(spoil: Spoil, refused: Refused, number: int, rust: str) -> None:
    """Of a number that ggml never had, one that it removed, and two that exist and are not computed with here."""
    path = spoil(lambda file: file.put("I", file.entries["rope_freqs.weight"].type, number))
    python, other = refused(path)
    assert "type" in python or "behind the end" in python
    assert rust in other


@pytest.mark.parametrize("name", [K, "blk.0.ffn_gate.weight", "output_norm.weight", "token_embd.weight"])
def test_missing_tensor(spoil: Spoil, refused: Refused, name: str) -> None:
    path = spoil(lambda file: file.rename(name, name.replace("t", "x", 1)))
    for said in refused(path):
        assert name in said
        assert "missing" in said


def test_wrong_shape(spoil: Spoil, refused: Refused) -> None:
    """Rows and columns of a matrix trade places: as many bytes, all of them in the file."""
    path = spoil(lambda file: file.put("QQ", file.entries[K].dims, 128, 256))
    python, rust = refused(path)
    assert f"{K}: a tensor is missing or has another shape" in python
    assert "expected (128, 256); found (256, 128)" in python
    assert "expected [256, 128] (ggml order); found [128, 256]" in rust


def test_text_that_is_not_utf8(spoil: Spoil, refused: Refused) -> None:
    def edit(file: Spoiled) -> None:
        file.data[file.values["general.architecture"] + 8] = 0xFF

    python, rust = refused(spoil(edit))
    assert "general.architecture" in python
    assert "general.architecture" in rust


def test_file_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path / "folder.gguf"):
        (tmp_path / "folder.gguf").mkdir(exist_ok=True)
        refused(path)


def test_candidate_file_that_cannot_be_read(
    spoil: Spoil, tmp_path: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference's file is fine, and the candidate's is not: the candidate's own reader is the one that refuses."""
    cut_off = spoil(lambda file: file.data.__delitem__(slice(len(file.data) - 5000, None)))
    words = ["run", str(sound), "--prompts", str(PROMPTS), "--threads", "1"]
    for path, said in ((cut_off, "past the end of the file"), (tmp_path / "absent.gguf", "cannot be")):
        out = tmp_path / f"out-{path.stem}"
        assert main([*words, "--out", str(out), "--candidate-file", str(path)]) == 3
        text = "".join(capsys.readouterr())
        assert path.name in text
        assert said in text
        assert "Traceback" not in text
        assert not (out / ".spool").exists()
