"""One table of sites for both engines: the candidate's list and the reference's graph are the same, name by name."""

from __future__ import annotations

import pytest

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import CRATES_IO, load


@pytest.mark.engine
def test_the_table_has_every_site_of_the_candidate_and_no_other() -> None:
    extension, _ = load(CRATES_IO)
    assert sorted(extension.sites(3)) == sorted(sites.expected(3, sites.every_bias(3)))


def test_a_model_without_biases_lacks_their_sums() -> None:
    left = set(sites.expected(2, sites.every_bias(2))) - set(sites.expected(2, ()))
    sums = ("Qcur", "Kcur", "Vcur", "attn_out", "ffn_gate", "ffn_up", "ffn_out")
    assert left == {f"{name}.ADD-{layer}" for name in sums for layer in (0, 1)}


def test_a_model_with_some_biases_has_their_sums_alone() -> None:
    biases = ["blk.0.attn_k.bias", "blk.1.ffn_down.bias"]
    assert set(sites.expected(2, biases)) - set(sites.expected(2, ())) == {"Kcur.ADD-0", "ffn_out.ADD-1"}
    assert sites.summed("Kcur.MUL_MAT", 0, biases) == "Kcur.ADD-0"
    assert sites.summed("Kcur.MUL_MAT", 1, biases) == "Kcur.MUL_MAT-1"
    assert sites.summed("ffn_out", 1, biases) == "ffn_out.ADD-1"
    assert sites.summed("ffn_out", 0, biases) == "ffn_out-0"


def test_what_burns_modules_compute_in_one_call_has_no_sites_inside() -> None:
    every = sites.expected(1, sites.every_bias(1))
    exact, rounded = sites.fused("modules", "f32"), sites.fused("modules", "ggml")
    assert sites.fused("ops", "f32") == frozenset()
    assert set(every) - set(sites.expected(1, sites.every_bias(1), rounded)) == {"kq-0", "kq_soft_max-0", "kqv-0"}
    gated = {"ffn_gate-0", "ffn_up-0", "ffn_gate.ADD-0", "ffn_up.ADD-0"}
    assert set(every) - set(sites.expected(1, sites.every_bias(1), exact)) == {"kq-0", "kq_soft_max-0", "kqv-0"} | gated


def test_a_fused_attention_is_judged_as_the_product_that_it_ends_with() -> None:
    assert sites.judged_op("kqv_out-3", ()) == "CONT"  # a copy: its bits must be equal
    assert sites.judged_op("kqv_out-3", sites.fused("modules", "ggml")) == "MUL_MAT"
    assert sites.judged_op("ffn_norm-3", sites.fused("modules", "ggml")) == "MUL"


@pytest.mark.parametrize(
    ("name", "op", "source", "site"),
    [
        ("Qcur-3", "MUL_MAT", "blk.3.attn_q.weight", "Qcur.MUL_MAT-3"),
        ("Qcur-3", "ADD", "Qcur-3", "Qcur.ADD-3"),
        ("Qcur-3", "ROPE", "Qcur-3 (reshaped)", "Qcur-3"),
        ("Qcur-3", "RESHAPE", "Qcur-3", None),
        ("node_812", "MUL_MAT", "blk.11.attn_output.weight", "attn_out-11"),  # qwen2 gives it no name
        ("attn_out-11", "ADD", "node_812", "attn_out.ADD-11"),
        ("ffn_gate_b-3", "ADD", "ffn_gate-3", "ffn_gate.ADD-3"),
        ("ffn_out-3", "ADD", "ffn_down-3", "ffn_out.ADD-3"),
        ("node_812", "GET_ROWS", "attn_out-11", None),
        ("norm-3", "RMS_NORM", "l_out-2", None),
        ("attn_norm-3", "MUL", "norm-3", "attn_norm-3"),
        ("embd", "GET_ROWS", "token_embd.weight", "embd"),
        ("embd-3", "GET_ROWS", "token_embd.weight", None),
        ("l_out", "ADD", "ffn_out-3", None),
        ("result_output", "MUL_MAT", "token_embd.weight", "result_output"),
        ("cache_k_l3 (view)", "SET_ROWS", "Kcur-3", None),
    ],
)
def test_a_node_is_known_by_name_op_and_weight(name: str, op: str, source: str, site: str | None) -> None:
    assert sites.of_node(name, op, source) == site


def test_an_unknown_site_is_refused_with_the_list() -> None:
    with pytest.raises(EngineError, match=r"there is no such site.*Qcur\.MUL_MAT"):
        sites.table("q_proj-3")


@pytest.mark.parametrize(
    ("site", "reads", "weight"),
    [
        ("attn_norm-0", "embd", "blk.0.attn_norm.weight"),
        ("attn_norm-2", "l_out-1", "blk.2.attn_norm.weight"),
        ("Qcur.MUL_MAT-2", "attn_norm-2", "blk.2.attn_q.weight"),
        ("ffn_out-1", "ffn_swiglu-1", "blk.1.ffn_down.weight"),
        ("result_norm", "l_out-2", "output_norm.weight"),
        ("result_output", "result_norm", "output.weight"),
    ],
)
def test_what_an_op_with_a_weight_reads(site: str, reads: str, weight: str) -> None:
    assert sites.producer(site, n_layer=3) == reads
    assert sites.weight_name(site, tied=False) == weight
    tied = "token_embd.weight" if site == "result_output" else weight
    assert sites.weight_name(site, tied=True) == tied
