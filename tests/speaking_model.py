"""A model of random weights that has a vocabulary: bytes, letters, and pairs of letters that merge, or words."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from itertools import islice, product
from pathlib import Path

import gguf

from parity_lib.models.synthetic import Shape, build
from parity_lib.models.transplant.f32_file import raw_pairs, text_value, u32_value
from parity_lib.tokenizers.build import byte_alphabet

N_VOCAB = 512
LETTERS = "etaoinshrdlucmfwyp"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_level(pre: str | None) -> dict[str, bytes]:
    """Return the metadata of a byte-level BPE of N_VOCAB tokens, the last one a control token."""
    pairs = list(islice(product(LETTERS, LETTERS), N_VOCAB - 257))
    tokens = [*byte_alphabet().values(), *(a + b for a, b in pairs), "<|end|>"]
    found = {
        "tokenizer.ggml.model": text_value("gpt2"),
        "tokenizer.ggml.tokens": texts_value(tokens),
        "tokenizer.ggml.token_type": array_value(gguf.GGUFValueType.INT32, "i", [NORMAL] * (N_VOCAB - 1) + [CONTROL]),
        "tokenizer.ggml.merges": texts_value([f"{a} {b}" for a, b in pairs]),
        "tokenizer.ggml.bos_token_id": u32_value(N_VOCAB - 1),
        "tokenizer.ggml.eos_token_id": u32_value(N_VOCAB - 1),
    }
    return found if pre is None else found | {"tokenizer.ggml.pre": text_value(pre)}


def scored(own: Mapping[str, int] | None = None, *, without: Collection[str] = ()) -> dict[str, bytes]:
    """Return the metadata of a SentencePiece tokenizer of N_VOCAB tokens, many of them with the same score.

    Args:
        own: more tokens, with their types; they merge before all others.
        without: tokens that are replaced by others.
    """
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    kinds |= dict.fromkeys(["\u2581", *LETTERS], NORMAL) | dict(own or {})
    words = (a + b + c for c in ("", *LETTERS) for a, b in product("\u2581" + LETTERS, LETTERS))
    kinds = {token: kind for token, kind in kinds.items() if token not in without}
    kinds |= dict.fromkeys(islice(words, N_VOCAB - len(kinds)), NORMAL)
    scores = [0.0 if token in (own or {}) else -1.0 - number % 9 for number, token in enumerate(kinds)]
    return {
        "tokenizer.ggml.model": text_value("llama"),
        "tokenizer.ggml.tokens": texts_value(list(kinds)),
        "tokenizer.ggml.token_type": array_value(gguf.GGUFValueType.INT32, "i", list(kinds.values())),
        "tokenizer.ggml.scores": array_value(gguf.GGUFValueType.FLOAT32, "f", scores),
    }


def words_of(model: str) -> dict[str, bytes]:
    """Return the metadata of a tokenizer of words, for ``bert`` (WordPiece) or ``t5`` (Unigram)."""
    special = ["[PAD]", "</s>", "<unk>", *(f"[unused{number}]" for number in range(97)), "[UNK]", "[CLS]", "[SEP]"]
    tokens = [*special, "[MASK]", *("\u2581" + letter for letter in LETTERS), *LETTERS]
    tokens += [a + b + c for c, a, b in islice(product(("", *LETTERS), LETTERS, LETTERS), N_VOCAB - len(tokens))]
    return {
        "tokenizer.ggml.model": text_value(model),
        "tokenizer.ggml.tokens": texts_value(tokens),
        "tokenizer.ggml.token_type": array_value(
            gguf.GGUFValueType.INT32, "i", [CONTROL, CONTROL, UNKNOWN, *[NORMAL] * (N_VOCAB - 3)]
        ),
        "tokenizer.ggml.scores": array_value(gguf.GGUFValueType.FLOAT32, "f", [-1.0] * N_VOCAB),
    }


def speaking_model(path: Path, tokenizer: Mapping[str, bytes], *, arch: str = "llama", n_vocab: int = N_VOCAB) -> Path:
    """Write a Q8_0 model of two layers with this tokenizer to ``path``."""
    dumb = build(arch, "Q8_0", path.with_suffix(".dumb"), Shape(n_layer=2, n_vocab=n_vocab))
    pairs = raw_pairs(dumb)
    data = dumb.read_bytes()
    start = 24 + sum(8 + len(key.encode()) + len(value) for key, value in pairs.items())
    (n_tensors,) = struct.unpack_from("<Q", data, 8)
    end = start
    for _ in range(n_tensors):
        end += 8 + struct.unpack_from("<Q", data, end)[0]
        end += 4 + 8 * struct.unpack_from("<I", data, end)[0] + 12
    own = {key: value for key, value in pairs.items() if not key.startswith("tokenizer.")} | tokenizer
    head = struct.pack("<4sIQQ", b"GGUF", 3, n_tensors, len(own))
    for key, value in own.items():
        head += struct.pack("<Q", len(key.encode())) + key.encode() + value
    head += data[start:end]
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data[end + -end % 32 :])
    dumb.unlink()
    return path


def texts_value(texts: list[str]) -> bytes:
    """Return an array of texts as GGUF has it."""
    body = b"".join(struct.pack("<Q", len(text.encode())) + text.encode() for text in texts)
    return struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING, len(texts)) + body


def array_value(kind: gguf.GGUFValueType, letter: str, numbers: list[int] | list[float]) -> bytes:
    """Return an array of numbers as GGUF has it."""
    head = struct.pack("<IIQ", gguf.GGUFValueType.ARRAY, kind, len(numbers))
    return head + struct.pack(f"<{len(numbers)}{letter}", *numbers)
