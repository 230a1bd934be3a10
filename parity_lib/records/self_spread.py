"""The reference's own spread as a record: how far llama.cpp is from itself, position by position. No judging.

One *spread* is a pair of runs of the reference on the same file and the same fed tokens, strict settings against
another way to run it, or against its own F32 twin. Of each only numbers per position are kept, no rows: about
0.2 MB for 3,500 positions. They are float32 from the start, so that a stored record is equal to the one measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from parity_lib.base.errors import TraceMismatchError
from parity_lib.base.names import Kind
from parity_lib.base.record import Count, NotEmpty, Positive, Record, Seconds, Sha256
from parity_lib.records.traces import F32, I32

STRICT = "strict"
DEFAULT, FLASH_F16, DEFAULT_DECODE, OTHER_BUILD = "default", "flash_f16", "default_decode", "other_build"
VARIANTS = (DEFAULT, FLASH_F16, DEFAULT_DECODE, OTHER_BUILD)
"""Ways to run the reference whose differences are its self-spread. All but one are compared with strict settings;
``default_decode`` is the defaults one token at a time, compared with the defaults in batches."""
AGAINST = {DEFAULT: STRICT, FLASH_F16: STRICT, DEFAULT_DECODE: DEFAULT, OTHER_BUILD: STRICT}
TWIN = "twin"
"""The F32 twin against the file as it is: what an exact product of the same weights must show, seen by the reference
alone. No part of the self-spread: limits are derived from it."""

Flags = npt.NDArray[np.bool_]


class VariantRun(Record, frozen=True):
    """How a variant of the reference ran, as the engine read it back: proof that it ran as it is called."""

    settings: NotEmpty
    flash_attn: NotEmpty
    type_k: NotEmpty
    type_v: NotEmpty
    tiled: bool  # llama.cpp's tiled products (GGML_CPU_TILED_MM)
    batch: Positive  # rows at most in one pass
    longest_prompt: Count | None  # longer ones did not take part; None: all did
    weight_buffers_mib: Mapping[str, float]  # buffer -> MiB of weights
    isa: NotEmpty  # ISA target that was asked for
    target: NotEmpty  # ISA target that the library was built for
    n_threads: Positive
    seconds: Seconds


class Variant(Record, frozen=True, eq=False):
    """One pair of runs of the reference, by position. delta = the other run minus the one it is compared with."""

    name: NotEmpty  # of VARIANTS, or TWIN
    against: NotEmpty  # what it is compared with: STRICT or DEFAULT
    asked: Count  # positions that it had to give; fewer rows make T5 incomplete
    same_as: str  # an earlier variant, or what it is compared with, if all its bits are the same; else empty
    run: VariantRun
    rows: I32  # (m,): which positions of the record
    rms: F32  # (m,) logits, over the whole vocabulary
    std: F32  # (m,) logits, of the row that it is compared with
    mean: F32  # (m,) logits, of the same row
    delta: F32  # (m,) logits, at delta_id
    kl: F32  # (m,) nats
    pair_sigma: F32  # (m,) logits, of the difference of two top logits
    top1_equal: Flags  # (m,)
    top5_equal: Flags  # (m,) as a set

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                continue
            if array.shape != self.rows.shape:
                raise TraceMismatchError(
                    "the arrays of a spread differ in length",
                    place=f"{self.name}: {name}",
                    expected=self.rows.shape,
                    found=array.shape,
                )
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.rows)


class Displaced(NamedTuple):
    """A flip between the reference's F32 twin and the file as it is that the self-spread does not explain.

    All settings of the reference agree with each other there and not with the exact product: an error that they
    share. It is measured without the candidate.
    """

    prompt_idx: int
    token_idx: int
    kind: Kind


class SelfSpread(Record, frozen=True, eq=False, tag_field="schema", tag="parity/spread/1"):
    """All that was measured of the reference against itself, for one file, one set of fed tokens and one machine."""

    model_sha256: Sha256
    prompts_sha256: Sha256  # of the prompts file
    isa: NotEmpty
    machine_class: NotEmpty
    commit: NotEmpty  # of llama.cpp
    prompt_idx: I32  # (n,): every position that the cell expects, in fed order
    token_idx: I32  # (n,)
    variants: tuple[Variant, ...]  # in order of VARIANTS
    absent: Mapping[str, str]  # variant -> why it was not run
    twin: Variant
    displaced: tuple[Displaced, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_idx)

    @property
    def counted(self) -> tuple[str, ...]:
        """Return the variants that the spread is pooled over: those of this build that are not bit-equal to another.

        A copy of an earlier variant would count one difference twice, a copy of what it is compared with is none.
        The other build is reported only: its availability depends on the local cache, so limits must not.
        """
        return tuple(v.name for v in self.variants if not v.same_as and v.name != OTHER_BUILD)

    def variant(self, name: str) -> Variant | None:
        """Return one variant, or None if it was not run."""
        return next((v for v in self.variants if v.name == name), None)


def with_copies_marked(variants: tuple[Variant, ...], digests: Mapping[str, bytes]) -> tuple[Variant, ...]:
    """Return the variants with ``same_as`` set: the name of the variant whose rows it equals bit by bit, or "".

    Args:
        variants: in order of VARIANTS.
        digests: of all rows of a variant together.
    """
    first: dict[tuple[str, bytes], str] = {}
    marked = []
    for variant in variants:
        earlier = first.setdefault((variant.against, digests[variant.name]), variant.name)
        same_as = "" if earlier == variant.name else earlier
        marked.append(replace(variant, same_as=same_as if np.any(variant.rms != 0) else variant.against))
    return tuple(marked)
