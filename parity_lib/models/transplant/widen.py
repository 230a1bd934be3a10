"""Widen a model with zeros: rows long enough for K-quants, the same logits."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.facts import ModelFacts, expected_shapes, facts_of
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.models.transplant.f32_file import (
    F32,
    NewTensor,
    f32_value,
    raw_pairs,
    require_f32,
    u32_value,
    write_f32,
)


def widen(source: Path, target: Path, n_embd: int) -> None:
    """Write ``target``, the F32 model ``source`` with embeddings of ``n_embd`` numbers, the new ones zero.

    Heads grow in the same ratio, in whole groups that share a key head, so that rows of all matrices are multiples
    of what ``n_embd`` is a multiple of (the feed-forward length stays). RMS norm divides by the root of the *mean*
    square, which the zeros make smaller by r = old n_embd / ``n_embd``: x / sqrt(r m + r eps) * w sqrt(r) is
    x / sqrt(m + eps) * w, so norm weights are multiplied by sqrt(r), and epsilon by r. New heads see zero scores and
    values of zero, and nothing reads them.

    Raises:
        ModelFileError: the source is not F32, or its heads cannot grow in that ratio.
    """
    file = ModelFile(source)
    require_f32(file)
    old = facts_of(file)
    new = widened_facts(old, n_embd, source)
    pairs = raw_pairs(source)
    arch = old.arch
    pairs[f"{arch}.embedding_length"] = u32_value(new.n_embd)
    pairs[f"{arch}.attention.head_count"] = u32_value(new.n_head)
    pairs[f"{arch}.attention.head_count_kv"] = u32_value(new.n_head_kv)
    pairs[f"{arch}.attention.layer_norm_rms_epsilon"] = f32_value(new.rms_eps)
    shapes = expected_shapes(new)
    root = float(np.sqrt(old.n_embd / n_embd))
    tensors = [
        NewTensor(name, shapes[name], partial(_padded, tensor, shapes[name], root if "norm" in name else 1.0))
        for name, tensor in file.tensors.items()
    ]
    write_f32(target, pairs, tensors)


def widened_facts(old: ModelFacts, n_embd: int, source: Path) -> ModelFacts:
    """Return the facts after widening. Raises ``ModelFileError`` if the heads cannot grow in the same ratio."""
    whole = not (old.n_head_kv * n_embd) % old.n_embd
    if n_embd <= old.n_embd or not whole:
        raise ModelFileError(
            "the model cannot be widened so",
            place=source,
            expected=f"more than {old.n_embd} numbers, and {old.n_head_kv} key heads times the ratio a whole number",
            found=n_embd,
            next_step="choose another width",
        )
    return replace(
        old,
        n_embd=n_embd,
        n_head=old.n_head * n_embd // old.n_embd,
        n_head_kv=old.n_head_kv * n_embd // old.n_embd,
        rms_eps=old.rms_eps * old.n_embd / n_embd,
    )


def _padded(tensor: Tensor, shape: tuple[int, ...], factor: float) -> F32:
    """Return the tensor times a factor (one rounding to float32), with zeros behind each axis."""
    values = np.zeros(shape, np.float32)
    inner = tuple(slice(n) for n in tensor.shape)
    values[inner] = tensor.rows if factor == 1.0 else tensor.rows.astype(np.float64) * factor
    return values
