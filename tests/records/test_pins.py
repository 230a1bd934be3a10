"""The pins load strictly; the shipped file says what the documents say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parity_lib.base.errors import FixtureError, UsageError
from parity_lib.base.toml_table import fixture_path
from parity_lib.records.pins import DEFAULT, PRODUCTION, Pins, load_pins
from parity_lib.records.prompts import load_prompts
from parity_lib.records.tolerances import load_tolerances

TEXT = fixture_path("gguf_parity.toml").read_text("utf-8")


@pytest.fixture(scope="module")
def pins() -> Pins:
    return load_pins()


def load_changed(tmp_path: Path, old: str, new: str, *, count: int = 1) -> Pins:
    assert old in TEXT, "the planted mistake has to hit something"
    path = tmp_path / "pins.toml"
    path.write_text(TEXT.replace(old, new, count), "utf-8")
    return load_pins(path)


def test_the_reference_is_pinned_to_one_sdist_and_one_commit(pins: Pins) -> None:
    reference = pins.llama_cpp
    assert reference.binding == f"llama-cpp-python=={reference.version}"
    assert re.fullmatch("[0-9a-f]{40}", reference.commit)
    assert re.fullmatch("[0-9a-f]{64}", reference.sdist_sha256)
    assert set(reference.targets) == {"avx512", "avx2", "amx", "neon"}


@pytest.mark.parametrize("isa", ["avx512", "avx2", "amx", "neon"])
def test_every_target_spells_out_its_flags(pins: Pins, isa: str) -> None:
    args = pins.llama_cpp.build_args(isa)
    assert "-DGGML_NATIVE=OFF" in args
    assert "-DGGML_LLAMAFILE=OFF" in args
    assert "-DCMAKE_C_FLAGS=-ffp-contract=off" in args
    assert len(args) == len(set(args))
    assert pins.llama_cpp.target(isa).cpu_flags
    x86 = {word for word in args if re.match("-DGGML_(AVX|SSE|FMA|AMX)", word)}
    assert bool(x86) == (isa != "neon")
    assert ("-DGGML_AVX512=ON" in args) == (isa in ("avx512", "amx"))


def test_an_unknown_target_is_a_usage_error(pins: Pins) -> None:
    with pytest.raises(UsageError, match=r"avx1024.*did you mean avx512"):
        pins.llama_cpp.build_args("avx1024")


def test_the_command_line_is_explained_flag_by_flag(pins: Pins) -> None:
    cli = pins.llama_cpp.llama_cli
    assert cli.args[cli.args.index("--temp") + 1] == "0"
    assert set(cli.explains) == {word for word in cli.args if word.startswith("-")} | set(cli.env)
    assert {"{model}", "{prompt}", "{n_tokens}"} <= set(cli.args)
    assert cli.differs


def test_every_file_has_a_size_a_digest_a_licence_and_a_source(pins: Pins) -> None:
    assert len(pins.models) >= 9
    for pin in pins.models:
        assert pin.file.bytes > 0
        assert pin.file.known
        assert pin.licence
        assert pin.source
        assert pin.file_name == f"{pin.id}.{pin.quant}.gguf"
        assert (pin.role == PRODUCTION) == (pin.recipe.kind == "staged")


def test_default_files_have_twins_and_tokenizers(pins: Pins) -> None:
    for pin in pins.models:
        if pin.role == DEFAULT:
            assert pin.twin is not None, pin.file_name
            assert pin.bf16_twin is not None, pin.file_name
            assert pin.bf16_twin.bytes < pin.twin.bytes, pin.file_name
            assert pin.tokenizer_sha256, pin.file_name
    tokenizers = {pin.tokenizer_sha256 for pin in pins.models if pin.id == "smollm2-135m"}
    assert len(tokenizers) == 1, "quantising does not touch the tokenizer"


def test_one_file_known_from_its_publisher(pins: Pins) -> None:
    pin = pins.model("smollm2-135m", "Q4_1")
    assert pin.file.accepts("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
    assert not pin.file.accepts("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db54")
    assert not pin.file.accepts("")


def test_an_unknown_model_lists_the_known_ones_and_the_nearest(pins: Pins) -> None:
    with pytest.raises(UsageError, match=r"smolm2.*did you mean smollm2-135m.*llama-3-8b") as caught:
        pins.model("smolm2-135m", "Q8_0")
    assert caught.value.exit_status == 2
    with pytest.raises(UsageError, match=r"unknown quant of smollm2-135m 'Q8'.*did you mean Q8_0"):
        pins.model("smollm2-135m", "Q8")
    with pytest.raises(UsageError, match="unknown stack 'crates'"):
        pins.stack("crates")


def test_the_stack_names_exact_versions(pins: Pins) -> None:
    crates = pins.stack("crates-io").crates
    assert crates["burn-ndarray"] == "0.21.0"
    assert crates["matrixmultiply"] == "0.3.11"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", version) for version in crates.values())


def test_the_digest_of_the_file_is_of_its_bytes(tmp_path: Path, pins: Pins) -> None:
    assert load_changed(tmp_path, "schema", "# one more comment\nschema").sha256 != pins.sha256


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('schema = "parity/pins/1"', 'schema = "parity/pins/9"', "another version"),
        ("sdist_bytes", "sdist_byte", "is missing"),
        ('commit = "0c1e57098', 'commit = "0C1e57098', "40 lower-case hex digits"),
        ('commit = "0c1e57098', 'commit = "0c1e57', "40 lower-case hex digits"),
        ('version = "0.3.36"', 'version = "0.3.35"', "binding and version differ"),
        ("[llama_cpp.targets.avx2]", "[llama_cpp.targets.avx3]", "unknown ISA target 'avx3'"),
        ('"--no-repack" =', '"--repack" =', "one explanation for each flag"),
        ('role = "default"', 'role = "defaults"', "did you mean default"),
        ('arch = "llama"', 'arch = "gemma"', "one of llama, qwen2"),
        ("licence =", "license =", "is missing"),
        ("bytes = 98362432", "bytes = 0", "too small"),
        ("bytes = 98362432", 'bytes = 98362432\nmd5 = "x"', "unknown key 'md5'"),
        ("bytes = 98362432", "bytes = 98362432\nmade = {}", ""),
        ('source_quant = "Q4_1"', 'source_quant = "Q5_1"', "starts from a file that is not pinned"),
        ('source_id = "smollm2-135m-wide"', 'source_id = "smollm2-135m-qwen2-wide"', "not pinned before it"),
        ('quant = "F32"', 'quant = "Q8_0"', "a transplant writes F32"),
        ("n_embd = 768", "n_embd = 0", "too small"),
        ("bias = 0.05", 'bias = "small"', "a number"),
        ("bf16_twin =", "bf16twin =", "unknown key 'bf16twin'"),
        ('kind = "wheel"', 'kind = "wheels"', "did you mean wheel"),
        ('member = "pandas', 'part = "pandas', "'member' is missing"),
        ('file = "qwen2.5-coder-0.5b', 'name = "qwen2.5-coder-0.5b', "'file' is missing"),
        ('pre = "qwen2"', 'pres = "qwen2"', "'pre' is missing"),
        ('quant = "Q8_0"', 'quant = "Q4_1"', "pinned twice"),
        ('id = "smollm2-135m"', 'id = "../smollm2"', "no plain word"),
        ('id = "crates-io"', 'id = "crates-io"\nburn = "1"', "unknown key 'burn'"),
    ],
)
def test_a_planted_mistake_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    if not words:  # an empty table of digests changes nothing
        assert load_changed(tmp_path, old, new).models
        return
    with pytest.raises(FixtureError, match=re.escape(words)):
        load_changed(tmp_path, old, new)


def test_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith('sha256 = "b179'))
    with pytest.raises(FixtureError, match="no digest, or two kinds"):
        load_changed(tmp_path, line, "")
    with pytest.raises(FixtureError, match="no digest, or two kinds"):
        load_changed(tmp_path, line, f'{line}\nmade = {{ x = "{"ab" * 32}" }}')


def test_a_short_digest_of_a_made_file_is_refused(tmp_path: Path) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("made = {"))
    with pytest.raises(FixtureError, match="64 lower-case hex digits"):
        load_changed(tmp_path, line, line.replace('" }', '0" }'))


def test_the_prompts_are_frozen(pins: Pins) -> None:
    """Who changes a prompt on purpose changes the pin too, and derives the limits again."""
    assert load_prompts().sha256 == pins.prompts_sha256
    assert {one.source.partition("prompts ")[2][:12] for one in load_tolerances().all} == {pins.prompts_sha256[:12]}
