"""Runs the reference with taps: writes the value of every node of its graph to a file."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.engines import sites
from parity_lib.engines.llamacpp.abi import Ctypes, GgmlTensor
from parity_lib.engines.llamacpp.engine import LlamaCpp
from parity_lib.engines.node_file import INDEX, VALUES, Node, ValueWriter, is_always_kept, save_index
from parity_lib.records.traces import F32

TYPE_F32 = 0  # ggml.h
ROOM_BYTES = 256 << 20  # values wait here for the end of their pass, or until it is full
KEY_PAD = 32  # keys are kept up to a multiple of this, as the candidate pads them (attention.rs)


class LlamaTaps(LlamaCpp):
    """``LlamaCpp`` that can write the values of its graph's nodes to a file. Taps change no bit of the logits."""

    _looks: _Looks | None = None
    _room: F32 | None = None  # kept from capture to capture: its pages are made once

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
            The content of ``nodes.json``; ``write_seconds`` is what the file took after the passes, apart from the
            engine's own seconds, which hold the looks.

        Raises:
            EngineError: the batches are not the sequence's, a site was not seen once in each pass, or is not float32,
                or the file cannot be written.
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
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier capture: it does not fit what is written now
        try:
            with (folder / VALUES).open("wb") as file:
                looks = _Looks(ValueWriter(file, self._kept_room()), self._library.base, watched, frozenset(always))
                self._run(sequence, batches, looks)
        except OSError as error:
            raise EngineError(
                "the values of a capture cannot be written",
                place=folder / VALUES,
                found=error.strerror or error,
                next_step="free space, or choose another output folder",
            ) from error
        return save_index(folder, sequence, batches, watched, looks.nodes, write_seconds=looks.write_seconds)

    def _kept_room(self) -> F32:
        if self._room is None:
            self._room = np.empty(ROOM_BYTES // 4, np.float32)
        return self._room

    def _run(self, sequence: Sequence[int], batches: Sequence[int], looks: _Looks) -> None:
        self._looks = looks
        try:
            position = 0
            for batch in batches:
                looks.begin_batch(position + batch)
                self._decode(sequence[position : position + batch], position)
                looks.end_batch()
                position += batch
        finally:
            self._looks = None

    def _look(self, tensor: int, ask: bool, _user_data: object) -> bool:
        return not ask if self._looks is None else self._looks.look(tensor, ask)


@dataclass(frozen=True, slots=True)
class _Known:
    """The constant facts of a site's node, cached because each pass needs them a thousand times."""

    site: str
    op: str
    is_weighted: bool  # a product with a weight
    is_masked: bool  # rows over all keys that the graph has room for
    is_always_kept: bool  # before the first watched pass too


class _Looks:
    """Copies values in the callback; the first error is raised after the pass."""

    def __init__(self, writer: ValueWriter, base: ctypes.CDLL, watched: int, always: frozenset[str]) -> None:
        self._writer, self._base, self._watched, self._always = writer, base, watched, always
        self.nodes: list[Node] = []
        self.write_seconds = 0.0
        self._batch, self._n_keys = 0, 0
        self._asked: tuple[int, _Known | None] = 0, None  # the last node that the callback asked about
        self._nodes: dict[tuple[bytes, int, bytes], _Known | None] = {}
        self._buffers: dict[int, tuple[str, bool]] = {}  # address -> its name, and whether it is this process's memory
        self._error: Exception | None = None

    def begin_batch(self, n_positions: int) -> None:
        """Start a pass after which the cache holds so many positions."""
        self._n_keys = -(-n_positions // KEY_PAD) * KEY_PAD

    def look(self, address: int, ask: bool) -> bool:
        """Answer ggml's callback: return whether a node is wanted (``ask``), or copy its value."""
        try:
            tensor = GgmlTensor.from_address(address)
            if ask:
                self._asked = address, self._wanted(tensor)
                return self._asked[1] is not None and self._error is None
            known = self._asked[1] if self._asked[0] == address else self._wanted(tensor)
            if known is not None and self._error is None:
                self._take(known, tensor)
        except Exception as error:  # noqa: BLE001 - it would be lost in C; kept and raised by end_batch
            self._error = self._error or error
        return not ask

    def end_batch(self) -> None:
        """End a pass: its values go to the file while no graph waits for them."""
        if self._error is not None:
            raise EngineError(f"a node could not be captured: {self._error}", place="llama.cpp's graph")
        began = time.perf_counter()
        self._writer.flush()
        self.write_seconds += time.perf_counter() - began
        self._batch += 1

    def _wanted(self, tensor: GgmlTensor) -> _Known | None:
        key = node_key(tensor)
        if key not in self._nodes:
            self._nodes[key] = self._recognised(*key)
        known = self._nodes[key]
        return known if known is not None and (known.is_always_kept or self._batch >= self._watched) else None

    def _recognised(self, name: bytes, number: int, source: bytes) -> _Known | None:
        op = self._base.ggml_op_name(number).decode()
        site = sites.of_node(name.decode(), op, source.decode())
        if site is None:
            return None
        base = sites.split(site)[0]
        return _Known(
            site,
            op,
            is_weighted=op == "MUL_MAT" and bool(sites.table(site).weight),
            is_masked=base in ("kq", "kq_soft_max"),
            is_always_kept=is_always_kept(site, self._always),
        )

    def _take(self, known: _Known, tensor: GgmlTensor) -> None:
        values = self._values(known, tensor)
        source = self._buffer(GgmlTensor.from_address(tensor.src[0]).buffer)[0] if known.is_weighted else ""
        self.nodes.append(Node(known.site, known.op, self._batch, values.shape, self._writer.add(values), source))

    def _buffer(self, address: int) -> tuple[str, bool]:
        if address not in self._buffers:
            name: bytes = self._base.ggml_backend_buffer_name(address)
            self._buffers[address] = name.decode(), self._base.ggml_backend_buffer_is_host(address)
        return self._buffers[address]

    def _values(self, known: _Known, tensor: GgmlTensor) -> F32:
        """Return a view of a node's values, numpy order, without leading dimensions of 1."""
        view = values_of(tensor, known.site, is_host=self._buffer(tensor.buffer)[1])
        while view.ndim > 2 and view.shape[0] == 1:
            view = view[0]
        # The graph has room for a multiple of 256 keys; what the mask hides is not compared.
        return view[..., : self._n_keys] if known.is_masked else view


def node_key(tensor: GgmlTensor) -> tuple[bytes, int, bytes]:
    """Return what a node is recognised by: its name, the number of its op, the name of its first source."""
    source = tensor.src[0]
    return tensor.name, tensor.op, GgmlTensor.from_address(source).name if source else b""


def values_of(tensor: GgmlTensor, place: str, *, is_host: bool) -> F32:
    """Return a writable view of a tensor's values, numpy order, four dimensions.

    Raises:
        EngineError: they are not float32, or do not lie in this process's memory (``is_host``).
    """
    if tensor.type != TYPE_F32 or not is_host:
        raise EngineError("a site is not float32 in this process's memory", place=place, found=f"type {tensor.type}")
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    reach = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 4
    memory = (ctypes.c_byte * reach).from_address(tensor.data)
    view: F32 = np.ndarray(shape, np.float32, memory, strides=strides)
    return view
