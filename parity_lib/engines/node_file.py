"""The file of a capture's values: an engine with taps writes it; it is read pass by pass or as one run of rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.records.traces import F32

INDEX, VALUES = "nodes.json", "nodes.f32"


@dataclass(frozen=True, slots=True)
class Node:
    """One captured value: where it lies in the file of its capture."""

    site: str
    op: str
    batch: int  # number of the pass that made it
    shape: tuple[int, ...]  # as numpy has it, outermost first
    offset: int  # in values
    buffer: str  # that a product took its weight from, by ggml's name; empty: no weight, or no buffers


def is_always_kept(site: str, always: Collection[str]) -> bool:
    """Return whether a capture keeps a site before its first watched pass: keys, values, and what is in ``always``."""
    return sites.is_cached(site) or site in always or sites.split(site)[0] in always


def save_index(
    folder: Path, tokens: Sequence[int], batches: Sequence[int], watched: int, nodes: Sequence[Node], **more: float
) -> dict[str, Any]:
    """Write ``nodes.json``, which says what lies where in ``nodes.f32``, and return its content."""
    index: dict[str, Any] = {"tokens": list(map(int, tokens)), "batches": list(batches), "watched": watched, **more}
    index["nodes"] = list(map(asdict, nodes))
    (folder / INDEX).write_text(json.dumps(index))
    return index


class ValueWriter:
    """Appends float32 values to a file by way of memory: a copy to memory is some ten times faster than a write.

    Args:
        file: open for writing, empty.
        memory: where values wait; whoever owns it may use it again after ``flush``.
    """

    def __init__(self, file: BinaryIO, memory: F32) -> None:
        self._file, self._memory = file, memory
        self._written, self._waiting = 0, 0  # values

    def add(self, values: F32) -> int:
        """Take a copy of an array of any strides; return where it lies in the file, in values."""
        if values.size > self._memory.size - self._waiting:
            self.flush()
        offset = self._written + self._waiting
        if values.size > self._memory.size:
            self._file.write(np.ascontiguousarray(values).data.cast("B"))
            self._written += values.size
        else:
            self._memory[self._waiting : self._waiting + values.size].reshape(values.shape)[...] = values
            self._waiting += values.size
        return offset

    def flush(self) -> None:
        """Write what waits."""
        self._file.write(self._memory[: self._waiting].data.cast("B"))
        self._written, self._waiting = self._written + self._waiting, 0


class NodeFile:
    """The captured nodes of one sequence.

    Raises:
        EngineError: a site was captured twice in one pass.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        self.tokens: list[int] = index["tokens"]
        self.batches: list[int] = index["batches"]
        self.watched: int = index["watched"]
        self._values = np.memmap(folder / VALUES, "<f4", "r")
        self._nodes: dict[tuple[int, str], dict[str, Any]] = {}
        for node in index["nodes"]:
            key = (node["batch"], node["site"])
            if key in self._nodes:
                raise EngineError("a site was captured twice in one pass", place=node["site"], found=f"pass {key[0]}")
            self._nodes[key] = node

    @property
    def weights_in(self) -> dict[str, int]:
        """Return how many products took their weight from each buffer, by ggml's name."""
        return dict(Counter(node["buffer"] for node in self._nodes.values() if node["buffer"]))

    @property
    def first_watched(self) -> int:
        """Return the first position whose sites are all kept."""
        return sum(self.batches[: self.watched])

    def get(self, batch: int, site: str) -> F32:
        """Return one value as the reference has it, in numpy order.

        Raises:
            EngineError: the pass does not have it.
        """
        node = self._node(batch, site)
        n = int(np.prod(node["shape"]))
        return np.asarray(self._values[node["offset"] : node["offset"] + n]).reshape(node["shape"])

    def buffer(self, batch: int, site: str) -> str:
        """Return ggml's name of the buffer that a product took its weight from; empty if it has none.

        Raises:
            EngineError: the pass does not have the site.
        """
        name: str = self._node(batch, site)["buffer"]
        return name

    def _node(self, batch: int, site: str) -> dict[str, Any]:
        node = self._nodes.get((batch, site))
        if node is None:
            raise EngineError("the reference's graph lacks a site", place=f"pass {batch}", expected=site, found="none")
        return node

    def left(self, batch: int, seen: Sequence[str]) -> list[str]:
        """Return the sites of a pass that are not in ``seen``, sorted."""
        return sorted(site for number, site in self._nodes if number == batch and site not in set(seen))

    def is_whole(self, site: str) -> bool:
        """Return whether every pass has a site."""
        return all((batch, site) in self._nodes for batch in range(len(self.batches)))

    def rows(self, site: str, first: int = 0, stop: int | None = None) -> F32:
        """Return a site's values of consecutive positions, ``(n, width)``, whatever passes made them.

        Args:
            site: full name; not one inside of attention.
            first: first position.
            stop: the position after the last one; None is the end of the sequence.

        Raises:
            EngineError: a pass of these positions does not have it.
        """
        stop = len(self.tokens) if stop is None else stop
        parts = [
            self.get(batch, site).reshape(self.batches[batch], -1)[low:high]
            for batch, low, high, _ in self._cuts(first, stop)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def inner(self, site: str, n_head: int, width: int, first: int = 0, stop: int | None = None) -> F32:
        """Return values inside of attention, ``(n_head, n, width)``; what the mask hides is zero.

        Args:
            site: ``kq-L``, ``kq_soft_max-L`` or ``kqv-L``.
            n_head: query heads.
            width: keys that the candidate has room for, or channels of a head.
            first: first position.
            stop: the position after the last one; None is the end of the sequence.

        Raises:
            EngineError: a pass of these positions does not have it.
        """
        stop = len(self.tokens) if stop is None else stop
        out = np.zeros((n_head, stop - first, width), np.float32)
        is_kqv = sites.split(site)[0] == "kqv"
        for batch, low, high, position in self._cuts(first, stop):
            value = self.get(batch, site).reshape(n_head, self.batches[batch], -1)[:, low:high, :width]
            place = out[:, position - first : position - first + high - low, : value.shape[-1]]
            visible = np.arange(value.shape[-1]) <= np.arange(position, position + high - low)[:, np.newaxis]
            place[...] = value if is_kqv else np.where(visible, value, np.float32(0))
        return out

    def _cuts(self, first: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Return (pass, its first row, its row after the last, position of the first) over a range of positions."""
        cuts, start = [], 0
        for batch, n_rows in enumerate(self.batches):
            low, high = max(first - start, 0), min(stop - start, n_rows)
            if low < high:
                cuts.append((batch, low, high, start + low))
            start += n_rows
        return cuts
