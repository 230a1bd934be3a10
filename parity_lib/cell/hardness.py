"""Read off the captured graph of T3 how far the reference's scores and residuals reach: no pass of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np
import numpy.typing as npt

from parity_lib.engines.node_file import NodeFile
from parity_lib.model_file.facts import ModelFacts
from parity_lib.model_file.header import ModelFile
from parity_lib.records.hardness import BiasNorms, Extreme, Hardness
from parity_lib.records.traces import F32

RESIDUALS = ("ffn_inp", "l_out")
SCORE, DEPTH, RESIDUAL = "score", "depth", "residual"


def reach(capture: NodeFile, facts: ModelFacts, prompt_idx: int, n_prompt: int) -> dict[str, Extreme]:
    """Return the extremes of one capture by name: ``score``, ``depth`` and ``residual``.

    Reads only rows whose sites were all kept, only finite values, and of scores only what the mask lets through. A
    score is the product of query and key over the square root of the key's length, as the softmax takes it.
    """
    found: dict[str, Extreme] = {}
    first = capture.first_watched
    for batch in range(capture.watched, len(capture.batches)):
        n_rows = capture.batches[batch]
        for name, site, values in _values(capture, batch, facts, first, n_rows):
            at = np.unravel_index(int(np.abs(values).argmax()), values.shape)
            value = float(values[at])
            if name not in found or abs(value) > abs(found[name].value):
                token_idx = first + int(at[-2]) - (n_prompt - 1)
                head = int(at[0]) if name != RESIDUAL else None
                found[name] = Extreme(value, site, prompt_idx, token_idx, head)
        first += n_rows
    return found


def _values(
    capture: NodeFile, batch: int, facts: ModelFacts, first: int, n_rows: int
) -> Iterator[tuple[str, str, npt.NDArray[np.float32]]]:
    """Yield the observed values: scores and depths ``(heads, rows, keys)``, residuals ``(rows, n_embd)``."""
    for layer in range(facts.n_layer):
        scores = _scores(capture.get(batch, f"kq-{layer}"), facts, first, n_rows)
        yield SCORE, f"kq-{layer}", np.nan_to_num(scores, nan=0.0)
        top = np.nanmax(scores, axis=-1, keepdims=True, initial=-np.inf, where=~np.isnan(scores))
        yield DEPTH, f"kq-{layer}", np.nan_to_num(scores - top, nan=0.0)
        for base in RESIDUALS:
            values = capture.get(batch, f"{base}-{layer}").reshape(n_rows, -1)
            yield RESIDUAL, f"{base}-{layer}", np.where(np.isfinite(values), values, np.float32(0))


def _scores(products: F32, facts: ModelFacts, first: int, n_rows: int) -> F32:
    """Return the scaled scores of a node, NaN where the mask hides one or the reference's is not finite."""
    scores = products.reshape(facts.n_head, n_rows, -1) / np.float32(np.sqrt(facts.key_length))
    visible = np.arange(scores.shape[-1]) <= first + np.arange(n_rows)[:, np.newaxis]
    return np.where(visible & np.isfinite(scores), scores, np.float32(np.nan))


def bias_norms(file: ModelFile, names: Sequence[str]) -> Mapping[str, BiasNorms]:
    """Return the norms of a file's biases, one record for each product, such as ``attn_k.bias``."""
    kinds: dict[str, dict[str, float]] = {}
    for name in names:
        norm = float(np.linalg.norm(file.tensors[name].dequantize().astype(np.float64)))
        kinds.setdefault(name.split(".", 2)[2], {})[name] = norm
    return {
        kind: BiasNorms(max(norms.values()), max(norms, key=norms.__getitem__), median(norms.values()))
        for kind, norms in sorted(kinds.items())
    }


def join(captures: Sequence[Mapping[str, Extreme]], rows: int, biases: Mapping[str, BiasNorms]) -> Hardness | None:
    """Return the farthest of several captures; None where nothing was captured."""
    if not captures:
        return None
    score, depth, residual = (
        max((found[name] for found in captures), key=lambda one: abs(one.value)) for name in (SCORE, DEPTH, RESIDUAL)
    )
    return Hardness(rows, score, depth, residual, biases)
