"""The reference with a look at every node of its graph: what each op gave, written to a file as it runs."""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parity_lib.engines import sites
from parity_lib.engines.llama_abi import Ctypes, GgmlTensor
from parity_lib.engines.llama_cpp import LlamaCpp
from parity_lib.engines.node_file import INDEX, VALUES
from parity_lib.errors import EngineError
from parity_lib.traces import F32

TYPE_F32 = 0  # ggml.h
KEY_PAD = 32  # keys are kept up to a multiple of this, as the candidate pads them (attention.rs)


@dataclass(frozen=True, slots=True)
class Node:
    """One captured value: where it lies in the file of its capture."""

    site: str
    op: str
    batch: int  # number of the pass that made it
    shape: tuple[int, ...]  # as numpy has it, outermost first
    offset: int  # in values


class LlamaTaps(LlamaCpp):
    """``LlamaCpp`` that can capture its graph. Looking changes no bit of the logits."""

    _writer: _Writer | None = None

    def _prepare(self, params: Ctypes) -> None:
        # The callback must live as long as the context, swallow every exception and return True: False cancels the
        # graph, and llama_decode still returns 0, with all logits zero.
        self._callback = self._api.ggml_backend_sched_eval_callback(self._look)
        params.cb_eval = self._callback
        base = self._library.base
        base.ggml_op_name.restype = ctypes.c_char_p
        base.ggml_op_name.argtypes = [ctypes.c_int]
        base.ggml_backend_buffer_is_host.restype = ctypes.c_bool
        base.ggml_backend_buffer_is_host.argtypes = [ctypes.c_void_p]
        base.ggml_backend_buffer_name.restype = ctypes.c_char_p
        base.ggml_backend_buffer_name.argtypes = [ctypes.c_void_p]

    def capture(
        self,
        sequence: Sequence[int],
        batches: Sequence[int],
        folder: Path,
        *,
        watched: int = 0,
        always: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Feed one sequence from an empty cache in batches, and keep every site's value.

        Args:
            sequence: token ids.
            batches: rows of each pass, at most 512 each; their sum is the length of the sequence. A 1 is a decode.
            folder: gets ``nodes.f32``, raw float32, and ``nodes.json``, which says what lies where.
            watched: the first pass whose sites are all kept. Of those before, only the keys and values are, so that
                a late part of a long sequence can be replayed by itself.
            always: further sites that every pass keeps, ``l_out`` (of all blocks) or ``kq-7``.

        Returns:
            The content of ``nodes.json``.

        Raises:
            EngineError: the batches are not the sequence's, a site was not seen once in each pass, or is not float32.
        """
        self._check([sequence], [1])
        if sum(batches) != len(sequence) or not 0 < min(batches) <= max(batches) <= self._taken["n_ubatch"]:
            raise EngineError(
                "the batches do not cut up the sequence",
                place=self._path.name,
                expected=f"numbers from 1 to {self._taken['n_ubatch']} with the sum {len(sequence)}",
                found=list(batches),
            )
        self._grow(len(sequence))
        self._clear()
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / VALUES).open("wb") as file:
            self._writer = _Writer(file, self._library.base, watched, frozenset(always))
            try:
                position = 0
                for batch in batches:
                    self._writer.begin_batch(position + batch)
                    self._decode(sequence[position : position + batch], position)
                    self._writer.end_batch()
                    position += batch
            finally:
                writer, self._writer = self._writer, None
        index: dict[str, Any] = {"tokens": list(map(int, sequence)), "batches": list(batches), "watched": watched}
        index["weights_in"] = dict(writer.weights_in)
        index["nodes"] = list(map(asdict, writer.nodes))
        (folder / INDEX).write_text(json.dumps(index))
        return index

    def _look(self, tensor: int, ask: bool, _user_data: object) -> bool:
        writer = self._writer
        if writer is None:
            return not ask
        return writer.look(GgmlTensor.from_address(tensor), ask)


class _Writer:
    """Copies values out of the callback; the first thing that goes wrong is raised after the pass."""

    def __init__(self, file: BinaryIO, base: ctypes.CDLL, watched: int, always: frozenset[str]) -> None:
        self._file, self._base, self._watched, self._always = file, base, watched, always
        self.nodes: list[Node] = []
        self.weights_in: Counter[str] = Counter()  # name of a weight's buffer -> products that were written
        self._offset, self._batch, self._n_keys = 0, 0, 0
        self._names: dict[tuple[bytes, int, bytes], str | None] = {}
        self._error: Exception | None = None

    def begin_batch(self, n_positions: int) -> None:
        """Start a pass after which the cache holds so many positions."""
        self._n_keys = -(-n_positions // KEY_PAD) * KEY_PAD

    def look(self, tensor: GgmlTensor, ask: bool) -> bool:
        try:
            site = self._site(tensor)
            if ask:
                return site is not None and self._error is None
            if site is not None and self._error is None:
                self._write(site, tensor)
        except Exception as error:  # noqa: BLE001 - it would be lost in C; kept and raised by end_batch
            self._error = self._error or error
        return not ask

    def end_batch(self) -> None:
        if self._error is not None:
            raise EngineError(f"a node could not be captured: {self._error}", place="llama.cpp's graph")
        self._batch += 1

    def _site(self, tensor: GgmlTensor) -> str | None:
        source = GgmlTensor.from_address(tensor.src[0]).name if tensor.src[0] else b""
        key = (tensor.name, tensor.op, source)
        if key not in self._names:  # asked twice for each node of each pass
            op = self._base.ggml_op_name(tensor.op).decode()
            self._names[key] = sites.of_node(tensor.name.decode(), op, source.decode())
        site = self._names[key]
        return site if site is not None and self._is_kept(site) else None

    def _is_kept(self, site: str) -> bool:
        named = site in self._always or sites.split(site)[0] in self._always
        return self._batch >= self._watched or sites.is_cached(site) or named

    def _write(self, site: str, tensor: GgmlTensor) -> None:
        values = self._values(site, tensor)
        op = self._base.ggml_op_name(tensor.op).decode()
        if op == "MUL_MAT" and sites.table(site).weight:
            weight = GgmlTensor.from_address(tensor.src[0])
            self.weights_in[self._base.ggml_backend_buffer_name(weight.buffer).decode()] += 1
        self.nodes.append(Node(site, op, self._batch, values.shape, self._offset))
        self._file.write(np.ascontiguousarray(values).data.cast("B"))
        self._offset += values.size

    def _values(self, site: str, tensor: GgmlTensor) -> F32:
        """Return a view of a node's values, numpy order, without leading dimensions of 1."""
        if tensor.type != TYPE_F32 or not self._base.ggml_backend_buffer_is_host(tensor.buffer):
            raise EngineError("a site is not float32 in this process's memory", place=site, found=f"type {tensor.type}")
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 4
        memory = (ctypes.c_byte * reach).from_address(tensor.data)
        view: F32 = np.ndarray(shape, np.float32, memory, strides=strides)
        while view.ndim > 2 and view.shape[0] == 1:
            view = view[0]
        # The graph has room for a multiple of 256 keys; nobody looks at what the mask hides.
        return view[..., : self._n_keys] if sites.split(site)[0] in ("kq", "kq_soft_max") else view
