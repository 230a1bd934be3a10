"""Move a model from the llama architecture to qwen2: the other RoPE pairing, biases, the same logits without them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.facts import ModelFacts, facts_of
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.models.synthetic import vector
from parity_lib.models.transplant.f32_file import F32, NewTensor, raw_pairs, require_f32, text_value, write_f32


def to_qwen2(source: Path, target: Path, *, bias: float, seed: int) -> None:
    """Write ``target``, the F32 llama model ``source`` as a qwen2 model.

    llama rotates neighbours (2i, 2i + 1) of a head, qwen2 the halves (i, i + D/2) (llama.cpp: NORM and NEOX). So the
    rows of Q and K change their order within each head; what the scores are made of stays the same. With zero biases
    the logits stay the same too.

    Args:
        source: an F32 llama file without RoPE divisors.
        target: the file to write.
        bias: half width of the biases of Q, K and V, uniform about 0; 0 writes zeros.
        seed: of the biases. Row i of a tensor gets the same bias whatever the number of rows.

    Raises:
        ModelFileError: the source is not F32, no llama model, or one that qwen2 cannot express.
    """
    file = ModelFile(source)
    require_f32(file)
    facts = facts_of(file)
    _refuse(facts, source)
    pairs = {
        ("qwen2." + key.removeprefix("llama.") if key.startswith("llama.") else key): value
        for key, value in raw_pairs(source).items()
    }
    pairs["general.architecture"] = text_value("qwen2")
    tensors = [new for tensor in file.tensors.values() for new in _tensors(tensor, facts, bias, seed)]
    write_f32(target, pairs, tensors)


def _refuse(facts: ModelFacts, source: Path) -> None:
    found = {
        "architecture": (facts.arch, "llama"),
        "RoPE divisors": (facts.has_rope_freqs, False),
        "biases": (bool(facts.biases), False),
        "rotary dimension": (facts.rope_dim, facts.key_length),
        "key length": (facts.key_length, facts.n_embd / facts.n_head),
        "value length": (facts.value_length, facts.n_embd / facts.n_head),
    }
    for what, (is_, must) in found.items():
        if is_ != must:
            raise ModelFileError(
                "this model has no counterpart in the qwen2 architecture",
                place=f"{source}: {what}",
                expected=must,
                found=is_,
                next_step="start from another llama model",
            )


def _tensors(tensor: Tensor, facts: ModelFacts, bias: float, seed: int) -> Iterator[NewTensor]:
    """Yield the tensor in qwen2's order of rows, and the bias that follows Q, K and V."""
    heads = {"attn_q": facts.n_head, "attn_k": facts.n_head_kv}
    part = tensor.name.split(".")[-2] if tensor.name.startswith("blk.") else ""
    if part in heads:
        yield NewTensor(tensor.name, tensor.shape, partial(half_split, tensor.rows, heads[part]))
    else:
        yield NewTensor(tensor.name, tensor.shape, lambda: tensor.rows)
    if part in ("attn_q", "attn_k", "attn_v"):
        name, rows = tensor.name.replace("weight", "bias"), tensor.shape[0]
        yield NewTensor(name, (rows,), partial(vector, name, rows, half_width=bias, seed=seed))


def half_split(rows: F32, n_head: int) -> F32:
    """Return Q's or K's rows with each head's even ones first, then its odd ones, ``(n_head * D, n_embd)``."""
    pairs = rows.reshape(n_head, -1, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
