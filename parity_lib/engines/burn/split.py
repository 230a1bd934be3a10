"""Split each product of a captured run: the weights dequantised on both sides, the reference's own inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.progress import Progress
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.node_file import NodeFile
from parity_lib.model_file.facts import facts_of
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.numerics.ggml_activations import ACTIVATIONS, correction, minima, quantise, round_bf16
from parity_lib.numerics.product_split import ProductSplit, split_product
from parity_lib.records.traces import F32

ROWS = 16  # positions; errors of a product pool over thousands of channels too
PANEL = 1 << 22  # weights that are float64 at a time: 32 MB


class BurnSplit(Burn):
    """``Burn`` that splits the error of each product of a capture by its causes."""

    def split(self, folder: Path, reference: Path, *, progress: Progress) -> list[ProductSplit]:
        """Return the split of every product with a weight, at the last positions of a capture, in its order.

        Args:
            folder: a capture of ``LlamaTaps``.
            reference: the file that the reference read; this engine's own may be another, as a red control.
            progress: called with products done and to do.

        Raises:
            EngineError: the capture lacks a site.
        """
        nodes, file = NodeFile(Path(folder)), ModelFile(Path(reference))
        facts = facts_of(file)
        first = max(nodes.first_watched, len(nodes.tokens) - ROWS)
        products = [name for name in sites.expected(facts.n_layer, facts.biases) if _has_weight(name)]
        found = []
        for done, site in enumerate(products):
            tensor = file.tensors[sites.weight_name(site, tied=facts.tied_output)]
            found.append(self._product(nodes, site, tensor, first))
            progress(done + 1, len(products))
        return found

    def _product(self, nodes: NodeFile, site: str, tensor: Tensor, first: int) -> ProductSplit:
        x: F32 = nodes.rows(sites.producer(site, self._facts["n_layer"]), first)
        theirs: F32 = nodes.rows(site, first)
        rounded, differ = quantise(ACTIVATIONS[tensor.type], x), 0
        both = np.concatenate([x.astype(np.float64), rounded.values])
        exact, with_rounding = np.empty(theirs.shape), np.empty(theirs.shape)
        for rows, weights, blocks, other in self._panels(tensor):
            differ += int((weights.view(np.uint32) != other.view(np.uint32)).sum())
            products = both @ weights.astype(np.float64).T
            exact[:, rows] = products[: len(x)]
            with_rounding[:, rows] = products[len(x) :] + correction(rounded, minima(tensor.type, blocks))
        n_weights = int(np.prod(tensor.shape))
        return split_product(site, tensor.type, exact, with_rounding, theirs, n_weights=n_weights, differ=differ)

    def _panels(self, tensor: Tensor) -> Iterator[tuple[slice, F32, Any, F32]]:
        """Yield which rows, and these rows of a weight: dequantised by ``gguf``, as they lie there, by this engine.

        Against a BF16 twin this engine's numbers are rounded first, as its policy does before it multiplies.
        """
        own = np.frombuffer(self.dequantize(tensor.name), "<f4").reshape(tensor.shape)
        own = round_bf16(own) if tensor.type == "BF16" else own
        step = max(1, PANEL // tensor.shape[1])
        for start in range(0, tensor.shape[0], step):
            stop = min(start + step, tensor.shape[0])
            raw = np.ascontiguousarray(tensor.rows[start:stop])
            yield (
                slice(start, stop),
                tensor.dequantize(start, stop),
                raw.view(np.uint8).reshape(stop - start, -1),
                own[start:stop],
            )


def _has_weight(site: str) -> bool:
    table = sites.table(site)
    return table.op == "MUL_MAT" and bool(table.weight)
