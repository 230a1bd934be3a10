"""A derived model computes what its source computes: in llama.cpp before it is used, and in burn and float64 too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import ModelFileError
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.engines.oracle.engine import Oracle
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import made_up_tokens, read_facts, read_tensors
from parity_lib.model_file.header import ModelFile
from parity_lib.models.ensure import bytes_to_make, ensure, equalities, prepare_all
from parity_lib.models.recipes import Job, make, receipt_equalities
from parity_lib.models.synthetic import Shape, build
from parity_lib.models.transplant import derive as transplant
from parity_lib.models.transplant import qwen2 as transplant_qwen2
from parity_lib.models.transplant import widen
from parity_lib.models.transplant.derive import LIMIT, TEXT, derive, prove
from parity_lib.models.transplant.f32_file import NewTensor, f32_value, raw_pairs, write_f32
from parity_lib.records.model_receipts import Equality
from parity_lib.records.pins import FilePin, Pins, Recipe, load_pins

pytestmark = pytest.mark.engine

SHAPE = Shape(n_layer=2, n_embd=256, n_head=4, n_head_kv=2, key_length=64, n_ff=256, n_vocab=256)
PINS = load_pins().llama_cpp
TOKENS = made_up_tokens(TEXT, SHAPE.n_vocab)
WIDEN = Recipe("widen", source_id="s", source_quant="F32", n_embd=384)
QWEN2 = Recipe("qwen2", source_id="s", source_quant="F32", bias=0.05, seed=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", "F32", tmp_path_factory.mktemp("source") / "source.gguf", SHAPE)


@pytest.fixture(scope="module")
def wide(source: Path) -> tuple[Path, Equality]:
    target = source.with_name("wide.gguf")
    return target, derive(WIDEN, source, target, "s F32", PINS)


@pytest.fixture(scope="module")
def qwen2(source: Path) -> tuple[Path, Equality]:
    target = source.with_name("qwen2.gguf")
    return target, derive(replace(QWEN2, bias=0.0), source, target, "s F32", PINS)


def rows(engine: Burn | Oracle, folder: Path) -> np.ndarray:
    name = "oracle" if isinstance(engine, Oracle) else "burn"
    engine.score([TOKENS], folder / name, progress=lambda _done, _total: None)
    return np.fromfile(folder / name, "<f4").reshape(len(TOKENS), -1).astype(float)


def off(derived: np.ndarray, source: np.ndarray) -> float:
    return float(np.sqrt(np.square(derived - source).mean() / source.var(axis=1).mean()))


@pytest.mark.parametrize("which", ["wide", "qwen2"])
def test_the_derived_model_has_its_sources_logits_in_every_engine(
    which: str, source: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    target, equality = request.getfixturevalue(which)
    assert equality.rms_over_std < LIMIT
    assert (equality.positions, equality.source) == (len(TOKENS), "s F32")
    burn = partial(Burn, isa=host_target(PINS))
    for make_engine, limit in ((burn, LIMIT), (Oracle, 1e-6)):  # the oracle's rows are rounded to float32 once
        engines: tuple[Burn | Oracle, Burn | Oracle] = (make_engine(source), make_engine(target))
        ours, theirs = rows(engines[0], tmp_path), rows(engines[1], tmp_path)
        assert ours.std() > 0.1
        assert off(theirs, ours) < limit  # burn and float64 find not a bit between llama and qwen2


def test_a_wide_model_has_longer_rows_and_zeros_behind(source: Path, wide: tuple[Path, Equality]) -> None:
    facts, old = read_facts(wide[0]), read_facts(source)
    assert (facts.n_embd, facts.n_head, facts.n_head_kv, facts.key_length) == (384, 6, 3, 64)
    assert facts.rms_eps == pytest.approx(old.rms_eps * 256 / 384)
    before, after = read_tensors(source), read_tensors(wide[0])
    q = after["blk.1.attn_q.weight"].rows
    assert np.array_equal(q[:256, :256], before["blk.1.attn_q.weight"].rows)
    assert not q[256:].any()
    assert not q[:, 256:].any()
    norm = after["blk.1.attn_norm.weight"].rows
    assert norm[:256] == pytest.approx(before["blk.1.attn_norm.weight"].rows * np.sqrt(256 / 384), rel=1e-6)


def test_the_same_biases_are_in_the_narrow_and_the_wide_form(source: Path, wide: tuple[Path, Equality]) -> None:
    narrow, broad = source.with_name("nb.gguf"), source.with_name("wb.gguf")
    assert derive(QWEN2, source, narrow, "s F32", PINS).rms_over_std < LIMIT
    derive(QWEN2, wide[0], broad, "s F32", PINS)
    for part in "qkv":
        name = f"blk.1.attn_{part}.bias"
        ours, theirs = read_tensors(narrow)[name].rows, read_tensors(broad)[name].rows
        assert np.array_equal(theirs[: len(ours)], ours)
        assert 0.02 < np.abs(ours).max() <= 0.05
    with pytest.raises(ModelFileError, match="does not compute what its source computes"):
        prove(source, narrow, "qwen2", "s F32", PINS)  # biases change the model: that is what they are for


def rewritten(path: Path, change: Callable[[str, np.ndarray], np.ndarray], eps: float = 0.0) -> None:
    """Write a file again with other values in it."""
    file = ModelFile(path)
    pairs = raw_pairs(path)
    if eps:
        pairs["llama.attention.layer_norm_rms_epsilon"] = f32_value(eps)
    changed = [(name, change(name, np.array(tensor.rows))) for name, tensor in file.tensors.items()]
    write_f32(path, pairs, [NewTensor(name, values.shape, partial(np.asarray, values)) for name, values in changed])


def test_rows_left_in_adjacent_pairs_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transplant_qwen2, "half_split", lambda rows, _n_head: rows)
    with pytest.raises(ModelFileError, match="does not compute what its source computes"):
        derive(QWEN2, source, tmp_path / "wrong.gguf", "s F32", PINS)
    assert list(tmp_path.iterdir()) == []


def test_norm_weights_left_unscaled_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = widen._padded
    monkeypatch.setattr(widen, "_padded", lambda tensor, shape, _factor: padded(tensor, shape, 1.0))
    with pytest.raises(ModelFileError, match="does not compute what its source computes"):
        derive(WIDEN, source, tmp_path / "wrong.gguf", "s F32", PINS)
    assert list(tmp_path.iterdir()) == []


def test_an_epsilon_left_unscaled_is_refused(tmp_path: Path) -> None:
    """Where an epsilon matters: with the usual 1e-5 beside embeddings of size 1 nobody could tell."""
    source = build("llama", "F32", tmp_path / "source.gguf", SHAPE)
    rewritten(source, lambda _name, values: values, eps=0.05)
    target = tmp_path / "wide.gguf"
    derive(WIDEN, source, target, "s F32", PINS)
    rewritten(target, lambda _name, values: values, eps=0.05)
    with pytest.raises(ModelFileError, match="does not compute what its source computes"):
        prove(source, target, "widen", "s F32", PINS)


def test_one_swapped_pair_of_rows_is_refused(source: Path, tmp_path: Path, qwen2: tuple[Path, Equality]) -> None:
    target = tmp_path / "swapped.gguf"
    target.write_bytes(qwen2[0].read_bytes())

    def swap(name: str, values: np.ndarray) -> np.ndarray:
        if name == "blk.0.attn_q.weight":
            values[[3, 4]] = values[[4, 3]]
        return values

    rewritten(target, swap)
    with pytest.raises(ModelFileError, match="does not compute what its source computes"):
        prove(source, target, "qwen2", "s F32", PINS)


@pytest.mark.parametrize(
    ("recipe", "shape", "words"),
    [
        (replace(WIDEN, n_embd=320), SHAPE, "cannot be widened so"),
        (replace(WIDEN, n_embd=256), SHAPE, "cannot be widened so"),
        (QWEN2, replace(SHAPE, rope_freqs=1), "RoPE divisors"),
        (QWEN2, replace(SHAPE, key_length=32), "key length"),
    ],
)
def test_what_has_no_counterpart_is_refused(recipe: Recipe, shape: Shape, words: str, tmp_path: Path) -> None:
    source = build("llama", "F32", tmp_path / "source.gguf", shape)
    with pytest.raises(ModelFileError, match=words):
        derive(recipe, source, tmp_path / "target.gguf", "s F32", PINS)
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


def test_a_quantised_source_is_refused(tmp_path: Path) -> None:
    source = build("llama", "Q8_0", tmp_path / "source.gguf", SHAPE)
    with pytest.raises(ModelFileError, match="starts from an F32 file"):
        transplant.derive(WIDEN, source, tmp_path / "target.gguf", "s Q8_0", PINS)


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pins:
    """Pins of llama -> wide -> qwen2 -> Q4_K_M, small, in a cache of their own."""
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path))
    real = load_pins()
    start = real.model("synthetic-llama", "Q8_0")
    shape = {"n_layer": 1, "n_vocab": 256, "key_length": 64, "n_ff": 256}
    made = FilePin(1000, made={"another-class": "0" * 64})
    start = replace(start, id="s", recipe=replace(start.recipe, shape=shape), twin=None)
    probe = build("llama", "Q8_0", tmp_path / "probe.gguf", Shape(**shape))
    start = replace(start, file=FilePin(1, made={"any": sha256_file(probe)}))
    wide = replace(start, id="w", quant="F32", file=made, recipe=replace(WIDEN, source_quant="Q8_0", n_embd=512))
    moved = replace(wide, id="q", recipe=replace(QWEN2, source_id="w"))
    final = replace(moved, quant="Q4_K_M", recipe=Recipe("quantize", source_id="q", source_quant="F32", ftype="Q4_K_M"))
    return replace(real, models=(start, wide, moved, final))


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.endswith((".lock", ".receipt.json")))


def test_a_quantised_transplant_is_made_through_its_proof_and_keeps_it(chain: Pins, tmp_path: Path) -> None:
    """The F32 files in between are made beside it and do not stay."""
    path = ensure("q", "Q4_K_M", chain)
    assert [(e.step, e.source) for e in receipt_equalities(path)] == [("widen", "s Q8_0"), ("qwen2", "w F32")]
    assert all(0 < e.rms_over_std < e.limit for e in receipt_equalities(path))
    assert files(tmp_path / "models") == ["q.Q4_K_M.gguf", "s.Q8_0.gguf"]
    assert read_facts(path).has_qkv_bias
    again = path.with_name("again.gguf")
    make(Job(chain.models[-1], again, chain, lambda _line: None, lambda other, its: ensure(other, its, chain)))
    assert again.read_bytes() == path.read_bytes()


def test_equalities_are_read_from_receipts_or_measured_anew(chain: Pins, tmp_path: Path) -> None:
    assert equalities(chain) == []
    path = ensure("q", "Q4_K_M", chain)
    kept = equalities(chain)
    assert [(pin.id, pin.quant, one.step) for pin, one in kept] == [("q", "Q4_K_M", "widen"), ("q", "Q4_K_M", "qwen2")]
    before = files(tmp_path / "models")
    fresh = equalities(chain, fresh=True)
    assert [(pin.id, pin.quant, one.step) for pin, one in fresh] == [("w", "F32", "widen"), ("q", "F32", "qwen2")]
    assert [one for _, one in fresh] == [one for _, one in kept], "the reference gives the same bits each time"
    assert files(tmp_path / "models") == before
    path.unlink()
    assert equalities(chain) == [], "a receipt without its file speaks of nothing that is here"


def test_a_proof_that_is_not_in_the_receipt_is_made_again(chain: Pins) -> None:
    """A kept F32 file whose receipt has lost its measurement is not taken at its word."""
    wide = ensure("w", "F32", chain)
    assert len(receipt_equalities(wide)) == 1
    receipt = wide.with_name(f"{wide.name}.receipt.json")
    receipt.write_text(receipt.read_text().replace('"max_abs"', '"largest"'))
    assert receipt_equalities(wide) == ()
    said: list[str] = []
    assert len(receipt_equalities(ensure("q", "F32", chain, say=said.append))) == 2
    assert [line.split(" ")[1] for line in said if "comparing its logits" in line] == ["w.F32.gguf", "q.F32.gguf"]


def test_space_for_what_exists_only_meanwhile_is_asked_for_first(chain: Pins, tmp_path: Path) -> None:
    """The disk is asked once, before anything is made: sources of 1 EB each do not fit anywhere."""
    final = chain.models[-1]
    assert bytes_to_make([final], chain, twins=True) == 3 * 1000
    huge = FilePin(1 << 60, made={"another-class": "0" * 64})
    pins = replace(chain, models=tuple(replace(p, file=huge) if p.id == "w" else p for p in chain.models))
    with pytest.raises(ModelFileError, match=r"not enough space.*PARITY_CACHE"):
        prepare_all([("q", "Q4_K_M")], pins)
    assert files(tmp_path / "models") == []
