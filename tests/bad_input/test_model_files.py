"""A GGUF file spoiled at one place: both readers and the front door refuse it by name, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from parity_lib.cli.app import main

pytestmark = pytest.mark.engine

PROMPTS = Path(__file__).parents[1] / "two_prompts.toml"
N_TENSORS_AT, N_KEYS_AT, FIRST_KEY_AT = 8, 16, 24  # bytes of a GGUF file: counts, then the first key's length
K = "blk.0.attn_k.weight"
Q = "blk.0.attn_q.weight"
Spoiled = Any  # of conftest.py: a copy of the sound file with ``data``, places and ``put``
Edit = Callable[[Spoiled], None]
Spoil = Callable[[Edit], Path]
Refused = Callable[[Path], str]  # what both readers say


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
    ("edit", "words"),
    [
        (cut(lambda _: 0), "ends inside the header"),
        (cut(lambda _: 15), "ends inside the header"),
        (cut(lambda f: f.values["llama.block_count"]), "absurd number of"),
        (cut(lambda f: f.entries[K].dims), "ends inside the tensor list"),
        (cut(lambda f: f.data_start + 1000), "past the end of the file"),
        (cut(lambda f: len(f.data) - 33), "past the end of the file"),
    ],
    ids=["empty", "in-the-header", "in-the-metadata", "in-the-tensor-list", "in-the-tensors", "last-bytes"],
)
def test_truncated_file(spoil: Spoil, refused: Refused, edit: Edit, words: str) -> None:
    assert words in refused(spoil(edit))


@pytest.mark.parametrize(
    ("magic", "shown"),
    [(b"GGML", "GGML"), (b"GGUG", "GGUG"), (b"PK\x03\x04", r"PK\x03\x04"), (b"\0\0\0\0", r"\x00\x00\x00\x00")],
)
def test_wrong_magic(spoil: Spoil, refused: Refused, magic: bytes, shown: str) -> None:
    def edit(file: Spoiled) -> None:
        file.data[:4] = magic

    said = refused(spoil(edit))
    assert "wrong magic" in said
    assert f'found "{shown}"' in said


def test_big_endian(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "the file is big-endian" in refused(path)


COUNTS: dict[str, tuple[Edit, str]] = {
    "tensors": (put("Q", lambda _: N_TENSORS_AT, 1 << 63), "absurd number of tensors; expected at most"),
    "keys": (put("Q", lambda _: N_KEYS_AT, (1 << 64) - 1), "absurd number of metadata keys; expected at most"),
    "length-of-a-key": (put("Q", lambda _: FIRST_KEY_AT, 1 << 62), "found 4611686018427387904"),
    "dimensions": (put("I", lambda f: f.entries[K].n_dims, 1 << 31), "expected at most 4; found 2147483648"),
    "dimension": (put("Q", lambda f: f.entries[K].dims, 1 << 62), "absurdly large"),
    "product-of-dimensions": (put("QQ", lambda f: f.entries[K].dims, 1 << 32, 1 << 32), "absurdly large"),
    "offset": (put("Q", lambda f: f.entries[K].offset, (1 << 64) - 32), "ends past the end of the file"),
    "blocks": (key("llama.block_count", (1 << 32) - 1), 'missing tensor "blk.1.attn_norm.weight"'),
    "vocabulary": (key("llama.vocab_size", (1 << 32) - 1), 'tensor "token_embd.weight" has the wrong shape'),
    "embedding": (key("llama.embedding_length", (1 << 32) - 4), 'tensor "token_embd.weight" has the wrong shape'),
    "heads": (key("llama.attention.head_count", 0), '"llama.attention.head_count"'),
    "context": (key("llama.context_length", 0), '"llama.context_length"'),
}


@pytest.mark.parametrize("what", COUNTS)
def test_absurd_counts_and_dimensions(spoil: Spoil, refused: Refused, what: str) -> None:
    edit, words = COUNTS[what]
    assert words in refused(spoil(edit))


@pytest.mark.parametrize("step", [0, 32, -32], ids=["same-start", "inside", "begins-before"])
def test_overlapping_tensors(spoil: Spoil, refused: Refused, step: int) -> None:
    path = spoil(lambda file: file.put("Q", file.entries[K].offset, file.offsets[Q] + step))
    said = refused(path)
    assert "tensors overlap" in said
    assert any(name in said for name in (K, Q))


def test_tensor_that_is_not_aligned(spoil: Spoil, refused: Refused) -> None:
    path = spoil(lambda file: file.put("Q", file.entries[K].offset, file.offsets[K] + 4))
    assert "misaligned; expected an offset that is a multiple of 32" in refused(path)


@pytest.mark.parametrize(("number", "found"), [(999, "number 999"), (4, "number 4"), (20, "IQ4_NL"), (27, "I64")])
def test_unknown_type(spoil: Spoil, refused: Refused, number: int, found: str) -> None:
    """Of a number that ggml never had, one that it removed, and two that exist and are not computed with here."""
    path = spoil(lambda file: file.put("I", file.entries["rope_freqs.weight"].type, number))
    said = refused(path)
    assert "type; expected one of F32 F16" in said
    assert f"found {found}" in said


@pytest.mark.parametrize("name", [K, "blk.0.ffn_gate.weight", "output_norm.weight", "token_embd.weight"])
def test_missing_tensor(spoil: Spoil, refused: Refused, name: str) -> None:
    path = spoil(lambda file: file.rename(name, name.replace("t", "x", 1)))
    assert f'missing tensor "{name}"' in refused(path)


def test_wrong_shape(spoil: Spoil, refused: Refused) -> None:
    """Rows and columns of a matrix trade places: as many bytes, all of them in the file."""
    path = spoil(lambda file: file.put("QQ", file.entries[K].dims, 128, 256))
    wrong = f'tensor "{K}" has the wrong shape; expected [256, 128] (ggml order); found [128, 256]'
    assert wrong in refused(path)


def test_text_that_is_not_utf8(spoil: Spoil, refused: Refused) -> None:
    def edit(file: Spoiled) -> None:
        file.data[file.values["general.architecture"] + 8] = 0xFF

    assert "general.architecture" in refused(spoil(edit))


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
