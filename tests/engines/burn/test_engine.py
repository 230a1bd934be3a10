"""The candidate on small real models: against the float64 oracle, against llama.cpp, and against itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from parity_lib.base.errors import EngineError, ModelFileError, UsageError, WorkerDied
from parity_lib.base.names import Isa
from parity_lib.engines import machine
from parity_lib.engines.burn import build_info as burn_build
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.oracle.engine import Oracle
from parity_lib.engines.targets import own_target
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t7_isa import prove
from parity_lib.models.synthetic import Shape, build
from parity_lib.numerics.metrics import row_digests
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.engine

F64 = npt.NDArray[np.float64]

FLOOR = 5e-6  # rms over the logits' std that two right f32 engines stay under (the T4 rung of the design)
SEQUENCES = [[1, 5, 9, 300, 7, 7, 2], [500], [(37 * i + 3) % 512 for i in range(90)]]

MODELS = {
    "llama": ("llama", "F32", Shape(n_layer=2, n_vocab=512)),
    "llama quantised, tied, with divisors": ("llama", "Q4_K_M", Shape(n_layer=2, n_vocab=512, tied=1, rope_freqs=1)),
    "llama, partial rotary dimension": ("llama", "Q8_0", Shape(n_layer=2, n_vocab=512, rope_dim=32)),
    "llama, one key head": ("llama", "Q4_1", Shape(n_layer=2, n_vocab=512, n_head_kv=1)),
    "qwen2 with biases": ("qwen2", "F32", Shape(n_layer=2, n_vocab=512)),
    "qwen2 quantised, wide heads": ("qwen2", "Q5_K_M", Shape(n_layer=2, n_vocab=512, key_length=128)),
}


def silent(done: int, total: int) -> None:
    """Take progress and show nothing."""


@pytest.fixture(scope="module")
def target() -> Isa:
    """The widest ISA target of this CPU, which is the one that the default build runs."""
    return Isa(own_target(load_pins().stack("crates-io")))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every model of ``MODELS``, built."""
    folder = tmp_path_factory.mktemp("models")
    return {
        name: build(arch, quant, folder / f"{index}.gguf", shape)
        for index, (name, (arch, quant, shape)) in enumerate(MODELS.items())
    }


@pytest.fixture
def engine(models: dict[str, Path], target: Isa) -> Burn:
    """The candidate on the first model."""
    return Burn(models["llama"], isa=target)


def rows_of(path: Path, n_vocab: int, dtype: str = "<f4") -> F64:
    """A spool as float64, (rows, n_vocab)."""
    return np.fromfile(path, dtype).reshape(-1, n_vocab).astype(np.float64)


