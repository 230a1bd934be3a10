"""Wrong blocks in a file: one small edit in place, taken back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.header import Tensor

U8 = npt.NDArray[np.uint8]

# Where the parts of a block lie: ggml-common.h of llama.cpp 0c1e570.
_SCALE = {**dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K"), 0), "Q6_K": 208}
_MINIMUM = dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), 2)
_SUB_SCALE = {"Q4_K": 4, "Q5_K": 4, "Q6_K": 192}
_CODE = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4, "Q5_0": 6, "Q5_1": 8, "Q4_K": 16, "Q5_K": 48, "Q6_K": 0}
_CODE |= dict.fromkeys(("F16", "BF16", "F32"), 0)
MORE = 1.25  # times a scale or a minimum


def fits(edit: str, kind: str) -> bool:
    """Return whether a tensor of a type can be edited so."""
    needs: Mapping[str, Mapping[str, int]] = {"scale": _SCALE, "minimum": _MINIMUM, "sub_scale": _SUB_SCALE}
    if edit == "number":
        return kind == "F32"
    return kind in needs.get(edit, _CODE)


@contextlib.contextmanager
def edited(path: Path, tensor: Tensor, edit: str, row: int) -> Iterator[None]:
    """Change one row of a tensor in a file inside a ``with`` block, and restore its bytes at the end.

    Args:
        path: a copy; no other reader may use it meanwhile.
        tensor: of the file.
        edit: one of ``EDITS``.
        row: of the tensor; the number of a value where it is a vector.

    Raises:
        ModelFileError: the edit does not fit the tensor's type, or changed nothing.
    """
    if not fits(edit, tensor.type):
        raise ModelFileError("this edit does not fit the tensor", place=tensor.name, expected=edit, found=tensor.type)
    n_rows = tensor.shape[0]
    width = tensor.n_bytes // n_rows
    file = np.memmap(path, np.uint8, "r+", tensor.offset, (n_rows, width))
    kept = range(row, min(row + 2, n_rows))
    before = np.array(file[kept.start : kept.stop])
    file[kept.start : kept.stop] = _changed(before, edit, tensor.type)
    try:
        if np.array_equal(file[kept.start : kept.stop], before):
            raise ModelFileError("an edit changed no byte", place=f"{tensor.name} row {row}", found=edit)
        file.flush()
        yield
    finally:
        file[kept.start : kept.stop] = before
        file.flush()


def _changed(rows: U8, edit: str, kind: str) -> U8:
    """Return two neighbouring rows, ``(2, bytes)``, edited; but for ``swap_rows`` it is the first that changes."""
    out = rows.copy()
    if edit == "swap_rows":
        return np.ascontiguousarray(out[::-1])
    if edit == "zero_row":
        out[0] = 0
        return out
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    block = out[0].reshape(-1, size)[len(out[0]) // size // 2]  # a view: the middle one of the row
    actions: Mapping[str, Callable[[], None]] = {
        "scale": lambda: _more(block, _SCALE[kind], "<f2", MORE),
        "minimum": lambda: _more(block, _MINIMUM[kind], "<f2", MORE),
        "number": lambda: _more(block, 0, "<f4", 1.01),
        "sub_scale": lambda: _flip(block, _SUB_SCALE[kind]),
        "code": lambda: _flip(block, _CODE[kind]),
    }
    actions[edit]()
    return out


def _more(block: U8, at: int, dtype: str, factor: float) -> None:
    value = block[at : at + int(dtype[-1])].copy().view(dtype)
    block[at : at + int(dtype[-1])] = (value.astype(np.float64) * factor).astype(dtype).view(np.uint8)


def _flip(block: U8, at: int) -> None:
    block[at] ^= 1
