"""Both engines' errors after each layer and at the logits, against the float64 oracle and against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.cell.place import Place
from parity_lib.engines.burn.follow import LOGITS, STREAMS
from parity_lib.engines.node_file import NodeFile
from parity_lib.judge.blame import Blame, blame, floors, position_errors
from parity_lib.records.traces import F32, F64

FLOOR = 12.15
"""Two sound engines are at most so many times farther apart than the better of them is from the oracle. ggml's f32 dot
product keeps 64 partial sums on AVX-512, matrixmultiply's sgemm one for each output; the error of a chain grows
with the root of its length, so sqrt(64) = 8 times the better one's is sound, and both err independently: sqrt(1 + 64) =
8.1; half as much again, since an error at one position is a sample."""


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """Relative errors of the residual stream after each layer, and of the logits as the last row.

    Norms over the channels, as shares of the float64 oracle's norm at the position: ``(n_layer + 1, n_positions)``.
    """

    burn: F64  # against the float64 oracle
    llamacpp: F64  # against the float64 oracle
    total: F64  # against each other
    floor: F64  # FLOOR times what a sound engine's error is there
    blames: tuple[Blame, ...]  # layer by layer, the logits last; over the positions up to the traced one

    @property
    def share(self) -> F64:
        """Return the total error over its floor; 0 where both engines agree to the bit."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(self.total == 0, 0.0, self.total / self.floor)
        share: F64 = np.nan_to_num(ratio, nan=np.inf, posinf=np.inf)
        return share

    def pooled(self, stop: int) -> F64:
        """Return the error of each layer over its floor, pooled over the positions before ``stop``, ``(n_layer + 1,)``.

        A single position can be over its floor by chance: there one engine happens to be nearer to the oracle than it
        usually is, or the model enlarges whatever rounding it is given. All of them together are not.
        """
        total, floor = (np.square(values[:, :stop]).sum(1) for values in (self.total, self.floor))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(total == 0, 0.0, np.sqrt(total / floor))
        pooled: F64 = np.nan_to_num(ratio, nan=np.inf, posinf=np.inf)
        return pooled


def compare_layers(n_layer: int, place: Place, nodes_folder: Path, oracle: Path) -> Layers:
    """Return the errors after each layer and of the logits, one layer in memory at a time.

    Args:
        n_layer: blocks of the model.
        place: the traced token.
        nodes_folder: a capture of the reference that the candidate has followed.
        oracle: folder of what the float64 oracle left.
    """
    n, stop = len(place.sequence), place.row + 1
    nodes = NodeFile(nodes_folder)
    true = np.memmap(oracle / "l_out.f64", "<f8", "r").reshape(n_layer, n, -1)
    ours = np.memmap(nodes_folder / STREAMS, "<f4", "r").reshape(n_layer, n, -1)
    burn, llamacpp, total = (np.empty((n_layer + 1, n)) for _ in range(3))
    blames = []
    for place_, name, exact, theirs, own in (
        *((layer, f"layer {layer}", true[layer], f"l_out-{layer}", ours[layer]) for layer in range(n_layer)),
        (
            n_layer,
            "logits",
            _rows(oracle / "logits.f64", n, "<f8"),
            "result_output",
            _rows(nodes_folder / LOGITS, n),
        ),
    ):
        reference: F32 = nodes.rows(theirs)
        burn[place_] = position_errors(exact, own)
        llamacpp[place_] = position_errors(exact, reference)
        norms = np.linalg.norm(exact, axis=-1)
        total[place_] = np.linalg.norm(np.asarray(own, np.float64) - reference, axis=-1) / norms
        blames.append(blame(name, exact[:stop], reference[:stop], own[:stop]))
    return Layers(burn, llamacpp, total, FLOOR * floors(burn, llamacpp), tuple(blames))


def _rows(path: Path, n: int, dtype: str = "<f4") -> Any:  # noqa: ANN401 - a memory map of either width
    return np.memmap(path, dtype, "r").reshape(n, -1)