def distance(found: F64, wanted: F64) -> float:
    """Pooled rms of the difference over the pooled standard deviation of the wanted rows."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / np.sqrt(np.mean(wanted.var(axis=1))))


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_the_oracle(models: dict[str, Path], target: Isa, tmp_path: Path, name: str) -> None:
    candidate, oracle = Burn(models[name], isa=target), Oracle(models[name])
    assert candidate.score(SEQUENCES, tmp_path / "burn", progress=silent) == [len(tokens) for tokens in SEQUENCES]
    oracle.score64(SEQUENCES, tmp_path / "oracle", progress=silent)
    found, wanted = rows_of(tmp_path / "burn", 512), rows_of(tmp_path / "oracle", 512, "<f8")
    assert distance(found, wanted) < FLOOR
    assert np.array_equal(found.argmax(axis=1), wanted.argmax(axis=1))


@pytest.mark.parametrize("compute", ["bf16", "ggml"])
def test_the_other_arithmetics_differ_by_what_they_round(
    models: dict[str, Path], target: Isa, tmp_path: Path, compute: str
) -> None:
    path = models["llama, one key head"]  # Q4_1: the policy ggml takes the way of the minimums
    for name in ("f32", compute):
        Burn(path, isa=target, compute=name).score(SEQUENCES, tmp_path / name)
    apart = distance(rows_of(tmp_path / compute, 512), rows_of(tmp_path / "f32", 512))
    assert 1e-4 < apart < 5e-2


def test_agrees_with_the_reference(models: dict[str, Path], target: Isa, tmp_path: Path) -> None:
    path, host = models["llama"], machine.host_target()
    with Worker("llama_cpp", {"path": path, "settings": "strict", "isa": host, "n_threads": 2}) as reference:
        reference.call("score", SEQUENCES, tmp_path / "llama.cpp")
    with Worker("burn", {"path": path, "isa": target, "n_threads": 2}) as candidate:
        candidate.call("score", SEQUENCES, tmp_path / "burn")
    found, wanted = rows_of(tmp_path / "burn", 512), rows_of(tmp_path / "llama.cpp", 512)
    assert distance(found, wanted) < FLOOR
    assert np.array_equal(np.sort(np.argsort(found)[:, -5:]), np.sort(np.argsort(wanted)[:, -5:]))


def test_decode_writes_the_bytes_of_score(models: dict[str, Path], target: Isa, tmp_path: Path) -> None:
    for name in ("llama quantised, tied, with divisors", "qwen2 with biases"):
        engine = Burn(models[name], isa=target)
        assert engine.score(SEQUENCES, tmp_path / "score") == engine.decode(SEQUENCES, tmp_path / "decode")
        assert (tmp_path / "score").read_bytes() == (tmp_path / "decode").read_bytes()


def test_run_info_says_what_ran(models: dict[str, Path], target: Isa) -> None:
    asked = {"path": str(models["llama"]), "isa": target, "compute": "bf16", "n_threads": 1, "fault": "eps_x10@blk.1"}
    with Worker("burn", asked) as engine:
        run = engine.call("run_info")
    assert (run.engine, run.version, run.stack, run.compute) == ("burn", "0.21.0", "crates-io", "bf16")
    assert (run.isa_requested, run.isa_observed) == (str(target), "unproven")
    assert (run.fault, run.n_threads, run.model_path) == ("eps_x10@blk.1", 1, models["llama"].name)
    assert (run.build.library, run.build.receipt.stack) == ("with faults", "crates-io")
    assert run.build.crates["matrixmultiply"] == "0.3.11"
    assert run.build.source_sha256 == burn_build.source_sha256(burn_build.NATIVE)
    assert run.lock_sha256 == run.build.lock_sha256
    assert run.settings.rms_eps == pytest.approx(1e-5)
    assert run.peak_rss_bytes > 1 << 20
    judged = Burn(models["llama"], isa=target).run_info()
    assert (judged.fault, judged.build.library) == (None, "without faults")
    assert "faults" not in judged.build.features.split(",")


@pytest.mark.parametrize("compute", ["f32", "bf16", "ggml"])
def test_without_a_fault_both_libraries_give_the_same_bits(
    models: dict[str, Path], target: Isa, compute: str, tmp_path: Path
) -> None:
    for name in ("llama quantised, tied, with divisors", "qwen2 with biases"):
        judged = Burn(models[name], isa=target, compute=compute).row_digests(SEQUENCES, tmp_path)
        asked = {"path": str(models[name]), "isa": target, "compute": compute, "with_faults": True}
        with Worker("burn", asked) as engine:
            run, found = engine.call("run_info"), engine.call("row_digests", SEQUENCES, tmp_path)
        assert (run.build.library, run.fault) == ("with faults", None)
        assert [rows.shape for rows in found] == [(len(tokens), 32) for tokens in SEQUENCES]
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(judged, found, strict=True))


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        ([], "no sequence was given"),
        ([[]], "does not fit the model's context"),
        ([[1], [1] * 4097], "does not fit the model's context"),
        ([[1, 512]], "outside of the vocabulary"),
        ([[-1]], "outside of the vocabulary"),
    ],
)
def test_what_cannot_be_fed_is_refused(engine: Burn, tmp_path: Path, sequences: list[list[int]], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        engine.score(sequences, tmp_path / "spool")
    assert list(tmp_path.iterdir()) == []


def test_a_closed_engine_refuses(engine: Burn, tmp_path: Path) -> None:
    engine.close()
    for call in (engine.n_vocab, engine.run_info, engine.tensors, lambda: engine.score([[1]], tmp_path / "spool")):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_an_unwritable_spool_is_an_error(engine: Burn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written"):
        engine.score([[1]], tmp_path / "file" / "spool")


def test_ctrl_c_stops_a_pass_and_leaves_no_spool(engine: Burn, tmp_path: Path) -> None:
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # the signal arrives here, or is seen at the next step

    with pytest.raises(KeyboardInterrupt):
        engine.score(SEQUENCES, tmp_path / "spool", progress=interrupt)
    assert len(calls) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_exception_of_the_progress_callback_comes_through(engine: Burn, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise ZeroDivisionError(f"{done} of {total}")

    with pytest.raises(ZeroDivisionError, match="of 98"):
        engine.score(SEQUENCES, tmp_path / "spool", progress=fail)


def test_other_threads_run_while_the_engine_works(engine: Burn, tmp_path: Path) -> None:
    ended = threading.Event()
    ticks = [0]

    def count() -> None:
        while not ended.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    before = ticks[0]
    engine.score([list(range(500))] * 8, tmp_path / "spool")
    during = ticks[0] - before
    ended.set()
    thread.join()
    assert during > 10


def test_digests_of_every_way_are_those_of_the_rows_that_score_writes(engine: Burn, tmp_path: Path) -> None:
    engine.score(SEQUENCES, tmp_path / "spool")
    ends = np.cumsum([len(tokens) for tokens in SEQUENCES])[:-1]
    rows = np.fromfile(tmp_path / "spool", np.float32).reshape(-1, engine.n_vocab())
    wanted = np.split(row_digests(rows), ends)
    (tmp_path / "spool").unlink()
    spans = [(len(tokens) // 3, len(tokens)) for tokens in SEQUENCES]
    straight, restored = engine.decoded_digests(SEQUENCES, spans, 0)
    for i, (start, stop) in enumerate(spans):
        assert np.array_equal(straight[i], wanted[i][start:stop])
        assert np.array_equal(restored[i], wanted[i][start:stop])
    for ways in (
        engine.row_digests(SEQUENCES, tmp_path),
        engine.row_digests(SEQUENCES, tmp_path, n_threads=2),
        engine.interleaved_digests(SEQUENCES),
    ):
        assert all(np.array_equal(*pair) for pair in zip(ways, wanted, strict=True))
    assert list(tmp_path.iterdir()) == []


def test_rows_to_digest_need_a_folder_that_can_be_written(engine: Burn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written"):
        engine.row_digests([[1]], tmp_path / "file")


def test_taps_and_a_start_inside_of_the_model(engine: Burn) -> None:
    tokens = SEQUENCES[0]
    taps = engine.taps(tokens, ["embd", "Qcur-1", "l_out-0", "result_output"])
    assert {name: values.shape for name, values in taps.items()} == {
        "embd": (7, 256),
        "Qcur-1": (7, 256),
        "l_out-0": (7, 256),
        "result_output": (7, 512),
    }
    again = engine.score_from(1, taps["l_out-0"], tokens)
    assert np.array_equal(again, taps["result_output"])
    with pytest.raises(EngineError, match="no such site"):
        engine.taps(tokens, ["l_out-2"])


def test_ops_can_be_called_one_by_one(engine: Burn) -> None:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    weight = np.linspace(0.5, 1.5, 8, dtype=np.float32)
    wanted = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(engine.op("rms_norm", x, weight, 1e-5).reshape(5, 8), wanted, rtol=1e-6)
    product = engine.op("linear", "F32", x.tobytes(), 5, 8, x, policy="f32").reshape(5, 5)
    np.testing.assert_allclose(product, x @ x.T, rtol=1e-5, atol=1e-6)
    weights = engine.op("soft_max", x, 8, [3, 8, 1, 2, 5], 2.0).reshape(5, 8)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert np.array_equal(weights == 0, np.arange(8) >= np.array([3, 8, 1, 2, 5])[:, None])
    with pytest.raises(EngineError, match="no such op"):
        engine.op("conv", x)
    with pytest.raises(EngineError, match="wrong length"):
        engine.op("rms_norm", x[:, :7], weight, 1e-5)


def test_weights_are_gguf_pys(models: dict[str, Path], target: Isa) -> None:
    path = models["llama quantised, tied, with divisors"]
    engine = Burn(path, isa=target)
    reader = gguf.GGUFReader(path)
    assert [name for name, _, _ in engine.tensors()] == [tensor.name for tensor in reader.tensors]
    for (name, kind, shape), tensor in zip(engine.tensors(), reader.tensors, strict=True):
        wanted = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert (kind, shape) == (tensor.tensor_type.name, wanted.shape)
        assert engine.dequantize(name) == wanted.tobytes()
    with pytest.raises(ModelFileError, match="missing tensor"):
        engine.dequantize("blk.9.attn_q.weight")


def test_seeded_faults_reach_the_rows(models: dict[str, Path], target: Isa, tmp_path: Path) -> None:
    path = models["llama"]

    def score(fault: str, spool: Path) -> list[int]:
        with Worker("burn", {"path": str(path), "isa": target, "fault": fault}) as engine:
            counts: list[int] = engine.call("score", SEQUENCES, spool)
        return counts

    Burn(path, isa=target).score(SEQUENCES, tmp_path / "right")
    right = rows_of(tmp_path / "right", 512)
    assert score("drop_row=2", tmp_path / "short") == [7, 1, 89]
    assert np.array_equal(rows_of(tmp_path / "short", 512), right[:-1])
    score("nan@blk.0", tmp_path / "nan")
    assert np.flatnonzero(np.isnan(rows_of(tmp_path / "nan", 512)).any(axis=1)).tolist() == [97]
    score("swapped_pairing", tmp_path / "pairs")
    wrong = rows_of(tmp_path / "pairs", 512)
    assert [index for index in range(98) if np.array_equal(wrong[index], right[index])] == [0, 7, 8]
    with pytest.raises(EngineError, match=r"unknown value.*eps_x10@blk\.N\|all.*eps_x20"):
        score("eps_x20", tmp_path / "unknown")


def test_a_panic_is_an_error_and_the_process_goes_on(models: dict[str, Path], target: Isa, tmp_path: Path) -> None:
    with Worker("burn", {"path": str(models["llama"]), "isa": target, "fault": "panic"}) as engine:
        for _ in range(2):
            with pytest.raises(EngineError, match=r"panicked.*seeded fault"):
                engine.call("score", SEQUENCES, tmp_path / "spool")
    assert list(tmp_path.iterdir()) == []


def test_an_abort_ends_the_worker_and_is_reported(models: dict[str, Path], target: Isa, tmp_path: Path) -> None:
    with (
        Worker("burn", {"path": models["llama"], "isa": target, "fault": "die"}) as worker,
        pytest.raises(WorkerDied) as died,
    ):
        worker.call("score", SEQUENCES, tmp_path / "spool")
    assert died.value.status == -signal.SIGABRT
    assert not (tmp_path / "spool").exists()


def test_a_model_that_is_not_supported_is_refused_by_name(tmp_path: Path, target: Isa) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"m\.gguf: unsupported architecture.*expected llama or qwen2.*mamba"):
        Burn(tmp_path / "m.gguf", isa=target)
    with pytest.raises(ModelFileError, match="the file cannot be opened"):
        Burn(tmp_path / "none.gguf", isa=target)


def test_a_target_that_burn_does_not_have_is_run_and_refuted_by_its_samples(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """No stack of today has tiles: the rows are the same, and what was asked for is not what was seen."""
    engine = Burn(models["llama"], isa=Isa.AMX)
    proof = prove(engine.prove_isa(SEQUENCES, tmp_path, seconds=20.0))
    assert (engine.run_info().isa_requested, proof.evidence.requested) == ("amx", "amx")
    assert proof.contradicted
    assert "asked for amx, saw" in proof.reason


def test_an_unknown_stack_is_refused(models: dict[str, Path], target: Isa) -> None:
    with pytest.raises(UsageError, match=r"unknown stack 'spline'.*did you mean spine"):
        Burn(models["llama"], isa=target, stack="spline")
