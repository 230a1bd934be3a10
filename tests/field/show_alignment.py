"""Show what ``llama_model_quantize`` makes of ``general.alignment``: ``python tests/field/show_alignment.py``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

from parity_lib.engines.llamacpp.engine import quantize_file
from parity_lib.models.synthetic import Shape, build


def wrong(folder: Path, alignment: int) -> str:
    """Return how the F32 file that llama.cpp makes of a file of this alignment differs from ``gguf.dequantize``."""
    source = build(
        "llama", "Q8_0", folder / f"{alignment}.gguf", Shape(n_layer=1, n_vocab=96, n_ff=288, alignment=alignment)
    )
    quantize_file(source, folder / f"{alignment}.F32.gguf", "F32")
    try:
        made = gguf.GGUFReader(folder / f"{alignment}.F32.gguf").tensors
    except ValueError as error:
        return f"cannot be read: {error}"
    ours = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    differ = [
        tensor.name
        for tensor in made
        if not np.array_equal(
            tensor.data,
            gguf.dequantize(ours[tensor.name].data, ours[tensor.name].tensor_type).reshape(tensor.data.shape),
        )
    ]
    return f"{len(differ)} of {len(made)} tensors differ"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for number in (16, 32, 4096):
            sys.stdout.write(f"general.alignment {number}: {wrong(Path(name), number)}\n")
