"""The list of tensors of a GGUF file: names, types, dimensions and where the data lies, checked."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import gguf

from parity_lib.model_file.cursor import AGAIN, Cursor, quoted

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_MAX_DIMS, _MAX_COUNT = 4, (1 << 63) - 1  # dimensions and elements that ggml counts


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the tensor list; ``offset`` is from the start of the data, ``dims`` are in ggml's order."""

    name: str
    type: str
    dims: tuple[int, ...]
    offset: int
    n_bytes: int


def tensor_list(cursor: Cursor, n: int) -> list[Entry]:
    """Read ``n`` entries, each name once. Raises ``ModelFileError``."""
    seen: dict[str, Entry] = {}
    for _ in range(n):
        offset = cursor.at
        entry = _tensor_entry(cursor)
        if entry.name in seen:
            raise cursor.refuse(
                f"byte {offset}: duplicate tensor name",
                "each name once",
                f"{quoted(entry.name)} again",
                "convert the model again",
            )
        seen[entry.name] = entry
    return list(seen.values())


def _tensor_entry(cursor: Cursor) -> Entry:
    what = "the tensor list"
    name = cursor.name("a tensor name")
    shape_at, called = cursor.at, f"tensor {quoted(name)}"
    n_dims = cursor.scalar("I", what)
    if n_dims > _MAX_DIMS:
        raise cursor.refuse(f"byte {shape_at}: {called} has too many dimensions", f"at most {_MAX_DIMS}", n_dims)
    dims = tuple(cursor.scalar("Q", what) for _ in range(n_dims))
    type_at = cursor.at
    kind = _tensor_type(cursor, type_at, called, cursor.scalar("I", what))
    offset = cursor.scalar("Q", what)
    block, size = (int(number) for number in gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]])
    row = dims[0] if dims else 1
    if row % block:
        raise cursor.refuse(
            f"byte {shape_at}: {called} has rows that end inside a {kind} block",
            f"a multiple of {block} elements",
            row,
            "convert the model again",
        )
    n_elements, most = 1, 1
    for dim in dims:  # a dimension of 0 counts as 1 in `most`, so that the product of any of the dimensions fits
        n_elements, most = n_elements * dim, most * max(dim, 1)
    n_bytes = n_elements // block * size
    if max(most, n_bytes) > _MAX_COUNT:
        expected, found = "fewer than 2^63 elements and bytes", f"dimensions {list(dims)}"
        raise cursor.refuse(f"byte {shape_at}: {called} is absurdly large", expected, found)
    return Entry(name, kind, dims, offset, n_bytes)


def _tensor_type(cursor: Cursor, offset: int, called: str, number: int) -> str:
    known = {int(kind): kind.name for kind in gguf.GGMLQuantizationType} | {42: "Q2_0"}  # newer than this gguf
    name = known.get(number)
    if name in TYPES:
        return str(name)
    raise cursor.refuse(
        f"byte {offset}: {called} has an {'unknown' if name is None else 'unsupported'} type",
        f"one of {' '.join(TYPES)}",
        f"number {number}" if name is None else name,
        "quantise the model again to one of these",
    )


def check_layout(cursor: Cursor, entries: list[Entry], alignment: int, start: int) -> None:
    """Refuse a tensor that is not aligned, ends behind the file, or shares bytes with another. Gaps are allowed."""
    size = len(cursor.data)
    for entry in entries:
        if entry.offset % alignment:
            raise cursor.refuse(
                f"tensor {quoted(entry.name)} is misaligned",
                f"an offset that is a multiple of {alignment}",
                entry.offset,
                "write the file again with a current converter",
            )
        end = start + entry.offset + entry.n_bytes
        if end > size:
            raise cursor.refuse(
                f"tensor {quoted(entry.name)} ends past the end of the file",
                f"an end at byte {size} or before, the size of the file",
                end,
                f"{AGAIN}, it seems cut off",
            )
    ordered = sorted((entry for entry in entries if entry.n_bytes), key=lambda entry: entry.offset)
    for one, other in itertools.pairwise(ordered):
        end = one.offset + one.n_bytes
        if other.offset < end:
            raise cursor.refuse(
                "tensors overlap",
                f"{quoted(other.name)} to begin at byte {start + end} or later, where {quoted(one.name)} ends",
                start + other.offset,
                "convert the model again",
            )
