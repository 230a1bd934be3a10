"""Runs the candidate with taps: writes the value of every site to a file, in the form of the reference's capture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.burn.engine import Burn
from parity_lib.engines.node_file import INDEX, VALUES, Node, ValueWriter, is_always_kept, save_index
from parity_lib.records.traces import F32

ROOM_BYTES = 64 << 20  # values wait here for the end of their pass, or until it is full


class BurnTaps(Burn):
    """``Burn`` that can take llama.cpp's place in a trace. Taps change no bit of the logits."""

    def capture(
        self,
        sequence: Sequence[int],
        batches: Sequence[int],
        folder: Path,
        *,
        watched: int = 0,
        always: Sequence[str] = (),
    ) -> None:
        """Feed one sequence from an empty cache in batches, and keep every site's value.

        Args:
            sequence: token ids.
            batches: rows of each pass; their sum is the length of the sequence. A 1 is a decode.
            folder: gets ``nodes.f32`` and ``nodes.json``, see ``NodeFile``.
            watched: the first pass whose sites are all kept. Of those before, only the keys and values are.
            always: further sites that every pass keeps, ``l_out`` (of all blocks) or ``kq-7``.

        Raises:
            EngineError: the batches are not the sequence's, or one call of burn computes over a site.
        """
        [tokens] = self._check([sequence])
        if sum(batches) != len(tokens) or min(batches) < 1:
            raise EngineError(
                "the batches do not cut up the sequence",
                place=self._path.name,
                expected=f"numbers from 1 on with the sum {len(tokens)}",
                found=list(batches),
            )
        if self._facts["fused"]:
            raise EngineError(
                "burn computes over sites of the table in one call, so that the other side has no values for them",
                place=f"stack {self._stack}",
                expected="a stack that calls burn op by op",
                found=f"no {', '.join(sorted(self._facts['fused']))}",
                next_step=f"let it be the candidate: --stack {self._stack} --against the other one",
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier capture: it does not fit what is written now
        with (folder / VALUES).open("wb") as file, self._translated():
            keep = _Keep(ValueWriter(file, np.empty(ROOM_BYTES // 4, np.float32)), watched, frozenset(always))
            session, first = self._new_session(1), 0
            for n_rows in batches:
                rows = [(0, token) for token in tokens[first : first + n_rows]]
                session.append(rows, logits=None, observe=keep.begin_batch(n_rows).see)
                first += n_rows
            keep.flush()
        save_index(folder, tokens, batches, watched, keep.nodes)


class _Keep:
    """Keeps the sites of a pass that are asked for."""

    def __init__(self, writer: ValueWriter, watched: int, always: frozenset[str]) -> None:
        self._writer, self._watched, self._always = writer, watched, always
        self._batch, self._n_rows = -1, 0
        self.nodes: list[Node] = []

    def begin_batch(self, n_rows: int) -> _Keep:
        """Start a pass of so many rows, and return this object."""
        self._batch, self._n_rows = self._batch + 1, n_rows
        return self

    def see(self, site: str, shape: list[int], raw: bytes) -> None:
        """Take the value of a site; inside of attention as ``(n_head, n_rows, width)``, as llama.cpp has it."""
        if self._batch < self._watched and not is_always_kept(site, self._always):
            return
        values: F32 = np.frombuffer(raw, "<f4").reshape(shape)
        table = sites.table(site)
        if table.inner:
            values = values.reshape(-1, self._n_rows, shape[-1])
        self.nodes.append(Node(site, table.op, self._batch, values.shape, self._writer.add(values), ""))

    def flush(self) -> None:
        """Write what waits."""
        self._writer.flush()
