"""Judge the fork's BF16 tile kernel as the policy bf16 is judged at T3: on the reference's run of the BF16 twin.

It stands apart because the command line must not load an engine to ask for it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from parity_lib.base.names import Compute
from parity_lib.cell.open_engines import open_burn, open_llama
from parity_lib.cell.place import Place
from parity_lib.cell.request import Cell
from parity_lib.models.twins import ensure_twin
from parity_lib.numerics.op_error import OpError


@dataclass(frozen=True, slots=True)
class Tiles:
    """What the kernel gave, and which path it took."""

    nearest: tuple[OpError, ...]  # every weight product, activations rounded to nearest even
    own: tuple[OpError, ...]  # the same, rounded by the fork's own conversion
    amx: bool  # the fork's own dispatch would take AMX tiles here
    report: str  # the fork's words about AMX

    @property
    def wrong(self) -> list[OpError]:
        """Return the products over their limit, to nearest even."""
        return [error for error in self.nearest if not error.share <= 1]


def replay_tiles(cell: Cell, stack: str, place: Place) -> Tiles:
    """Compute every weight product of a sequence with the kernel, from the reference's own inputs on the BF16 twin.

    Raises:
        EngineError, PinError: the stack is not built, or cannot call the kernel.
    """
    folder = cell.spools / "tiles"
    path = ensure_twin(cell.model_path, cell.pins, kind="BF16")
    try:
        cell.progress.step("llama.cpp on the BF16 twin, every node of its graph")
        with open_llama(cell, path, kind="llama_taps") as engine:
            engine.call("capture", list(place.sequence), list(place.passes), folder, watched=len(place.fills))
        with open_burn(cell, "tile_replay", path=str(path), stack=stack, compute=Compute.BF16) as engine:
            amx, report = engine.call("kernel")
            progress = cell.progress.step("the fork's BF16 tiles")
            nearest, own = (
                tuple(engine.call("products", folder, own_rounding, progress=progress))
                for own_rounding in (False, True)
            )
        return Tiles(nearest, own, amx, report)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
