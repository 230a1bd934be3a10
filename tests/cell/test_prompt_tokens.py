"""Prompts for models without a vocabulary, and the texts that a reader needs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from parity_lib.base.errors import RecordError
from parity_lib.cell import prompt_tokens
from parity_lib.model_file.facts import made_up_tokens
from parity_lib.records.prompts import Prompt, PromptSuite


def test_made_up_tokens_are_the_documented_ones() -> None:
    text = "Hauptstadt – Paris"
    found = made_up_tokens(text, 1000)
    digest = hashlib.sha256(text.encode() + b"/3").digest()
    assert found[3] == int.from_bytes(digest[:8], "big") % 1000
    assert len(found) == 5  # 20 bytes
    assert found == made_up_tokens(text, 1000)
    assert found != made_up_tokens(text + ".", 1000)[:5]


def test_made_up_tokens_are_at_least_two_and_inside_the_vocabulary() -> None:
    assert len(made_up_tokens("a", 7)) == 2
    assert set(made_up_tokens("word " * 200, 7)) == set(range(7))


def test_words_survive_bytes_that_are_no_text(tmp_path: Path) -> None:
    suite = PromptSuite((Prompt(0, "short-1", "short", "x", 1, "w"),), "0" * 64, tmp_path)
    text = {7: b" the", 300: b"\xe4\xb8", 2: b'"\\'}
    prompt_tokens.save_words(text, suite, tmp_path)
    assert prompt_tokens.load_words(tmp_path) == (text, {0: "short-1"})


def test_words_that_are_not_there_are_none_and_damaged_ones_an_error(tmp_path: Path) -> None:
    assert prompt_tokens.load_words(tmp_path) == ({}, {})
    (tmp_path / prompt_tokens.WORDS_FILE).write_text('{"tokens": {"7": "zz"}, "prompts": {}}')
    with pytest.raises(RecordError, match="cannot be read"):
        prompt_tokens.load_words(tmp_path)
