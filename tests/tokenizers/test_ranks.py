"""Ranks from elsewhere than the model file: what they give, and that T1 holds llama.cpp to them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from parity_lib.base.errors import EngineError, ModelFileError, PinError
from parity_lib.base.names import Outcome
from parity_lib.cell import t1_tokens
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t1_known_differences import load_differences
from parity_lib.judge.t1_tokens import TokenizerPair, judge_tokens
from parity_lib.models import fetch
from parity_lib.records.pins import FilePin, load_pins
from parity_lib.records.verdicts import Divergence, RungResult
from parity_lib.tokenizers.build import BuiltTokenizer
from parity_lib.tokenizers.metadata import TokenizerMetadata, read_metadata
from parity_lib.tokenizers.ranks import RankTokenizer, pin_for
from parity_lib.tokenizers.texts import Text
from parity_lib.tokenizers.vocabulary_cases import ensure_vocabulary, load_vocabulary_pins

TEXTS = [
    Text("dose", "prompts", "The patient's dose is 12345 mg; they'LL take it."),
    Text("marks/000", "marks", "re\u0301sume\u0301 [PAD151646] x"),
    Text("invalid/000", "invalid", "\ud800"),
]


@pytest.fixture(scope="module")
def vocabulary() -> Path:
    return ensure_vocabulary(next(pin for pin in load_vocabulary_pins() if pin.name == "qwen2")).path


@pytest.fixture(scope="module")
def metadata(vocabulary: Path) -> TokenizerMetadata:
    return read_metadata(vocabulary)


@pytest.fixture(scope="module")
def reference(vocabulary: Path) -> Iterator[Worker]:
    with Worker("llama_vocabulary", {"path": str(vocabulary), "n_threads": 1}) as worker:
        yield worker


@pytest.fixture(scope="module")
def ordinary(metadata: TokenizerMetadata) -> list[bytes]:
    return BuiltTokenizer(metadata).token_bytes()[: load_pins().ranks[0].n_tokens]


def write(path: Path, tokens: Sequence[bytes]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of the rank file, empty."""
    path = tmp_path / "qwen-ranks.tiktoken"
    monkeypatch.setattr(fetch, "ranks_path", lambda _: path)
    return path


def trust(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pin a rank file as it is, whatever it holds."""
    pin = FilePin(path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    pins = load_pins()
    monkeypatch.setattr(t1_tokens, "load_pins", lambda: replace(pins, ranks=(replace(pins.ranks[0], file=pin),)))


def judged(metadata: TokenizerMetadata, reference: Worker) -> tuple[RungResult, list[Divergence], str]:
    """Judge three texts, with the ranks."""
    built = BuiltTokenizer(metadata)
    results = t1_tokens.tokenise_all(built, TEXTS, load_differences(), reference, lambda *_: None)
    held, ranks = t1_tokens.hold_to_ranks(built, TEXTS, results, reference)
    found = t1_tokens.compare_bytes(built.token_bytes(), built.n_tokens, built.n_tokens, reference)
    groups = {text.group: 1 for text in TEXTS}
    rung, divergences, record = judge_tokens(
        TokenizerPair("", groups, held, found, built.facts(), ranks), load_differences()
    )
    return rung, divergences, record.ranks


@pytest.mark.engine
def test_the_pinned_ranks_are_those_of_the_vocabulary_in_the_sdist(ordinary: list[bytes], tmp_path: Path) -> None:
    """The pinned file was published apart from llama.cpp; that it is these tokens in this order holds its pin."""
    path = write(tmp_path / "made", ordinary)
    assert load_pins().ranks[0].file.accepts(hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.engine
def test_llama_cpp_is_held_to_the_ranks(
    metadata: TokenizerMetadata, reference: Worker, ordinary: list[bytes], here: Path
) -> None:
    write(here, ordinary)
    rung, divergences, words = judged(metadata, reference)
    assert (rung.outcome, divergences) == (Outcome.PARITY, [])
    assert "151643 tokens' bytes held to the ranks qwen-ranks too" in rung.note
    assert words.startswith("ids and 151643 tokens' bytes")


@pytest.mark.engine
def test_ranks_that_are_not_here_are_named_with_the_command(
    metadata: TokenizerMetadata, reference: Worker, here: Path
) -> None:
    rung, _, words = judged(metadata, reference)
    assert rung.outcome is Outcome.PARITY
    assert "not held to the ranks qwen-ranks, which are not here: parity models fetch qwen-ranks" in rung.note
    assert "not held" in words


@pytest.mark.engine
def test_two_ranks_in_each_others_place_are_caught(
    metadata: TokenizerMetadata, reference: Worker, ordinary: list[bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ordinary.index(b" dose"), ordinary.index(b" patient")
    swapped = list(ordinary)
    swapped[first], swapped[second] = ordinary[second], ordinary[first]
    write(here, swapped)
    with pytest.raises(PinError, match="not the pinned one"):
        judged(metadata, reference)
    trust(here, monkeypatch)
    rung, lines, _ = judged(metadata, reference)
    assert rung.outcome is Outcome.DIVERGED
    assert {line.where for line in lines} == {"dose", f"token/{min(first, second)}"}
    assert all("ranks " in line.note for line in lines)


@pytest.mark.engine
def test_a_difference_that_the_ranks_do_not_share_is_not_excused(
    metadata: TokenizerMetadata, reference: Worker, ordinary: list[bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The composed text differs for a listed reason; ranks without its whole word show other ids than the metadata."""
    lost = list(ordinary)
    lost[BuiltTokenizer(metadata).encode("r\u00e9sum\u00e9")[0]] = b"no text has this \xff\xfe"
    write(here, lost)
    trust(here, monkeypatch)
    _, lines, _ = judged(metadata, reference)
    assert "marks/000" in {line.where for line in lines}


def tiny(**more: object) -> TokenizerMetadata:
    tokens = ("a", "b", "c", "ab", "abc", "<tool>", "<|end|>")
    fields = {"types": (1, 1, 1, 1, 1, 4, 3), "merges": (), "bos": None, "eos": None} | more
    return TokenizerMetadata(path=Path("tiny"), pre="qwen2", tokens=tokens, **fields)  # type: ignore[arg-type]


def test_merges_go_by_rank_and_user_defined_tokens_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "ranks", [b"a", b"b", b"c", b"bc", b"ab"])
    ranks = RankTokenizer(path, tiny())
    assert ranks.encode("abc") == [0, 3]  # bc comes before ab
    assert ranks.encode("ab<tool>c") == [4, 5, 2]
    assert RankTokenizer(path, tiny(bos=6)).encode("a") == [6, 0]
    with pytest.raises(EngineError, match="lone surrogates"):
        ranks.encode("a\ud800")


def test_ranks_are_for_one_vocabulary() -> None:
    [pin] = load_pins().ranks
    assert pin_for(tiny(), (pin,)) is None, "another number of ordinary tokens"
    assert pin_for(tiny(), (replace(pin, n_tokens=5),)) is not None
    assert pin_for(replace(tiny(), pre="llama-bpe"), (replace(pin, n_tokens=5),)) is None


@pytest.mark.parametrize(
    ("text", "words"), [("YQ== 0\nYg== 2\n", "gaps"), ("YQ==\n", "rank file"), ("? 0\n", "rank file")]
)
def test_a_file_that_is_no_list_of_ranks_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "ranks").write_text(text)
    with pytest.raises(ModelFileError, match=words):
        RankTokenizer(tmp_path / "ranks", tiny())
