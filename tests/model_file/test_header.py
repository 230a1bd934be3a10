"""A GGUF file is read as it lies there, or refused; nothing else happens on damaged bytes."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.header import ModelFile
from parity_lib.models.synthetic import Shape, build

SMALL = Shape(n_layer=1, n_vocab=64, n_ff=256)


def write_words(path: Path, words: list[str], *, turned: bool = False, note: str = "") -> Path:
    """Write a file with a small vocabulary and one tensor; ``turned`` writes the keys in the other order."""
    writer = gguf.GGUFWriter(path, "llama")
    steps = [
        lambda: writer.add_token_list(words),
        lambda: writer.add_token_types([1] * len(words)),
        lambda: writer.add_tokenizer_model("gpt2"),
        lambda: writer.add_add_bos_token(False),
    ]
    if note:
        writer.add_description(note)
    for step in reversed(steps) if turned else steps:
        step()
    writer.add_tensor("t", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_arrays_and_scalars_read_as_gguf_reads_them(tmp_path: Path) -> None:
    path = write_words(tmp_path / "a.gguf", ["a", "", "Ġä", "<s>"])
    file, theirs = ModelFile(path), gguf.GGUFReader(path)
    assert [word.decode() for word in file.strings("tokenizer.ggml.tokens")] == ["a", "", "Ġä", "<s>"]
    assert file.count("tokenizer.ggml.tokens") == 4
    assert file.value("tokenizer.ggml.token_type") == theirs.fields["tokenizer.ggml.token_type"].contents()
    assert file.value("tokenizer.ggml.add_bos_token") is False
    assert file.value("tokenizer.ggml.model") == "gpt2"
    assert file.value("no.such.key") is None
    assert file.count("no.such.key") is None
    assert list(file.strings("no.such.key")) == []
    with pytest.raises(ModelFileError, match="array of strings"):
        file.value("tokenizer.ggml.tokens")


def test_tensors_lie_where_gguf_finds_them(tmp_path: Path) -> None:
    path = build("qwen2", "Q4_K_M", tmp_path / "m.gguf", SMALL)
    ours, theirs = ModelFile(path).tensors, gguf.GGUFReader(path).tensors
    assert list(ours) == [t.name for t in theirs]
    for their in theirs:
        our = ours[their.name]
        assert (our.type, our.n_bytes, our.offset) == (their.tensor_type.name, their.n_bytes, their.data_offset)
        assert our.shape == tuple(reversed(their.shape.tolist()))
        whole = gguf.dequantize(their.data, their.tensor_type)
        assert our.dequantize().tobytes() == np.ascontiguousarray(whole).tobytes()
        assert our.dequantize(1, 3).tobytes() == np.ascontiguousarray(whole[1:3]).tobytes()


def test_digest_is_the_documented_form(tmp_path: Path) -> None:
    """Recompute the canonical form by hand: sorted keys, GGUF's own encoding."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    words = ["x", "yz"]
    pairs = {
        "tokenizer.ggml.add_bos_token": struct.pack("<IB", 7, 0),
        "tokenizer.ggml.model": struct.pack("<I", 8) + text("gpt2"),
        "tokenizer.ggml.token_type": struct.pack("<IIQ2i", 9, 5, 2, 1, 1),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, 2) + b"".join(map(text, words)),
    }
    canonical = b"".join(text(key) + value for key, value in sorted(pairs.items()))
    found = ModelFile(write_words(tmp_path / "a.gguf", words)).digest("tokenizer.")
    assert found == hashlib.sha256(canonical).hexdigest()


def test_digest_sees_the_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    first = ModelFile(write_words(tmp_path / "a.gguf", ["a", "b"])).digest("tokenizer.")
    turned = ModelFile(write_words(tmp_path / "b.gguf", ["a", "b"], turned=True, note="other")).digest("tokenizer.")
    swapped = ModelFile(write_words(tmp_path / "c.gguf", ["b", "a"])).digest("tokenizer.")
    assert first == turned
    assert first != swapped


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = write_words(tmp_path / "whole.gguf", ["a", "bc", "def"]).read_bytes()
    cut = tmp_path / "cut.gguf"
    n_data = 24  # six float32; the padding behind them may be missing
    last = len(whole.rstrip(b"\0"))
    assert last > len(whole) - 32 - n_data
    for length in range(len(whole) - 32):
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"cut\.gguf"):
            ModelFile(cut)


def test_no_flipped_bit_of_the_header_ends_in_a_foreign_exception(tmp_path: Path) -> None:
    whole = write_words(tmp_path / "whole.gguf", ["a", "bc"]).read_bytes()
    path, refused = tmp_path / "flipped.gguf", 0
    for bit in range(0, 8 * (len(whole) - 32), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            ModelFile(path)
        except ModelFileError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"", "ends inside the header"),
        (b"GGUF\x01\0\0\0", "found 1"),
        (b"GGUF\0\0\0\x03", "big-endian"),
        (b"PK\x03\x04whatever", "magic"),
    ],
)
def test_what_is_not_gguf_is_named(tmp_path: Path, head: bytes, word: str) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelFileError, match=word):
        ModelFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"absent\.gguf.*No such file"):
        ModelFile(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="found a folder"):
        ModelFile(tmp_path)
