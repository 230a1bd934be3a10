"""One op cut out of a captured run, at every site: both engines and the oracle give the values that were recorded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.site import BurnSite
from parity_lib.engines.llamacpp.buffers import PLAIN
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.one_op import LlamaOp
from parity_lib.engines.node_file import NodeFile
from parity_lib.engines.one_op import OneOp, write_model
from parity_lib.engines.oracle import one_op as oracle_op
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.one_op import distance, passed_limit, worst_number
from parity_lib.model_file.facts import facts_of, read_facts
from parity_lib.model_file.header import ModelFile
from parity_lib.models.synthetic import Shape, build
from parity_lib.numerics.op_error import EXACT_OPS, OpError
from parity_lib.trace.reproducer.reduce import Source, cuts

pytestmark = pytest.mark.engine

TOKENS = [(i * 37) % 501 + 1 for i in range(23)]
PASSES = [20, 2, 1]
LAYERS = {"llama MIXED": 3, "qwen2 Q4_K_M": 2, "llama F16": 2, "llama-yarn Q8_0": 2, "qwen2-linear Q8_0": 2}
KINDS = {"llama-yarn": Shape(biases=1, yarn=4, n_ctx_train=128), "qwen2-linear": Shape(linear=8)}  # what no other has


class Captured:
    """A model, its capture, the candidate on it, and the errors of every op."""

    def __init__(self, name: str, target: str, folder: Path, settings: str = "strict") -> None:
        kind, quant = name.split()
        arch = kind.partition("-")[0]
        shape = replace(KINDS.get(kind, Shape()), n_layer=LAYERS[name], n_vocab=512, tied=1)
        self.path = build(arch, quant, folder / f"{arch}.gguf", replace(shape, rope_freqs=int(arch == "llama")))
        self.folder, self.target = folder / "nodes", target
        asked = {"path": str(self.path), "isa": target, "settings": settings, "n_threads": 1}
        with Worker("llama_taps", asked, env=worker_env(settings)) as engine:
            engine.call("capture", TOKENS, PASSES, self.folder)
        self.burn = BurnSite(self.path, target, compute="ggml", n_threads=1)
        self.errors = self.burn.replay(self.folder, progress=lambda *_: None)

    def source(self, error: OpError) -> Source:
        theirs, ours = self.burn.recorded(self.folder, error.batch, error.site)
        limit, file = passed_limit(error, theirs), ModelFile(self.path)
        worst, facts = worst_number(error, theirs, ours, limit), facts_of(file)
        return Source(
            nodes=NodeFile(self.folder),
            facts=facts,
            candidate_facts=facts,
            reference=file,
            candidate=file,
            compute="ggml",
            error=error,
            limit=limit,
            worst=worst,
            values=(theirs, ours),
        )


@pytest.fixture(scope="module", params=["llama MIXED", "qwen2 Q4_K_M", "llama-yarn Q8_0", "qwen2-linear Q8_0"])
def captured(request: pytest.FixtureRequest, target: str, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return Captured(request.param, target, tmp_path_factory.mktemp("captured"))


@pytest.fixture(scope="module")
def ggml() -> LlamaOp:
    return LlamaOp()


def candidate(op: OneOp, target: str, folder: Path) -> np.ndarray:
    return BurnSite(write_model(op, folder / "reduced.gguf"), target, compute=op.compute, n_threads=1).value(op)


@pytest.mark.parametrize("batch", [0, 2])
def test_each_cut_of_each_site_gives_what_was_recorded(
    batch: int, captured: Captured, ggml: LlamaOp, tmp_path: Path
) -> None:
    seen = set()
    for error in captured.errors:
        if error.batch != batch or sites.split(error.site)[1] not in (None, 1):
            continue
        source = captured.source(error)
        for cut in cuts(source):
            place = f"{error.site}, {cut.step}, {cut.op.before} rows before"
            reference, ours = ggml.value(cut.op), candidate(cut.op, captured.target, tmp_path)
            judged = list(cut.op.judged)
            assert reference.shape == ours.shape == cut.reference.shape, place
            kept = list(range(len(ours))) if error.op in EXACT_OPS else judged
            # To the bit, but for the last numbers of a row of SwiGLU, which ggml's vector code leaves to plain code.
            assert np.array_equal(ours[kept], cut.candidate[kept]), place
            near = distance(source.limit, cut.reference, reference, judged)
            assert near == 0 or (error.op == "GLU" and near < 1e-13), place
            assert distance(source.limit, oracle_op.value(cut.op), reference, judged) < 2e-12, place
        seen.add(sites.split(error.site)[0])
    expected = sites.expected(1, read_facts(captured.path).biases)
    assert seen == {sites.split(site)[0] for site in expected}


@pytest.fixture(scope="module")
def repacked(target: str, tmp_path_factory: pytest.TempPathFactory) -> Captured:
    return Captured("qwen2 Q4_K_M", target, tmp_path_factory.mktemp("repacked"), "repacked")


def test_a_reordered_weight_is_multiplied_by_the_kernel_that_it_was_ordered_for(
    repacked: Captured, ggml: LlamaOp
) -> None:
    buffers, plain_differs = set(), 0
    for error in repacked.errors:
        if error.op != "MUL_MAT" or sites.table(error.site).inner:
            continue
        for cut in cuts(repacked.source(error)):
            place = f"{error.site}, pass {error.batch}, {cut.step}"
            judged = list(cut.op.judged)
            assert np.array_equal(ggml.value(cut.op)[judged], cut.reference[judged]), place
            plain = ggml.value(replace(cut.op, buffer="CPU"))
            plain_differs += not np.array_equal(plain[judged], cut.reference[judged])
            buffers.add(cut.op.buffer)
    assert buffers - set(PLAIN)
    assert plain_differs > 0  # or nothing above would have told the kernels apart


def test_a_buffer_that_is_not_here_is_an_error_that_names_those_that_are(captured: Captured, ggml: LlamaOp) -> None:
    error = next(error for error in captured.errors if error.site == "ffn_out-1")
    op = next(cuts(captured.source(error))).op
    with pytest.raises(EngineError, match=r"no such buffer; expected SOMEWHERE"):
        ggml.value(replace(op, buffer="SOMEWHERE"))


def test_a_type_that_is_not_reordered_is_an_error(ggml: LlamaOp, target: str, tmp_path: Path) -> None:
    plain = Captured("llama F16", target, tmp_path)
    error = next(error for error in plain.errors if error.site == "ffn_out-1")
    op = next(cuts(plain.source(error))).op
    assert op.buffer in ("CPU", "CPU_Mapped")
    with pytest.raises(EngineError, match="does not re-order this weight"):
        ggml.value(replace(op, buffer="CPU_REPACK"))


def test_the_first_cut_of_a_product_is_one_dot_product(captured: Captured) -> None:
    for site in ("Kcur.MUL_MAT-1", "ffn_out-1", "result_output", "kq-1", "kqv-1"):
        error = next(error for error in captured.errors if error.site == site)
        cut = next(cuts(captured.source(error)))
        assert cut.step == "one dot product"
        assert len(cut.op.judged) == 1
        assert cut.op.before == 0
        assert cut.op.weight is None or len(cut.op.weight.rows) == 1
    assert captured.burn.recorded(captured.folder, 1, "kq-0")[0].shape == (4, 2, 32)


def test_a_site_that_is_not_there_is_an_error(captured: Captured) -> None:
    with pytest.raises(EngineError, match=r"does not pass the site.*kq-9"):
        captured.burn.recorded(captured.folder, 0, "kq-9")
