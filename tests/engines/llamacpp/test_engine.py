"""The reference, for real: batch-invariance to the last bit, refusals, read-back, pins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from msgspec import structs

from parity_lib.base.errors import EngineError, ModelFileError, PinError
from parity_lib.base.names import Settings
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import read_tensors
from parity_lib.records.runs import LlamaRun

pytestmark = pytest.mark.engine

Bits = npt.NDArray[np.uint32]
N_VOCAB, N_CTX_TRAIN = 512, 1024  # of the tiny models in conftest.py
CONTROL, TEXT_CONTROL, TEXT_BOS = "<|im_end|>", 256, 257  # of its text model


@contextmanager
def reference(path: Path, target: str, settings: str = "strict", **named: object) -> Iterator[Worker]:
    # One thread: two would wait for each other at every op of these tiny graphs when other tests run beside them.
    kwargs = {"path": str(path), "isa": target, "settings": settings, "n_threads": 1, **named}
    with Worker("llama_cpp", kwargs, env=worker_env(settings)) as worker:
        yield worker


@pytest.fixture(scope="module", params=["Q8_0", "Q4_1", "Q4_K_M", "F32"])
def strict(request: pytest.FixtureRequest, tiny_models: dict[str, Path], target: str) -> Iterator[Worker]:
    with reference(tiny_models[request.param], target) as worker:
        yield worker


@pytest.fixture(scope="module")
def one(tiny_models: dict[str, Path], target: str) -> Iterator[Worker]:
    with reference(tiny_models["Q8_0"], target) as worker:
        yield worker


@pytest.fixture(scope="module")
def text(text_model: Path, target: str) -> Iterator[Worker]:
    with reference(text_model, target) as worker:
        yield worker


def tokens(n: int, seed: int = 1) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, N_VOCAB, n)]


def read(spool: Path) -> npt.NDArray[np.float32]:
    return np.fromfile(spool, "<f4").reshape(-1, N_VOCAB)


def bits(spool: Path) -> Bits:
    return read(spool).view(np.uint32)


@pytest.mark.parametrize("n_prompt", [1, 2, 7, 64, 513])
def test_strict_prefill_equals_decode_to_the_last_bit(strict: Worker, n_prompt: int, tmp_path: Path) -> None:
    prompt = tokens(n_prompt)
    generated = strict.call("generate", [prompt], [40], tmp_path / "decode")[0]
    fed = prompt + generated[:-1]
    assert strict.call("score", [fed], tmp_path / "prefill") == [n_prompt + 39]
    decode, prefill = bits(tmp_path / "decode"), bits(tmp_path / "prefill")
    assert decode.shape == prefill.shape == (n_prompt + 39, N_VOCAB)
    assert np.array_equal(decode, prefill)
    assert [int(np.argmax(row)) for row in read(tmp_path / "prefill")[n_prompt - 1 :]] == generated


def test_strict_rows_do_not_depend_on_threads(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    for n_threads in (1, 2):
        with reference(tiny_models["Q4_K_M"], target, n_threads=n_threads) as worker:
            worker.call("score", [tokens(100)], tmp_path / str(n_threads))
    assert np.array_equal(bits(tmp_path / "1"), bits(tmp_path / "2"))


def test_strict_rows_do_not_depend_on_the_batch(one: Worker, tmp_path: Path) -> None:
    fed = [tokens(30, 1), tokens(7, 2)]
    for batch in (1, 8, 512):
        assert one.call("score", fed, tmp_path / str(batch), batch=batch) == [30, 7]
    assert np.array_equal(bits(tmp_path / "1"), bits(tmp_path / "512"))
    assert np.array_equal(bits(tmp_path / "8"), bits(tmp_path / "512"))
    for batch in (0, 513):
        with pytest.raises(EngineError, match="no such batch"):
            one.call("score", fed, tmp_path / "none", batch=batch)


def test_an_f16_cache_differs_from_strict_in_its_attention_alone(
    tiny_models: dict[str, Path], target: str, tmp_path: Path
) -> None:
    infos: dict[str, LlamaRun] = {}
    for settings in ("strict", "flash_f16"):
        with reference(tiny_models["Q4_K_M"], target, settings) as worker:
            worker.call("score", [tokens(64)], tmp_path / settings)
            infos[settings] = worker.call("run_info")
    flash = infos["flash_f16"].settings
    assert [flash.flash_attn, flash.type_k, flash.type_v] == ["enabled", "f16", "f16"]
    assert flash.model_params == infos["strict"].settings.model_params
    assert flash.environment == infos["strict"].settings.environment
    assert "CPU_REPACK" not in infos["flash_f16"].isa_evidence.weight_buffers_mib
    strict, other = read(tmp_path / "strict"), read(tmp_path / "flash_f16")
    assert 0 < float(np.sqrt(np.mean((strict - other) ** 2)) / strict.std()) < 0.2


def test_each_sequence_starts_from_an_empty_cache(one: Worker, tmp_path: Path) -> None:
    a, b = tokens(30, 1), tokens(20, 2)
    assert one.call("score", [a, b, a], tmp_path / "together") == [30, 20, 30]
    one.call("score", [b], tmp_path / "alone")
    together = bits(tmp_path / "together")
    assert np.array_equal(together[30:50], bits(tmp_path / "alone"))
    assert np.array_equal(together[:30], together[50:])
    assert not np.array_equal(together[0], together[1]), "rows must depend on their tokens"


def test_default_settings_compute_the_same_model_by_another_path(
    tiny_models: dict[str, Path], target: str, tmp_path: Path
) -> None:
    for settings in ("strict", "default"):
        with reference(tiny_models["Q4_K_M"], target, settings) as worker:
            worker.call("score", [tokens(64)], tmp_path / settings)
    strict, default = read(tmp_path / "strict"), read(tmp_path / "default")
    relative = float(np.sqrt(np.mean((strict - default) ** 2)) / strict.std())
    assert 0 < relative < 0.2  # 0.08 on real weights, 1 for unrelated rows


def test_progress_counts_rows(one: Worker, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    one.call("score", [tokens(20)] * 5, tmp_path / "spool", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)


def test_greedy_takes_the_lower_id_of_equal_logits(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.gguf"
    path.write_bytes(tiny_models["F32"].read_bytes())
    output = read_tensors(path)["output.weight"]
    rows = np.memmap(path, np.float32, "r+", output.offset, output.shape)
    rows[1::2] = rows[::2]  # ids 2i and 2i + 1 now have the same logit, bit by bit
    rows.flush()
    with reference(path, target) as worker:
        generated = worker.call("generate", [tokens(5)], [20], tmp_path / "spool")[0]
    logits = read(tmp_path / "spool")
    assert np.array_equal(logits[:, ::2], logits[:, 1::2])
    assert [token % 2 for token in generated] == [0] * 20


def test_prompts_of_many_lengths_are_generated_in_order(one: Worker, tmp_path: Path) -> None:
    prompts = [tokens(3, 1), tokens(9, 2)]
    generated = one.call("generate", prompts, [1, 4], tmp_path / "spool")
    assert [len(g) for g in generated] == [1, 4]
    rows = read(tmp_path / "spool")
    assert len(rows) == 3 + 12
    assert int(np.argmax(rows[2])) == generated[0][0]
    assert int(np.argmax(rows[11])) == generated[1][0]


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([], "no sequence was given"),
        ([[1], []], "sequence 1"),
        ([[1, N_VOCAB]], "outside of the vocabulary"),
        ([[-1]], "outside of the vocabulary"),
        ([[0] * (N_CTX_TRAIN + 1)], f"1 to {N_CTX_TRAIN} tokens"),
    ],
)
def test_what_cannot_be_fed_is_refused_before_any_work(
    one: Worker, sequences: list[list[int]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=words):
        one.call("score", sequences, tmp_path / "spool")
    assert not list(tmp_path.iterdir())
    assert one.call("score", [[1]], tmp_path / "spool") == [1], "a refusal must not cost the engine"


@pytest.mark.parametrize("n_tokens", [[], [0], [2, 2], [N_CTX_TRAIN]])
def test_a_wrong_number_of_tokens_is_refused(one: Worker, n_tokens: list[int], tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        one.call("generate", [[1, 2]], n_tokens, tmp_path / "spool")
    assert not list(tmp_path.iterdir())


def test_the_whole_context_of_the_model_can_be_used(one: Worker, tmp_path: Path) -> None:
    assert one.call("score", [tokens(N_CTX_TRAIN)], tmp_path / "spool") == [N_CTX_TRAIN]
    assert one.call("run_info").settings.n_ctx == N_CTX_TRAIN


def test_a_given_context_is_a_limit(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    with reference(tiny_models["Q8_0"], target, n_ctx=300) as worker:
        assert worker.call("score", [tokens(300)], tmp_path / "spool") == [300]
        with pytest.raises(EngineError, match="1 to 300 tokens"):
            worker.call("score", [tokens(301)], tmp_path / "spool")


def test_a_closed_engine_refuses(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    with reference(tiny_models["Q8_0"], target) as worker:
        worker.call("close")
        worker.call("close")
        for method, args in (("score", ([[1]], tmp_path / "spool")), ("run_info", ()), ("tokenize", ("x",))):
            with pytest.raises(EngineError, match="the engine is closed"):
                worker.call(method, *args)


def test_a_polite_end_frees_everything_and_exits_with_0(tiny_models: dict[str, Path], target: str) -> None:
    with reference(tiny_models["Q8_0"], target) as worker:
        process = worker._process
    assert process.returncode == 0


# Text


def test_special_tokens_come_from_the_metadata_and_never_from_the_text(text: Worker) -> None:
    prompt = f"he said {CONTROL} and <s>."
    ids = text.call("tokenize", prompt)
    assert ids[0] == TEXT_BOS
    assert TEXT_CONTROL not in ids
    assert TEXT_BOS not in ids[1:]
    assert b"".join(text.call("token_bytes", ids[1:])).decode() == prompt
    assert text.call("token_bytes", [TEXT_CONTROL, TEXT_BOS]) == [CONTROL.encode(), b"<s>"]


@pytest.mark.parametrize("prompt", ["", "\0", "a\0b", "Grüße, 患者 🩺", "x" * 100])
def test_any_text_survives_tokenising(text: Worker, prompt: str) -> None:
    ids = text.call("tokenize", prompt)
    assert b"".join(text.call("token_bytes", ids[1:])).decode() == prompt


def test_text_that_is_no_text_is_refused(text: Worker) -> None:
    with pytest.raises(EngineError, match="not valid Unicode"):
        text.call("tokenize", "\ud800")
    with pytest.raises(EngineError, match="outside of the vocabulary"):
        text.call("token_bytes", [99999])


def test_a_model_without_vocabulary_is_refused_and_not_aborted(one: Worker) -> None:
    for method, argument in (("tokenize", "hello"), ("token_bytes", [1])):
        with pytest.raises(EngineError, match="has no vocabulary"):
            one.call(method, argument)


# What ran, and what must not run


def test_run_info_says_what_really_ran(tiny_models: dict[str, Path], target: str, tmp_path: Path) -> None:
    path = tiny_models["Q4_K_M"]
    infos: dict[str, LlamaRun] = {}
    for settings in Settings:
        with reference(path, target, settings, n_threads=2) as worker:
            worker.call("score", [tokens(10)], tmp_path / "spool")
            infos[settings] = worker.call("run_info")
    strict, default = infos["strict"], infos["default"]
    assert strict.commit.removesuffix("-dirty") == strict.build.commit[:7]
    assert strict.build.target == target
    assert strict.model_path == path.name
    assert strict.model_sha256 == sha256_file(path)
    assert (strict.isa_requested, strict.isa_observed) == (target, "unproven")
    assert (strict.settings.flash_attn, default.settings.flash_attn) == ("disabled", "enabled")
    assert (strict.kv_type, default.kv_type) == ("f32", "f16")
    assert "CPU_REPACK" in default.isa_evidence.weight_buffers_mib
    assert strict.settings.type_v == "f32"
    assert strict.settings.model_params["use_extra_bufts"] is False
    assert strict.settings.n_threads == strict.settings.n_threads_batch == strict.n_threads == 2
    assert strict.settings.environment["GGML_CPU_TILED_MM"] == "0"
    assert "CPU_REPACK" not in strict.isa_evidence.weight_buffers_mib
    assert strict.seconds > 0
    assert strict.peak_rss_bytes > 10 << 20
    assert structs.replace(strict, fault="x") != strict


@pytest.mark.parametrize("switches", [{}, {"GGML_CPU_TILED_MM": "1"}, {"GGML_CPU_DISABLE_FUSION": "1"}])
def test_a_process_with_other_switches_is_refused(
    tiny_models: dict[str, Path], target: str, switches: dict[str, str]
) -> None:
    settings = "strict" if switches else "default"
    with pytest.raises(EngineError, match="started with other switches"):
        Worker("llama_cpp", {"path": str(tiny_models["Q8_0"]), "isa": target, "settings": settings}, env=switches)


def test_another_target_than_the_build_is_refused(tiny_models: dict[str, Path], target: str) -> None:
    for other in {"avx2", "avx512", "amx", "neon"} - {target}:
        with pytest.raises(PinError, match="of another ISA target"), reference(tiny_models["Q8_0"], other):
            pass


def _missing(path: Path) -> None:
    path.unlink()


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a model at all" * 100)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(_missing, "the file cannot be opened"), (_truncated, "llama.cpp's log"), (_garbage, "llama.cpp's log")],
)
def test_a_damaged_file_is_refused_with_llama_cpps_own_words(
    tiny_models: dict[str, Path], target: str, damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_models["Q8_0"].read_bytes())
    damage(path)
    with pytest.raises(ModelFileError, match=words), reference(path, target):
        pass
