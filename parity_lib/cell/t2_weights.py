"""Every tensor of a file as the candidate dequantises it, against ``gguf.dequantize``: the capture of rung T2."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from parity_lib.base.progress import Progress
from parity_lib.engines.worker.client import Worker
from parity_lib.judge.t2_weights import TensorResult, TensorSpec, compare_tensor, judge_weights
from parity_lib.model_file.facts import Tensor, read_tensors
from parity_lib.records.verdicts import Divergence, RungResult


def compare_tensors(reference: Path, burn: Worker, progress: Progress) -> tuple[RungResult, list[Divergence]]:
    """Compare one tensor after the other; at most two of them are in memory.

    Args:
        reference: the file whose header says what has to be there.
        burn: the candidate on its own file, the same one unless a red control gives it another.
        progress: called with (tensors done, tensors).
    """
    expected = read_tensors(reference)
    given = {name for name, _, _ in burn.call("tensors")}
    results = []
    for done, (name, tensor) in enumerate(expected.items(), start=1):
        if name in given:
            theirs = np.frombuffer(burn.call("dequantize", name), "<f4")
            results.append(compare_tensor(name, tensor.dequantize(), theirs))
        progress(done, len(expected))
    results += [TensorResult(name, 0, 0, 0, 0.0) for name in sorted(given - expected.keys())]
    return judge_weights([_spec(tensor) for tensor in expected.values()], results)


def _spec(tensor: Tensor) -> TensorSpec:
    block_size, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    return TensorSpec(tensor.name, tensor.type, int(np.prod(tensor.shape)), int(block_size))
