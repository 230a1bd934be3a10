"""Compare the two libraries of a stack without a fault: the one with faults must give the judged one's bits.

Only then is a seeded fault all that a red control differs in from the candidate that is judged. It stands apart from
the matrix because it seeds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.cell.open_engines import open_burn
from parity_lib.cell.request import Cell
from parity_lib.engines.burn.paths import Digests
from parity_lib.models import ensure

MODELS = ("synthetic-llama", "synthetic-qwen2")  # one of each architecture
QUANT = "Q8_0"
LENGTHS = (33, 1, 70)  # past the end of a block of keys and of queries


def compare_libraries(cell: Cell) -> int:
    """Return how many rows of logits were compared: synthetic models of both architectures, no fault, all bits equal.

    Args:
        cell: whose stack, policy, ISA target and threads both libraries get.

    Raises:
        EngineError: a row has other bits, or one of the libraries is not built.
        ParityError: as ``models.ensure``.
    """
    n_rows = 0
    for model in MODELS:
        judged, with_faults = (_digests(cell, model, with_faults=with_faults) for with_faults in (False, True))
        same = [(ours == theirs).all(axis=1) for ours, theirs in zip(judged, with_faults, strict=True)]
        n_equal, n = sum(int(rows.sum()) for rows in same), sum(map(len, same))
        if n != sum(LENGTHS) or n_equal != n:
            raise EngineError(
                "without a fault the library with faults has other bits than the judged one, so no fault was seeded",
                place=f"stack {cell.id.stack}, {model} {QUANT}, {cell.id.compute}",
                expected=f"{sum(LENGTHS)} rows of equal SHA-256",
                found=f"{n_equal} of {n}",
                next_step=f"build both again: make setup, then parity stack build {cell.id.stack} --faults --again",
            )
        n_rows += n
    return n_rows


def _digests(cell: Cell, model: str, *, with_faults: bool) -> Sequence[Digests]:
    path = ensure.ensure(model, QUANT, cell.pins)
    sequences = [np.random.default_rng(length).integers(0, 256, length).tolist() for length in LENGTHS]
    with open_burn(cell, path=str(path), fault=None, with_faults=with_faults) as engine:
        digests: Sequence[Digests] = engine.call("row_digests", sequences, cell.spools)
    return digests
