"""The table of sites at which both engines are observed, each with its node in llama.cpp's graph.

Names of nodes and ops are those of the pinned commit (``src/models/llama.cpp``, ``qwen2.cpp`` and ``llama-graph.cpp``
there); a node that is missing or new is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Compute
from parity_lib.records.stack_pins import OPS


@dataclass(frozen=True, slots=True)
class Site:
    """One place in the forward pass.

    ``name`` is the candidate's (``burn_gguf.sites``), ``node`` and ``op`` name the reference's node. ``inputs`` are
    the sites whose values the op reads; ``weight`` is the tensor that it multiplies with, without ``blk.L.``.
    """

    name: str
    node: str
    op: str
    inputs: tuple[str, ...]
    weight: str = ""
    bias_only: bool = False  # exists only where the file has this bias
    inner: bool = False  # inside of attention: rows of one query head after those of another


EMBD = Site("embd", "embd", "GET_ROWS", (), "token_embd.weight")
RESULT_NORM = Site("result_norm", "result_norm", "MUL", ("l_out",), "output_norm.weight")
RESULT_OUTPUT = Site("result_output", "result_output", "MUL_MAT", ("result_norm",), "output.weight")

BLOCK: tuple[Site, ...] = (
    Site("attn_norm", "attn_norm", "MUL", ("l_out of the block before",), "attn_norm.weight"),
    Site("Qcur.MUL_MAT", "Qcur", "MUL_MAT", ("attn_norm",), "attn_q.weight"),
    Site("Kcur.MUL_MAT", "Kcur", "MUL_MAT", ("attn_norm",), "attn_k.weight"),
    Site("Vcur.MUL_MAT", "Vcur", "MUL_MAT", ("attn_norm",), "attn_v.weight"),
    Site("Qcur.ADD", "Qcur", "ADD", ("Qcur.MUL_MAT",), "attn_q.bias", bias_only=True),
    Site("Kcur.ADD", "Kcur", "ADD", ("Kcur.MUL_MAT",), "attn_k.bias", bias_only=True),
    Site("Vcur.ADD", "Vcur", "ADD", ("Vcur.MUL_MAT",), "attn_v.bias", bias_only=True),
    Site("Qcur", "Qcur", "ROPE", ("Qcur.MUL_MAT or Qcur.ADD",)),
    Site("Kcur", "Kcur", "ROPE", ("Kcur.MUL_MAT or Kcur.ADD",)),
    Site("Vcur", "Vcur", "RESHAPE", ("Vcur.MUL_MAT or Vcur.ADD",)),
    Site("kq", "kq", "MUL_MAT", ("Qcur", "keys in the cache"), inner=True),
    Site("kq_soft_max", "kq_soft_max", "SOFT_MAX", ("kq",), inner=True),
    Site("kqv", "kqv", "MUL_MAT", ("kq_soft_max", "values in the cache"), inner=True),
    Site("kqv_out", "kqv_out", "CONT", ("kqv",)),
    Site("attn_out", "attn_out", "MUL_MAT", ("kqv_out",), "attn_output.weight"),
    Site("attn_out.ADD", "attn_out", "ADD", ("attn_out",), "attn_output.bias", bias_only=True),
    Site("ffn_inp", "ffn_inp", "ADD", ("attn_out or attn_out.ADD", "l_out of the block before")),
    Site("ffn_norm", "ffn_norm", "MUL", ("ffn_inp",), "ffn_norm.weight"),
    Site("ffn_gate", "ffn_gate", "MUL_MAT", ("ffn_norm",), "ffn_gate.weight"),
    Site("ffn_up", "ffn_up", "MUL_MAT", ("ffn_norm",), "ffn_up.weight"),
    Site("ffn_gate.ADD", "ffn_gate_b", "ADD", ("ffn_gate",), "ffn_gate.bias", bias_only=True),
    Site("ffn_up.ADD", "ffn_up_b", "ADD", ("ffn_up",), "ffn_up.bias", bias_only=True),
    Site("ffn_swiglu", "ffn_swiglu", "GLU", ("ffn_gate or ffn_gate.ADD", "ffn_up or ffn_up.ADD")),
    Site("ffn_out", "ffn_out", "MUL_MAT", ("ffn_swiglu",), "ffn_down.weight"),
    Site("ffn_out.ADD", "ffn_out", "ADD", ("ffn_out",), "ffn_down.bias", bias_only=True),
    Site("l_out", "l_out", "ADD", ("ffn_out or ffn_out.ADD", "ffn_inp")),
)

_BY_NODE = {(site.node, site.op): site for site in (*BLOCK, EMBD, RESULT_NORM, RESULT_OUTPUT)}
_BY_WEIGHT = {site.weight: site for site in BLOCK if site.op == "MUL_MAT" and site.weight}
_NODE = re.compile(r"(?P<name>[a-zA-Z_]+)(?:-(?P<layer>\d+))?")
_WEIGHT = re.compile(r"blk\.(?P<layer>\d+)\.(?P<weight>.+)")


def split(site: str) -> tuple[str, int | None]:
    """Return (name, block) of a site's full name such as ``Qcur.MUL_MAT-7``; the block is None outside of blocks."""
    name, dash, block = site.rpartition("-")
    return (name, int(block)) if dash and block.isdecimal() else (site, None)


