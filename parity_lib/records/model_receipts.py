"""What each model file made here was made from: the receipts that lie beside the files in the cache."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from parity_lib.base.record import Commit, Count, NotEmpty, Positive, Record, Sha256
from parity_lib.records.pins import Recipe


class Equality(Record, frozen=True):
    """How far the logits of a derived F32 file are from its source's, llama.cpp strict on both."""

    step: Annotated[str, Meta(pattern="^(widen|qwen2)$")]
    source: NotEmpty  # id and quant of the file it was derived from
    rms_over_std: float  # pooled over positions, over the spread of the source's rows
    max_abs: float  # largest difference of any logit
    positions: Positive
    limit: float  # on rms_over_std


class _Made(Record, frozen=True):
    sha256: Sha256  # of the file itself
    bytes: Count
    machine_class: NotEmpty  # that it was made on
    llama_cpp: Commit  # that made it


class ModelReceipt(_Made, frozen=True, tag_field="schema", tag="parity/model-receipt/1"):
    """What a quantised or derived model file is, and the proofs of the steps that led to it."""

    made_from: Sha256  # the F32 file
    recipe: Recipe
    equalities: tuple[Equality, ...]  # one for each step; () where it was quantised only


class TwinReceipt(_Made, frozen=True, tag_field="schema", tag="parity/twin-receipt/1"):
    """What a twin is."""

    twin_of: Sha256  # its source
    kind: Annotated[str, Meta(pattern="^(F32|BF16)$")]
