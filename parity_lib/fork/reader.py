"""The fork's GGUF reader against ``gguf.dequantize``, tensor by tensor: rung T2's question to another reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines.worker.client import Worker
from parity_lib.fork.probe import StackProbe
from parity_lib.model_file.facts import read_tensors
from parity_lib.records.traces import F32


@dataclass(slots=True)
class TypeResult:
    """All tensors of one type."""

    kind: str
    n_tensors: int = 0
    n_equal: int = 0  # tensors with all bits equal
    n_values: int = 0
    same_values: int = 0  # values with equal bits
    products: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # sums of a * b, a * a, b * b
    refused: str = ""  # the reader's words; the last ones

    @property
    def cosine(self) -> float:
        """Return the cosine between the expected and the read values; NaN without a value."""
        both, first, second = self.products
        return both / (first * second) ** 0.5 if first and second else float("nan")

    @property
    def right(self) -> bool:
        """Return whether every tensor of the type was read to the bit."""
        return self.n_equal == self.n_tensors


def compare_reader(path: Path, stack: str) -> list[TypeResult]:
    """Read every tensor of a file with the fork's reader and compare it; the results by type, in the file's order.

    Raises:
        EngineError, PinError: the stack is not built, or cannot call the reader.
    """
    results: dict[str, TypeResult] = {}
    with Worker("parity_lib.fork.reader:ForkReader", {"stack": stack}) as reader:
        for name, tensor in read_tensors(path).items():
            result = results.setdefault(tensor.type, TypeResult(tensor.type))
            result.n_tensors += 1
            found = reader.call("tensor", path, name)
            if isinstance(found, str):
                result.refused = found
            else:
                _count(result, tensor.dequantize().reshape(-1), found)
    return list(results.values())


def _count(result: TypeResult, right: F32, found: F32) -> None:
    if right.shape != found.shape:
        result.refused = f"{found.size} values instead of {right.size}"
        return
    same = np.ascontiguousarray(right, "<f4").view(np.uint32) == found.view(np.uint32)
    result.n_equal += bool(same.all())
    result.n_values += same.size
    result.same_values += int(same.sum())
    wide, other = right.astype(np.float64), found.astype(np.float64)
    for index, (a, b) in enumerate(((wide, other), (wide, wide), (other, other))):
        result.products[index] += float(a @ b)


class ForkReader(StackProbe):
    """``StackProbe`` for the stack whose extension can call the fork's GGUF reader."""

    def tensor(self, path: Path, name: str) -> F32 | str:
        """Return a tensor's values, flat float32, or what the fork's reader refused it with.

        Raises:
            EngineError: the stack's extension has no such reader.
        """
        read = getattr(self._extension, "fork_tensor", None)
        if read is None:
            raise EngineError(
                "the extension cannot call the fork's reader by name",
                place="fork_tensor",
                expected="the stack spine",
                found="a build without it",
                next_step="ask for stack spine",
            )
        try:
            return np.frombuffer(read(path, name), "<f4")
        except self._extension.BurnError as error:
            return str(error)
