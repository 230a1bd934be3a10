"""Rung T1 for real: llama.cpp against tokenizers, on the vocabularies without weights that its sdist holds."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from parity_lib.base.errors import EngineError, ModelFileError, PinError
from parity_lib.base.names import Outcome
from parity_lib.cell.t1_tokens import compare_bytes, compare_tokens_of, compare_vocabulary_cases, tokenise_all
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t1_known_differences import load_differences
from parity_lib.judge.t1_tokens import TokenizerPair, judge_tokens
from parity_lib.model_file.facts import read_facts
from parity_lib.records.verdicts import Divergence
from parity_lib.tokenizers import vocabulary_cases
from parity_lib.tokenizers.build import BuiltTokenizer, byte_alphabet
from parity_lib.tokenizers.metadata import TokenizerMetadata, read_metadata
from parity_lib.tokenizers.texts import Text, generated_texts
from parity_lib.tokenizers.vocabulary_cases import Vocabulary, ensure_vocabulary, load_vocabulary_pins
from tests.speaking_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    array_value,
    byte_level,
    scored,
    speaking_model,
)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def llama_bpe() -> Vocabulary:
    return ensure_vocabulary(next(pin for pin in load_vocabulary_pins() if pin.name == "llama-bpe"))


@pytest.fixture(scope="module")
def metadata(llama_bpe: Vocabulary) -> TokenizerMetadata:
    return read_metadata(llama_bpe.path)


@pytest.fixture(scope="module")
def reference(llama_bpe: Vocabulary) -> Iterator[Worker]:
    with Worker("llama_vocabulary", {"path": str(llama_bpe.path), "n_threads": 1}) as worker:
        yield worker


TEXTS = [
    Text("dose", "prompts", "The patient's dose is 12345 mg; they'LL take it."),
    Text("code", "prompts", "def f(x):\n    return x  # <|eot_id|>\n"),
    Text("numbers", "prompts", "2024 1999 0.75"),
]


def silent(_done: int, _total: int) -> None:
    """Show no progress."""


def differing(built: BuiltTokenizer, reference: Worker) -> tuple[Outcome, list[Divergence]]:
    """Judge three prompts only."""
    results = tokenise_all(built, TEXTS, load_differences(), reference, silent)
    found = compare_bytes(built.token_bytes(), built.n_tokens, built.n_tokens, reference)
    pair = TokenizerPair("", {"prompts": len(TEXTS)}, results, found, built.facts())
    rung, divergences, _ = judge_tokens(pair, load_differences())
    return rung.outcome, divergences


def test_all_vocabulary_cases_and_generated_texts_of_five_families() -> None:
    rung, divergences, record = compare_vocabulary_cases()
    assert divergences == []
    assert rung.outcome is Outcome.PARITY, rung.note
    assert set(record) == {"llama-bpe", "qwen2", "refact", "llama-spm", "phi-3", "gpt-neox"}
    for name, own in record.items():
        cases = own.classes["cases"]
        n_cases = 0 if name == "gpt-neox" else 46
        assert (cases.expected, cases.texts, cases.different) == (n_cases, n_cases, 0)
        assert sum(row.texts for row in own.classes.values()) >= n_cases + 400
        assert own.bytes.compared == own.tokenizer["n_vocab"] >= 32_000
    assert {k.name for k in record["qwen2"].known if k.texts} == {"qwen2-composed-form", "unicode-16"}
    assert {k.name for k in record["phi-3"].known if k.texts} == {"control-by-name"}


def test_the_sound_tokenizer_gives_the_reference_s_ids(metadata: TokenizerMetadata, reference: Worker) -> None:
    assert differing(BuiltTokenizer(metadata), reference) == (Outcome.PARITY, [])


def test_a_dropped_merge_is_caught() -> None:
    vocabulary = ensure_vocabulary(next(pin for pin in load_vocabulary_pins() if pin.name == "refact"))
    sound = read_metadata(vocabulary.path, family="smollm")
    rest = tuple(pair for pair in sound.merges if "".join(pair) != "Ġreturn")
    assert len(rest) == len(sound.merges) - 1
    with Worker("llama_vocabulary", {"path": str(vocabulary.path), "n_threads": 1}) as reference:
        assert differing(BuiltTokenizer(sound), reference) == (Outcome.PARITY, [])
        outcome, (line,) = differing(BuiltTokenizer(replace(sound, merges=rest)), reference)
    assert outcome is Outcome.DIVERGED
    assert line.where == "code"


def test_a_wrong_pre_tokenizer_is_caught(metadata: TokenizerMetadata, reference: Worker) -> None:
    outcome, lines = differing(BuiltTokenizer(replace(metadata, pre="qwen2")), reference)
    assert outcome is Outcome.DIVERGED
    assert {line.where for line in lines} == {"dose", "numbers"}  # digits alone, where the family keeps three together


@pytest.mark.parametrize("bos", [None, 128001])
def test_a_wrong_bos_is_caught_at_the_first_id(metadata: TokenizerMetadata, reference: Worker, bos: int | None) -> None:
    outcome, lines = differing(BuiltTokenizer(replace(metadata, bos=bos)), reference)
    assert outcome is Outcome.DIVERGED
    assert len(lines) == len(TEXTS)
    assert all("number 0: llama.cpp [128000" in line.note for line in lines)


def test_control_tokens_are_never_found_in_a_text(metadata: TokenizerMetadata, reference: Worker) -> None:
    built = BuiltTokenizer(metadata)
    for name in ("<|eot_id|>", "<|begin_of_text|>", "<|reserved_special_token_7|>"):
        token = metadata.tokens.index(name)
        assert token not in built.encode(f"a {name} b")[1:]
        assert built.encode(name) == reference.call("tokenize", name)


def test_a_lone_surrogate_is_refused_by_both_and_the_worker_lives(
    metadata: TokenizerMetadata, reference: Worker
) -> None:
    with pytest.raises(EngineError, match="not valid Unicode"):
        BuiltTokenizer(metadata).encode("a\ud800")
    with pytest.raises(EngineError, match="not valid Unicode"):
        reference.call("tokenize", "a\ud800")
    assert reference.call("tokenize", "") == [128000]


def test_generated_texts_are_many_all_named_and_the_same_again() -> None:
    texts = generated_texts(["<|own|>"])
    assert len(texts) >= 400
    assert len({item.name for item in texts}) == len(texts)
    assert texts == generated_texts(["<|own|>"])
    assert any("\0" in item.text for item in texts)
    assert any(item.text == "" for item in texts)
    assert any("<|own|>" in item.text for item in texts)


def test_the_byte_alphabet_has_a_letter_for_each_byte() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet) == list(range(256))
    assert len(set(alphabet.values())) == 256
    assert (alphabet[0x20], alphabet[0x0A], alphabet[0x41]) == ("Ġ", "Ċ", "A")


def small_file(path: Path, *, model: str = "gpt2", pre: str = "smollm", **changes: object) -> Path:
    """Write a vocabulary of the 256 bytes, one merge and one control token; no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(changes.get("tokens", [*byte_alphabet().values(), "he", "<s>"]))
    writer.add_token_types(changes.get("types", [1] * 257 + [3]))
    writer.add_token_merges(changes.get("merges", ["h e"]))
    if changes.get("add_bos"):
        writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_small_file_is_read_and_built(tmp_path: Path) -> None:
    built = BuiltTokenizer(read_metadata(small_file(tmp_path / "a.gguf")))
    assert built.encode("he<s>")[0] == 256
    assert 257 not in built.encode("he<s>")
    assert built.token_bytes()[256:] == [b"he", b"<s>"]
    assert (built.metadata.bos, built.metadata.eos) == (None, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "bert"}, "expected gpt2 or llama; found bert"),
        (
            {"pre": "deepseek-llm"},
            "expected smollm or llama-bpe or qwen2 or deepseek-r1-qwen or default; found deepseek-llm",
        ),
        ({"model": "llama"}, "bytes have no token; expected <0x00> to <0xF4>; found none for 0x0, 0x1,"),
        ({"types": [1, 1]}, "token types do not fit"),
        ({"merges": ["he"]}, "a merge is not a pair"),
        ({"tokens": ["a", "a"], "types": [1, 1]}, "tokens are not a vocabulary"),
        ({"add_bos": True}, "a special token is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = small_file(tmp_path / "bad.gguf", **changes)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=words) as caught:
        read_metadata(path)
    assert "bad.gguf: tokenizer.ggml." in str(caught.value)


def test_a_merge_outside_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = small_file(tmp_path / "bad.gguf", merges=["x y"])
    with pytest.raises(ModelFileError, match="merges do not fit"):
        BuiltTokenizer(read_metadata(path))


def test_a_vocabulary_with_another_hash_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin = next(pin for pin in load_vocabulary_pins() if pin.name == "llama-bpe")
    with pytest.raises(PinError, match="not the pinned one"):
        vocabulary_cases._keep(b"other bytes", pin.sha256["inp"], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_vocabulary_file_that_is_not_there_is_refused_by_llama_cpp(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="the file cannot be opened"):
        Worker("llama_vocabulary", {"path": str(tmp_path / "none.gguf"), "n_threads": 1})
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelFileError, match="cannot load"):
        Worker("llama_vocabulary", {"path": str(path), "n_threads": 1})


def bool_value(value: bool) -> bytes:
    """Return a truth value as GGUF has it."""
    return struct.pack("<IB", gguf.GGUFValueType.BOOL, value)


def test_deepseek_s_qwen_is_cut_as_llama_cpp_cuts_it(tmp_path: Path) -> None:
    path = speaking_model(tmp_path / "r1.gguf", byte_level("deepseek-r1-qwen"), arch="qwen2")
    with Worker("llama_vocabulary", {"path": str(path), "n_threads": 1}) as reference:
        texts = [(text.name, text.text) for text in TEXTS]
        rung, divergences, record = compare_tokens_of(path, read_facts(path), texts, reference, silent)
    assert (rung.outcome, divergences) == (Outcome.PARITY, [])
    assert record.tokenizer["pre"] == "deepseek-r1-qwen"
    assert rung.compared == rung.expected > 400


def compare(path: Path, *more: str) -> tuple[Outcome, list[Divergence], str]:
    """Return T1 of a file: its outcome, its lines and its note."""
    with Worker("llama_vocabulary", {"path": str(path), "n_threads": 1}) as reference:
        texts = [(text.name, text.text) for text in TEXTS] + [(text, text) for text in more]
        rung, divergences, _ = compare_tokens_of(path, read_facts(path), texts, reference, silent)
    assert rung.compared == rung.expected > 400
    return rung.outcome, divergences, rung.note


@pytest.mark.parametrize("pre", [None, "", "default"])
def test_without_a_pre_tokenizer_both_cut_by_llama_cpp_s_default(tmp_path: Path, pre: str | None) -> None:
    path = speaking_model(tmp_path / "default.gguf", byte_level(pre))
    outcome, lines, note = compare(path)
    assert (outcome, lines) == (Outcome.PARITY, [])
    assert "the file names no pre-tokenizer: both cut by llama.cpp's default" in note


@pytest.mark.parametrize("family", ["smollm", "qwen2"])
def test_the_rules_of_a_family_are_not_the_default(family: str) -> None:
    vocabulary = ensure_vocabulary(next(pin for pin in load_vocabulary_pins() if pin.name == "gpt-neox"))
    metadata = read_metadata(vocabulary.path)
    assert metadata.pre == "default"
    with Worker("llama_vocabulary", {"path": str(vocabulary.path), "n_threads": 1}) as reference:
        assert differing(BuiltTokenizer(metadata), reference) == (Outcome.PARITY, [])
        outcome, lines = differing(BuiltTokenizer(replace(metadata, pre=family)), reference)
    assert outcome is Outcome.DIVERGED
    assert "numbers" in {line.where for line in lines}


@pytest.mark.parametrize("prefix", [None, True, False])
def test_pieces_are_merged_by_score_as_llama_cpp_merges_them(tmp_path: Path, prefix: bool | None) -> None:
    given = {} if prefix is None else {"tokenizer.ggml.add_space_prefix": bool_value(prefix)}
    path = speaking_model(tmp_path / "scored.gguf", scored({"[INST]": USER_DEFINED}) | given)
    assert compare(path)[:2] == (Outcome.PARITY, [])
    with_prefix = read_metadata(path)
    assert with_prefix.space_prefix is (prefix is not False)
    built = BuiltTokenizer(replace(with_prefix, space_prefix=not with_prefix.space_prefix))
    with Worker("llama_vocabulary", {"path": str(path), "n_threads": 1}) as reference:
        assert differing(built, reference)[0] is Outcome.DIVERGED


def test_equal_scores_are_merged_from_the_left_and_another_score_is_caught(tmp_path: Path) -> None:
    path = speaking_model(tmp_path / "scored.gguf", scored({"eta": NORMAL, "et": NORMAL, "ta": NORMAL}))
    sound = read_metadata(path)
    assert [sound.tokens[token] for token in BuiltTokenizer(sound).encode("etaa")] == ["<s>", "\u2581", "eta", "a"]
    scores = list(sound.scores)
    scores[sound.tokens.index("et")] = -20.0
    with Worker("llama_vocabulary", {"path": str(path), "n_threads": 1}) as reference:
        for text in ("etaa", "eta etaeta", "taeta"):
            assert BuiltTokenizer(sound).encode(text) == reference.call("tokenize", text)
        other = BuiltTokenizer(replace(sound, scores=tuple(scores)))
        assert other.encode("ett") != reference.call("tokenize", "ett")


@pytest.mark.parametrize("kind", [CONTROL, UNUSED])
def test_llama_cpp_merges_what_sentencepiece_does_not(tmp_path: Path, kind: int) -> None:
    path = speaking_model(tmp_path / "scored.gguf", scored({"<|": NORMAL, "|>": NORMAL, "<||>": kind}))
    built = BuiltTokenizer(read_metadata(path))
    tokens = built.metadata.tokens
    assert [tokens[token] for token in built.encode("<||>")] == ["<s>", "\u2581", "<|", "|>"]
    with Worker("llama_vocabulary", {"path": str(path), "n_threads": 1}) as reference:
        assert tokens.index("<||>") in reference.call("tokenize", "<||>")
    outcome, lines, _ = compare(path, "<||>")
    assert (outcome, lines[0].where) == (Outcome.DIVERGED, "<||>")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("remove_extra_whitespaces", bool_value(True), "normalised in a way that is not supported"),
        ("scores", array_value(gguf.GGUFValueType.FLOAT32, "f", [0.0] * 511), "expected 512 numbers; found 511, 0 of"),
        ("scores", array_value(gguf.GGUFValueType.FLOAT32, "f", [float("nan")] * 512), "found 512, 512 of them not a"),
        ("token_type", array_value(gguf.GGUFValueType.INT32, "i", [BYTE] * 512), "a byte's token has another name"),
    ],
)
def test_scored_file_that_contradicts_itself_is_refused(tmp_path: Path, key: str, value: bytes, words: str) -> None:
    path = speaking_model(tmp_path / "scored.gguf", scored() | {f"tokenizer.ggml.{key}": value})
    with pytest.raises(ModelFileError, match=words) as caught:
        read_metadata(path)
    assert "scored.gguf: tokenizer.ggml." in str(caught.value)


def test_sentencepiece_file_without_a_byte_is_refused(tmp_path: Path) -> None:
    path = speaking_model(tmp_path / "scored.gguf", scored(without=["<0xC3>", "<0x65>"]))  # e has a token of its own
    with pytest.raises(ModelFileError, match=r"bytes have no token; .* found none for 0xc3; next"):
        read_metadata(path)
