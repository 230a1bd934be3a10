"""Prompts as token ids, and token ids as text for the reader. The reference's own tokenizer decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError, RecordError
from parity_lib.base.files import write_atomic
from parity_lib.base.names import TOP_JUDGED
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import NO_TOKENIZER, ModelFacts, made_up_tokens
from parity_lib.records.prompts import PromptSuite
from parity_lib.records.traces import PairTrace

WORDS_FILE = "words.json"


def prompt_tokens(suite: PromptSuite, facts: ModelFacts, reference: Worker) -> list[list[int]]:
    """Return the ids of each prompt: BOS and EOS as the file's metadata says; special tokens in the text stay text.

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


def token_text(facts: ModelFacts, reference: Worker, n_vocab: int) -> dict[int, bytes]:
    """Return the bytes of every token by id; empty for a file without a vocabulary."""
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
    write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())
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
