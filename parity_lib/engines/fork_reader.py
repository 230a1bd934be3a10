"""Read a file's tensors with the fork's own GGUF reader, called by name; the candidate itself reads files otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parity_lib.engines.stack_probe import StackProbe
from parity_lib.errors import EngineError
from parity_lib.traces import F32


class ForkReader(StackProbe):
    """``StackProbe`` on the stack whose extension can call the fork's reader."""

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