def table(name: str) -> Site:
    """Return a site by its name, with or without its block.

    Raises:
        EngineError: there is none of that name.
    """
    base = split(name)[0]
    found = next((site for site in (*BLOCK, EMBD, RESULT_NORM, RESULT_OUTPUT) if site.name == base), None)
    if found is None:
        known = ", ".join(site.name for site in (EMBD, *BLOCK, RESULT_NORM, RESULT_OUTPUT))
        raise EngineError("there is no such site", place=name, expected=f"one of {known}, with -0, -1, ..", found=base)
    return found


def producer(site: str, n_layer: int) -> str:
    """Return the full name of the site that a norm, or a product with a weight, takes as its input."""
    block = split(site)[1]
    [name] = table(site).inputs
    if name.startswith("l_out of"):
        return EMBD.name if not block else f"l_out-{block - 1}"
    if name == "l_out":
        return f"l_out-{n_layer - 1}"
    return name if block is None else f"{name}-{block}"


def weight_name(site: str, *, tied: bool) -> str:
    """Return the name of the tensor that a site's op multiplies with; ``tied``: the output reads the embeddings."""
    block, weight = split(site)[1], table(site).weight
    if weight == RESULT_OUTPUT.weight and tied:
        return EMBD.weight
    return weight if block is None else f"blk.{block}.{weight}"


def is_cached(site: str) -> bool:
    """Return whether a site's value is what the cache of keys and values gets."""
    return split(site)[0] in ("Kcur", "Vcur")


def of_node(name: str, op: str, source: str) -> str | None:
    """Return the full name of the site of a node of the reference's graph, or None for a node without a site.

    Args:
        name: the node's name, ``Qcur-7``; some nodes of qwen2 are called ``node_1234``.
        op: ggml's name of its op.
        source: name of its first source: the weight, for a product with one.
    """
    weight = _WEIGHT.fullmatch(source)
    if op == "MUL_MAT" and weight and weight["weight"] in _BY_WEIGHT:
        return f"{_BY_WEIGHT[weight['weight']].name}-{weight['layer']}"
    match = _NODE.fullmatch(name)
    site = _BY_NODE.get((match["name"], op)) if match else None
    if match is None or site is None or (match["layer"] is None) == (site in BLOCK):
        return None
    return site.name if match["layer"] is None else f"{site.name}-{match['layer']}"


def summed(product: str, block: int, biases: Collection[str]) -> str:
    """Return the full name of the site of a product after its bias is added, or of the product if it has no bias.

    Args:
        product: name of the product's site, ``ffn_gate`` or ``Qcur.MUL_MAT``.
        block: number of the block.
        biases: names of the bias tensors that the file has.
    """
    weight = table(product).weight.removesuffix(".weight")
    has_bias = f"blk.{block}.{weight}.bias" in biases
    return f"{product.removesuffix('.MUL_MAT')}.ADD-{block}" if has_bias else f"{product}-{block}"


def fused(implementation: str, compute: str) -> frozenset[str]:
    """Return the sites, without block, that the candidate does not pass: one call of burn computes over them.

    Args:
        implementation: how the candidate calls burn, ``records.pins.OPS`` or ``MODULES``.
        compute: arithmetic of its weight products; burn's ``SwiGlu`` multiplies by itself, in f32 only.
    """
    if implementation == OPS:
        return frozenset()
    gated = ("ffn_gate", "ffn_up", "ffn_gate.ADD", "ffn_up.ADD") if compute == Compute.F32 else ()
    return frozenset((*(site.name for site in BLOCK if site.inner), *gated))


def judged_op(site: str, fused: Collection[str]) -> str:
    """Return ggml's name of the op whose error a site shows: its own, or that of the last op that is fused into it."""
    own = table(site)
    return table(own.inputs[0]).op if own.op == "CONT" and own.inputs[0] in fused else own.op


def expected(n_layer: int, biases: Collection[str], fused: Collection[str] = ()) -> list[str]:
    """Return the full name of every site of a model, in the order in which the candidate passes them.

    Args:
        n_layer: number of blocks.
        biases: names of the bias tensors that the file has.
        fused: names of sites that the candidate does not pass.
    """
    blocks = [
        f"{site.name}-{layer}"
        for layer in range(n_layer)
        for site in BLOCK
        if (not site.bias_only or f"blk.{layer}.{site.weight}" in biases) and site.name not in fused
    ]
    return [EMBD.name, *blocks, RESULT_NORM.name, RESULT_OUTPUT.name]


def every_bias(n_layer: int) -> list[str]:
    """Return the name of every bias tensor that a file of so many blocks may have."""
    return [f"blk.{layer}.{site.weight}" for layer in range(n_layer) for site in BLOCK if site.bias_only]
