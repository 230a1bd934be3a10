"""The weight products of a capture through the fork's BF16 tile kernel, called by name; no op of burn reaches it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.node_file import NodeFile
from parity_lib.numerics.op_error import OpError, op_error
from parity_lib.records.traces import F32

KERNEL = "hpc::bf16_tile_gemm::bf16_tile_gemm_16x16"


class TileReplay(Burn):
    """``Burn`` for the stack whose extension can call the fork's own kernels."""

    def kernel(self) -> tuple[bool, str]:
        """Return whether the kernel would run on AMX tiles here, and what the fork reports about AMX.

        Raises:
            EngineError: the stack's extension has no such kernel.
        """
        report = getattr(self._extension, "tile_report", None)
        if report is None:
            raise EngineError(
                "the extension cannot call the fork's kernels by name",
                place=f"stack {self._build.stack}",
                expected=KERNEL,
                found="a build without it",
                next_step="ask for stack spine",
            )
        used, words = report()
        return bool(used), str(words)

    def products(self, folder: Path, own_rounding: bool, *, progress: Progress) -> list[OpError]:
        """Compute every weight product of a capture from the reference's own inputs, and compare it.

        Args:
            folder: a capture of ``LlamaTaps`` on this same file, whose matrices are BF16 or F32.
            own_rounding: round activations as the fork does on this machine instead of to nearest, ties to even.
            progress: called with (done, total).
        """
        self.kernel()
        nodes = NodeFile(Path(folder))
        shapes = {name: shape for name, _, shape in self.tensors()}
        expected = sites.expected(self._facts["n_layer"], self._facts["biases"])
        names = [name for name in expected if sites.table(name).op == "MUL_MAT" and sites.table(name).weight]
        errors: list[OpError] = []
        for number, name in enumerate(names):
            site, (_, layer) = sites.table(name), sites.split(name)
            tensor = site.weight if layer is None else f"blk.{layer}.{site.weight}"
            tensor = tensor if tensor in shapes else "token_embd.weight"  # tied output
            weights: F32 = np.frombuffer(self.dequantize(tensor), "<f4").reshape(shapes[tensor])
            source = site.inputs[0] if layer is None else f"{site.inputs[0]}-{layer}"
            first = nodes.first_watched
            for batch in range(nodes.watched, len(nodes.batches)):
                n_rows = nodes.batches[batch]
                given = nodes.get(batch, source).reshape(n_rows, -1)
                raw = self._extension.op_tile_gemm(
                    weights.tobytes(),
                    np.ascontiguousarray(given).tobytes(),
                    weights.shape[1],
                    own_rounding,
                    self._n_threads,
                )
                found = np.frombuffer(raw, "<f4").reshape(n_rows, -1)
                reference = nodes.get(batch, name).reshape(n_rows, -1)
                errors.append(op_error(name, site.op, batch, first, reference, found))
                first += n_rows
            progress(number + 1, len(names))
        return errors
