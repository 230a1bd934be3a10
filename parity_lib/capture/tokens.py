"""Prompts as token ids, and token ids as text for the reader. The reference's own tokenizer decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parity_lib.engines.worker import Worker
from parity_lib.errors import EngineError, RecordError
from parity_lib.model_file import ModelFacts
from parity_lib.names import TOP_JUDGED
from parity_lib.prompts import PromptSuite
from parity_lib.traces import PairTrace

WORDS_FILE = "words.json"
NO_TOKENIZER = "none"
BYTES_PER_TOKEN = 4  # of a made-up prompt: about what a trained tokenizer takes of English


def prompt_tokens(suite: PromptSuite, facts: ModelFacts, reference: Worker) -> list[list[int]]:
    """Return the ids of each prompt: special tokens as the file's metadata says, nothing parsed out of the text.

    A file without a vocabulary gets ids made from the text, see :func:`made_up_tokens`.

    Raises:
        EngineError: a prompt and its continuation do not fit the model's context.
    """
    if facts.tokenizer == NO_TOKENIZER:
        prompts = [made_up_tokens(prompt.text, facts.n_vocab) for prompt in suite.prompts]
    else:
        prompts = [reference.call("tokenize", prompt.text) for prompt in suite.prompts]
    for prompt, tokens in zip(suite.prompts, prompts, strict=True):
        n_rows = len(tokens) + prompt.n_tokens - 1
        if not tokens or n_rows > facts.n_ctx_train:
            raise EngineError(
                "a prompt does not fit the model",
                place=f"prompt {prompt.idx} ({prompt.name})",
                expected=f"1 to {facts.n_ctx_train} tokens with its continuation",
                found=f"{len(tokens)} and {prompt.n_tokens} generated",
                next_step="shorten the prompt's text or its n_tokens",
            )
    return prompts


def made_up_tokens(text: str, n_vocab: int) -> list[int]:
    """Return token ids for a model without vocabulary, one for each 4 bytes of UTF-8, at least two.

    Id i is the first 8 bytes, big-endian, of SHA-256(text + "/" + i in decimal), modulo ``n_vocab``: the same on
    every machine, different for every prompt.
    """
    data = text.encode()
    n_tokens = max(2, -(-len(data) // BYTES_PER_TOKEN))
    digests = (hashlib.sha256(data + b"/" + str(i).encode()).digest() for i in range(n_tokens))
    return [int.from_bytes(digest[:8], "big") % n_vocab for digest in digests]


def token_text(facts: ModelFacts, reference: Worker, n_vocab: int) -> dict[int, bytes]:
    """Return the bytes of every token, or nothing for a file without a vocabulary."""
    if facts.tokenizer == NO_TOKENIZER:
        return {}
    return dict(enumerate(reference.call("token_bytes", list(range(n_vocab)))))


def used_text(text: Mapping[int, bytes], pair: PairTrace) -> dict[int, bytes]:
    """Return the text of the ids that a reader of this pair can meet: fed tokens and both top-5s."""
    sides = (pair.reference, pair.candidate)
    arrays = [side.topk_ids[:, :TOP_JUDGED].ravel() for side in sides] + [pair.reference.fed_id]
    return {int(i): text[int(i)] for i in np.unique(np.concatenate(arrays)) if int(i) in text}


def save_words(text: Mapping[int, bytes], suite: PromptSuite, folder: Path) -> Path:
    """Write token texts (bytes in hex: half a character is no text) and prompt names beside the traces."""
    data = {
        "tokens": {str(token): value.hex() for token, value in sorted(text.items())},
        "prompts": {str(prompt.idx): prompt.name for prompt in suite.prompts},
    }
    path = folder / WORDS_FILE
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def load_words(folder: Path | str) -> tuple[dict[int, bytes], dict[int, str]]:
    """Return (token id -> bytes, prompt index -> name) of a cell's folder; empty where there is no such file.

    Raises:
        RecordError: the file is there and damaged.
    """
    path = Path(folder) / WORDS_FILE
    if not path.exists():
        return {}, {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        words = {int(token): bytes.fromhex(value) for token, value in data["tokens"].items()}
        return words, {int(idx): str(name) for idx, name in data["prompts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError("the token texts cannot be read", place=path, expected="words.json", found=error) from error
