"""Load a build of the candidate and run one matmul, in a worker, so that a crash is contained."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines.burn.build_info import load
from parity_lib.records.traces import F32

ROWS, INNER, COLUMNS = 96, 512, 64  # of the probe: every kernel's main loop and its edges


class StackProbe:
    """A build of the candidate without a model.

    Args:
        stack: the stack whose build is asked; or
        library: the library itself, before it is anybody's build.

    Raises:
        EngineError, PinError: there is no such build, or it cannot be imported.
    """

    def __init__(self, stack: str = "", library: str = "") -> None:
        self._extension: Any = load(stack)[0] if stack else _import(Path(library))

    def build(self) -> dict[str, Any]:
        """Return the build info of the library."""
        build: dict[str, Any] = json.loads(self._extension.build_info())
        return build

    def faults(self) -> dict[str, str]:
        """Return the faults that the library can seed, written form -> description; empty for a judged one."""
        return dict(self._extension.faults())

    def isa(self) -> dict[str, Any]:
        """Return the library's report about the instruction set."""
        isa: dict[str, Any] = json.loads(self._extension.isa_json())
        return isa

    def linear(self, weights: F32, rows: F32, policy: str = "f32") -> F32:
        """Return ``rows`` ``(m, k)`` times the rows of ``weights`` ``(n, k)``, float32 through burn: ``(m, n)``.

        Raises:
            EngineError: the build refuses the policy on this machine.
        """
        n_out, n_in = weights.shape
        try:
            raw = self._extension.op_linear("F32", weights.tobytes(), n_out, n_in, rows.tobytes(), policy)
        except self._extension.BurnError as error:
            raise EngineError(str(error), place="op_linear") from error
        return np.frombuffer(raw, "<f4").reshape(len(rows), n_out)

    def tile_products(self, weights: F32, rows: F32) -> F32:
        """Return the same product by the fork's BF16 tile kernel, which takes its fallback where tiles do not run."""
        raw = self._extension.op_tile_gemm(weights.tobytes(), rows.tobytes(), weights.shape[1])
        return np.frombuffer(raw, "<f4").reshape(len(rows), len(weights))

    def multiply(self) -> dict[str, Any]:
        """Multiply two fixed matrices through burn; return how far the product is from float64, and its digest.

        ``error`` is the largest difference over the float64 product's root mean square.
        """
        values = np.random.default_rng(1).standard_normal(ROWS * INNER + INNER * COLUMNS).astype("<f4")
        weights, rows = values[: ROWS * INNER].reshape(ROWS, INNER), values[ROWS * INNER :].reshape(COLUMNS, INNER)
        product = self.linear(weights, rows)
        exact = rows.astype(np.float64) @ weights.astype(np.float64).T
        error = float(np.abs(product - exact).max() / np.sqrt(np.square(exact).mean()))
        return {
            "shape": [COLUMNS, INNER, ROWS],
            "error": error,
            "sha256": hashlib.sha256(product.tobytes()).hexdigest(),
        }


def _import(library: Path) -> Any:  # noqa: ANN401 - the extension; its types are in burn_gguf/burn_gguf.pyi
    spec = importlib.util.spec_from_file_location("burn_gguf", library)
    if spec is None or spec.loader is None:
        raise EngineError("is no library", place=library, expected="a file that ends in .so", found=library.name)
    try:
        extension = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(extension)
    except ImportError as error:
        raise EngineError("the library cannot be imported", place=library, found=error) from error
    return extension
