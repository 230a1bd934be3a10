"""An engine that aborts as soon as it is asked anything: what a crash in one step of a cell looks like."""

from __future__ import annotations

import os
from typing import Any


class Dying:
    """Takes what every engine takes."""

    def __init__(self, **_: Any) -> None:
        pass

    def prove_isa(self, *_: object) -> None:
        os.abort()

    def close(self) -> None:
        pass
