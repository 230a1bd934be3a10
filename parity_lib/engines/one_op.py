"""One op to be recomputed: inputs, weight rows, and a model file of one block in which all other weights are zero.

The candidate computes the op where it always does, inside of its own forward pass, with its cache, positions, scale and
wiring; the zeros around it cost nothing. Sizes that the op does not feel are as small as they may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.record import Positive, Record
from parity_lib.engines import sites
from parity_lib.engines.sites import Site
from parity_lib.model_file.facts import UNSCALED, RopeScaling
from parity_lib.records.traces import F32


class Sizes(Record, frozen=True):
    """Sizes of the reduced model, counts of numbers."""

    n_embd: Positive = 1
    n_head: Positive = 1
    n_head_kv: Positive = 1
    key_length: Positive = 2
    value_length: Positive = 1
    n_ff: Positive = 1
    n_vocab: Positive = 2


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """Values that a site is given at some positions; at all others it is zero."""

    site: str  # without its block
    rows: tuple[int, ...]  # positions
    values: F32  # (len(rows), width); inside of attention (n_head, width) of the last position

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the values."""
        return self.values.shape


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows of a tensor as they lie in the file; the others of the reduced tensor are zero."""

    tensor: str  # without its block
    type: str  # ggml's name
    shape: tuple[int, ...]  # of the reduced tensor, numpy order: (n_out, n_in) or (n,)
    rows: tuple[int, ...]  # which rows of it these are; (0,) of a vector
    blocks: bytes

    def whole(self) -> npt.NDArray[np.uint8]:
        """Return all bytes of the reduced tensor, ``(n_out, bytes of a row)``."""
        kept = np.frombuffer(self.blocks, np.uint8).reshape(len(self.rows), -1)
        n_out = self.shape[0] if len(self.shape) == 2 else 1
        out = np.zeros((n_out, kept.shape[1]), np.uint8)
        out[list(self.rows)] = kept
        return out

    def dequantize(self) -> F32:
        """Return the values of the kept rows, ``(len(rows), n_in)``, as ``gguf.dequantize`` makes them."""
        raw = np.frombuffer(self.blocks, np.uint8).reshape(len(self.rows), -1)
        dtypes = {"F32": "<f4", "F16": "<f2"}
        stored = raw.view(dtypes[self.type]) if self.type in dtypes else raw
        return np.asarray(gguf.dequantize(stored, gguf.GGMLQuantizationType[self.type]), dtype=np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class OneOp:
    """One op at one position of one sequence, reduced."""

    site: str  # without its block
    arch: str
    compute: str  # of the candidate's matmuls
    eps: float
    rope_base: float
    other_eps: float  # of the candidate's file
    other_rope_base: float
    rope_dim: int
    sizes: Sizes
    position: int  # that is compared
    before: int  # rows of the candidate's pass that stand before it
    row: int  # its row in the reference's pass
    n_rows: int  # of that pass
    buffer: str  # where the reference had the weight, by ggml's name; empty: it has none
    n_kv: int  # keys that the reference's graph has room for; 0 outside of attention
    inputs: tuple[Input, ...]
    weight: Rows | None  # of the reference's file
    other_weight: Rows | None  # of the candidate's file, where that has other bytes there
    divisors: F32 | None  # of RoPE's angles
    judged: tuple[int, ...]  # numbers of the output that are compared, in the reduced site, flat
    rope_scaling: RopeScaling = UNSCALED
    other_rope_scaling: RopeScaling = UNSCALED

    @property
    def table(self) -> Site:
        """Return the site's row of the table of sites."""
        return sites.table(self.site)

    def given(self, site: str) -> F32:
        """Return what a site is given, ``(len(rows), width)``."""
        return next(given.values for given in self.inputs if given.site == site)

    def passes(self) -> list[int]:
        """Return the rows of each pass that leads to the position, the last with the position as its last row."""
        first = self.position - self.before
        return [*([first] if first else []), self.before + 1]

    def alone(self) -> OneOp:
        """Return the same op fed as a pass of one row."""
        return replace(self, before=0)


def write_model(op: OneOp, path: Path) -> Path:
    """Write the reduced model of the candidate's side as a GGUF file and return its path."""
    s = op.sizes
    writer = gguf.GGUFWriter(path, op.arch)
    writer.add_block_count(1)
    writer.add_context_length(op.position + 1)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_key_length(s.key_length)
    writer.add_value_length(s.value_length)
    writer.add_layer_norm_rms_eps(op.other_eps)
    writer.add_rope_freq_base(op.other_rope_base)
    writer.add_rope_dimension_count(min(op.rope_dim, s.key_length // 2 * 2))
    _add_scaling(writer, op.other_rope_scaling)
    writer.add_vocab_size(s.n_vocab)
    writer.add_tokenizer_model("none")
    kept = op.other_weight or op.weight
    name = None if kept is None else _full(op.site, kept.tensor)
    for tensor, shape in _shapes(op):
        if kept is None or tensor != name:
            writer.add_tensor(tensor, np.zeros(shape, np.float32))
            continue
        blocks = kept.whole()
        raw = blocks.reshape(-1) if len(kept.shape) == 1 else blocks
        kind = gguf.GGMLQuantizationType[kept.type]
        dtype = {"F32": "<f4", "F16": "<f2"}.get(kept.type)
        if dtype is not None:
            writer.add_tensor(tensor, raw.view(dtype))
        else:
            writer.add_tensor(tensor, raw, raw_dtype=kind)
    if op.divisors is not None:
        writer.add_tensor("rope_freqs.weight", np.ascontiguousarray(op.divisors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_scaling(writer: gguf.GGUFWriter, scaling: RopeScaling) -> None:
    """Write the metadata of RoPE's scaling, if there is any."""
    if scaling.kind != "none":
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.n_ctx_orig)
    if scaling.attn_factor != 1:
        writer.add_rope_scaling_attn_factors(scaling.attn_factor)


def _full(site: str, tensor: str) -> str:
    return f"blk.0.{tensor}" if sites.table(site) in sites.BLOCK else tensor


def _shapes(op: OneOp) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Return name and shape of every tensor of the reduced model; a bias only where the op is its sum."""
    s = op.sizes
    q, k, v = s.n_head * s.key_length, s.n_head_kv * s.key_length, s.n_head_kv * s.value_length
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (s.n_vocab, s.n_embd)),
        ("blk.0.attn_norm.weight", (s.n_embd,)),
        ("blk.0.attn_q.weight", (q, s.n_embd)),
        ("blk.0.attn_k.weight", (k, s.n_embd)),
        ("blk.0.attn_v.weight", (v, s.n_embd)),
        ("blk.0.attn_output.weight", (s.n_embd, s.n_head * s.value_length)),
        ("blk.0.ffn_norm.weight", (s.n_embd,)),
        ("blk.0.ffn_gate.weight", (s.n_ff, s.n_embd)),
        ("blk.0.ffn_up.weight", (s.n_ff, s.n_embd)),
        ("blk.0.ffn_down.weight", (s.n_embd, s.n_ff)),
        ("output_norm.weight", (s.n_embd,)),
        ("output.weight", (s.n_vocab, s.n_embd)),
    ]
    if op.table.bias_only:
        lengths = {"attn_q": q, "attn_k": k, "attn_v": v, "attn_output": s.n_embd, "ffn_down": s.n_embd}
        length = lengths.get(op.table.weight.removesuffix(".bias"), s.n_ff)
        shapes.append((f"blk.0.{op.table.weight}", (length,)))
    return shapes
