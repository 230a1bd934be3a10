"""One table of sites for both engines: the candidate's list and the reference's graph are the same, name by name."""

from __future__ import annotations

import pytest

from parity_lib.engines import sites
from parity_lib.engines.burn import CRATES_IO, load
from parity_lib.errors import EngineError


def test_the_table_has_every_site_of_the_candidate_and_no_other() -> None:
    extension, _ = load(CRATES_IO)
    assert sorted(extension.sites(3)) == sorted(sites.expected(3, biases=True))


def test_a_model_without_biases_lacks_their_sums() -> None:
    left = set(sites.expected(2, biases=True)) - set(sites.expected(2, biases=False))
    assert left == {f"{name}cur.ADD-{layer}" for name in "QKV" for layer in (0, 1)}


@pytest.mark.parametrize(
    ("name", "op", "source", "site"),
    [
        ("Qcur-3", "MUL_MAT", "blk.3.attn_q.weight", "Qcur.MUL_MAT-3"),
        ("Qcur-3", "ADD", "Qcur-3", "Qcur.ADD-3"),
        ("Qcur-3", "ROPE", "Qcur-3 (reshaped)", "Qcur-3"),
        ("Qcur-3", "RESHAPE", "Qcur-3", None),
        ("node_812", "MUL_MAT", "blk.11.attn_output.weight", "attn_out-11"),  # qwen2 gives it no name
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
