"""The prompt suite: numbers in order, names unique, either finds the prompt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError, UsageError
from parity_lib.records.prompts import PromptSuite, load_prompts


def write(folder: Path, *entries: str, head: str = 'schema = "parity/prompts/1"\n') -> Path:
    path = folder / "prompts.toml"
    path.write_text(head + "".join(f"[[prompt]]\n{entry}\n" for entry in entries), "utf-8")
    return path


def entry(idx: int, name: str, **changes: str) -> str:
    fields = {"idx": str(idx), "name": f'"{name}"', "bucket": '"b"', "text": '"t"', "n_tokens": "5", "why": '"w"'}
    return "\n".join(f"{key} = {value}" for key, value in (fields | changes).items())


@pytest.fixture(scope="module")
def suite() -> PromptSuite:
    return load_prompts()


def test_the_shipped_suite_has_ten_prompts_in_five_buckets_of_two_and_a_long_one(suite: PromptSuite) -> None:
    assert len(suite) == 11
    assert sorted(Counter(prompt.bucket for prompt in suite.prompts).values()) == [1, 2, 2, 2, 2, 2]
    assert Counter(prompt.n_tokens for prompt in suite.prompts) == {50: 9, 200: 2}
    assert [prompt.idx for prompt in suite.prompts if len(prompt.text) > 7000] == [10]
    assert all(prompt.why and prompt.text for prompt in suite.prompts)


def test_a_prompt_is_found_by_number_and_by_name(suite: PromptSuite) -> None:
    third = suite.prompts[3]
    assert suite.get(3) is suite.get("3") is suite.get(third.name) is third


@pytest.mark.parametrize("key", ["11", "-1", -1, "", "³", "no-such-prompt"])
def test_an_unknown_prompt_lists_what_there_is(suite: PromptSuite, key: str | int) -> None:
    with pytest.raises(UsageError, match="0 to 10, or one of"):
        suite.get(key)


def test_a_file_of_ones_own_keeps_its_text_as_it_is(tmp_path: Path) -> None:
    suite = load_prompts(write(tmp_path, entry(0, "mine", text='"""  a\\nb 你好 <|im_end|> """')))
    assert suite.prompts[0].text == "  a\nb 你好 <|im_end|> "
    assert suite.path.name == "prompts.toml"


def test_one_changed_letter_changes_the_digest(tmp_path: Path) -> None:
    first = load_prompts(write(tmp_path, entry(0, "a"))).sha256
    assert load_prompts(write(tmp_path, entry(0, "b"))).sha256 != first


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([entry(1, "a")], "idx = 0"),
        ([entry(0, "a"), entry(2, "b")], "idx = 1"),
        ([entry(0, "a"), entry(1, "a")], "taken twice"),
        ([entry(0, "7")], "is a number"),
        ([entry(0, "a", n_tokens="0")], ">= 1"),
        ([entry(0, "a", n_tokens='"50"')], "wrong type"),
        ([entry(0, "a", text='""')], "'text' is empty"),
        ([entry(0, "a", why='" "')], "'why' is empty"),
        ([entry(0, "a", temperature="0.7")], "unknown key 'temperature'"),
    ],
)
def test_a_mistake_is_refused(tmp_path: Path, entries: list[str], words: str) -> None:
    with pytest.raises(FixtureError, match=words):
        load_prompts(write(tmp_path, *entries))


def test_no_prompt_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FixtureError, match="is missing"):
        load_prompts(write(tmp_path))
    with pytest.raises(FixtureError, match="holds no prompt"):
        load_prompts(write(tmp_path, head='schema = "parity/prompts/1"\nprompt = []\n'))
    with pytest.raises(FixtureError, match="cannot be read"):
        load_prompts(tmp_path / "none.toml")
