"""How each supported tokenizer family cuts a text: facts that a GGUF file names and does not hold.

A GGUF file names its family (``tokenizer.ggml.pre``); the rules themselves stand in the family's own
``tokenizer.json``. They were taken from there, not from llama.cpp, which has its own reading of them. The exception is
``DEFAULT``: a file without a name has no family, and no rules but llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model: byte-pair merges over bytes
SCORED = "llama"  # tokenizer.ggml.model: SentencePiece's merges by score over characters
SENTENCEPIECE = "sentencepiece"  # stands for the family of a SCORED file, whose tokenizer.ggml.pre llama.cpp ignores
DEFAULT = "default"  # of a BYTE_LEVEL file that names no pre-tokenizer, or this one

# The two patterns differ in how many digits they keep together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
GPT2 = _GPT2 + r"|\s+"


@dataclass(frozen=True, slots=True)
class Family:
    """The rules of one pre-tokenizer name."""

    lone_digits: bool  # each digit is cut out first, by tokenizers' Digits, which asks Rust's char::is_numeric
    patterns: tuple[str, ...]  # Oniguruma, one after the other; matches, and what lies between them, become pieces
    ignore_merges: bool  # a piece that is a token as a whole is not built from merges
    nfc: bool  # texts are brought to Unicode's composed form first
    add_bos: bool  # where the file does not say
    source: str
    warning: str = ""  # for T1's note: why the same ids on both sides say less than they do elsewhere


QWEN2 = Family(
    lone_digits=False,
    patterns=(_WORDS.format(digits=""),),
    ignore_merges=False,
    nfc=True,
    add_bos=False,
    source="tokenizer.json of Qwen2-7B, and transformers' Qwen2Tokenizer: NFC, then Split",
)
FAMILIES: Mapping[str, Family] = {
    "smollm": Family(
        lone_digits=True,
        patterns=(GPT2,),
        ignore_merges=False,
        nfc=False,
        add_bos=False,
        source="tokenizer.json of SmolLM2: Digits, each alone, then ByteLevel with the pattern of GPT-2's encoder.py",
    ),
    "llama-bpe": Family(
        lone_digits=False,
        patterns=(_WORDS.format(digits="{1,3}"),),
        ignore_merges=True,
        nfc=False,
        add_bos=True,
        source="tokenizer.json of Meta-Llama-3-8B: Split, ignore_merges, and a post-processor that puts BOS in front",
    ),
    "qwen2": QWEN2,
    # llama.cpp 0c1e570 cuts both by one rule (llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2), without NFC. That these
    # models' own tokenizer composes a text first is taken from transformers, which loads them by Qwen2Tokenizer (its
    # pull request 45741); their tokenizer.json was not read.
    "deepseek-r1-qwen": replace(QWEN2, source=f"{QWEN2.source}; transformers loads DeepSeek-R1-Distill-Qwen by it"),
    DEFAULT: Family(
        lone_digits=False,
        patterns=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
        ignore_merges=False,
        nfc=False,
        add_bos=False,
        source="llama.cpp 0c1e570, llama-vocab.cpp: llm_tokenizer_bpe, the last case of its switch",
        warning="the file names no pre-tokenizer: both cut by llama.cpp's default, perhaps not as in training",
    ),
}

# Letters and digits of Unicode 16.0: those that \p{L} and \p{N} of tokenizers 0.23.3 hold and llama.cpp's
# unicode-data.cpp, of 15.1, does not. Found by asking both for every code point; nothing is known to llama.cpp only.
NEW_LETTERS = (
    *((0x1C89, 0x1C8A), (0xA7CB, 0xA7CD), (0xA7DA, 0xA7DC), (0x105C0, 0x105F3), (0x10D4A, 0x10D65), (0x10D6F, 0x10D85)),
    *((0x10EC2, 0x10EC4), (0x11380, 0x11389), (0x1138B, 0x1138B), (0x1138E, 0x1138E), (0x11390, 0x113B5)),
    *((0x113B7, 0x113B7), (0x113D1, 0x113D1), (0x113D3, 0x113D3), (0x11BC0, 0x11BE0), (0x13460, 0x143FA)),
    *((0x16100, 0x1611D), (0x16D40, 0x16D6C), (0x18CFF, 0x18CFF), (0x1E5D0, 0x1E5ED), (0x1E5F0, 0x1E5F0)),
)
NEW_DIGITS = (
    *((0x10D40, 0x10D49), (0x116D0, 0x116E3), (0x11BF0, 0x11BF9), (0x16130, 0x16139), (0x16D70, 0x16D79)),
    *((0x1CCF0, 0x1CCF9), (0x1E5F1, 0x1E5FA)),
)
