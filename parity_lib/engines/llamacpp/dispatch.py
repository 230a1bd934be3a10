"""The reference's evidence for rung T7: where each weight lies, what is multiplied there, which instructions ran."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from parity_lib.base.errors import EngineError, PinError
from parity_lib.engines.burn.build_info import CRATES_IO
from parity_lib.engines.burn.build_info import load as load_extension
from parity_lib.engines.llamacpp.abi import Ctypes, GgmlTensor
from parity_lib.engines.llamacpp.engine import LlamaCpp
from parity_lib.engines.sampler import Watch
from parity_lib.numerics.isa_samples import MIN_VECTORS
from parity_lib.records.isa_evidence import LLAMA_CPP, Buffer, Evidence

OWN = ("libggml", "libllama")
ROWS = 96  # of the observed prefill; the last of them are decoded again, one at a time
DECODED = 4
ENOUGH = 3 * MIN_VECTORS  # samples at vector instructions after which nothing more is run


@dataclass(slots=True)
class _Weights:
    """What one buffer holds."""

    types: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    flops: int = 0


class LlamaDispatch(LlamaCpp):
    """``LlamaCpp`` that records buffers, types and samples of its products, without changing a bit of the logits."""

    _buffers_of: dict[str, _Weights] | None = None
    _error: Exception | None = None

    def _prepare(self, params: Ctypes) -> None:
        # The callback lives as long as the context; it never raises and never says False to a computed node.
        self._callback = self._api.ggml_backend_sched_eval_callback(self._observe)
        params.cb_eval = self._callback
        base = self._library.base
        for name, result, argument in (
            ("ggml_op_name", ctypes.c_char_p, ctypes.c_int),
            ("ggml_type_name", ctypes.c_char_p, ctypes.c_int),
            ("ggml_backend_buffer_name", ctypes.c_char_p, ctypes.c_void_p),
            ("ggml_nbytes", ctypes.c_size_t, ctypes.c_void_p),
        ):
            function = getattr(base, name)
            function.restype, function.argtypes = result, [argument]

    def prove_isa(self, sequence: Sequence[int], seconds: float = 2.0) -> Evidence:
        """Run a sequence as one batch and its end token by token; return the evidence of which instructions ran.

        Args:
            sequence: token ids; its first ``ROWS`` are used, and a shorter one is fed again and again.
            seconds: of CPU time for the sampled passes, all threads together.

        Raises:
            EngineError: no product with a weight was seen.
        """
        tokens = list(islice(cycle(sequence), min(ROWS, self._n_ctx_train)))
        self._check([tokens], [1])
        self._grow(len(tokens))
        buffers = self._weights(tokens)
        try:
            watch = Watch(load_extension(CRATES_IO)[0], OWN)
        except (EngineError, PinError) as error:
            return self._evidence(buffers, None, f"the sampler cannot be loaded: {error}")
        watch.repeat(lambda: self._pass(tokens), lambda seen: sum(seen.vectors.values()) >= ENOUGH, seconds)
        return self._evidence(buffers, watch, watch.absent)

    def _evidence(self, buffers: tuple[Buffer, ...], watch: Watch | None, absent: str) -> Evidence:
        seen = None if watch is None else watch.seen()
        run = f"{self._settings} settings"
        return Evidence(LLAMA_CPP, run, str(self._isa), seen, absent, buffers=buffers, features=dict(self._features))

    def _pass(self, tokens: Sequence[int]) -> None:
        self._clear()
        first = max(1, len(tokens) - DECODED)
        self._decode(tokens[:first], 0)
        for position in range(first, len(tokens)):
            self._decode(tokens[position : position + 1], position)

    def _weights(self, tokens: Sequence[int]) -> tuple[Buffer, ...]:
        """Return the buffers of all weights that a prefill multiplies with."""
        self._buffers_of, self._error = {}, None
        try:
            self._clear()
            self._decode(tokens, 0)
        finally:
            found, self._buffers_of = self._buffers_of, None
        if self._error is not None or not found:
            raise EngineError(
                "the buffers of the weights could not be read",
                place=self._path.name,
                expected="products with weights in the graph",
                found=self._error or "none",
            )
        return tuple(
            Buffer(name, dict(w.types), sum(w.types.values()), w.bytes, w.flops) for name, w in sorted(found.items())
        )

    def _observe(self, address: int, ask: bool, _user_data: object) -> bool:
        if self._buffers_of is None:
            return not ask
        try:
            node = GgmlTensor.from_address(address)
            if self._library.base.ggml_op_name(node.op) != b"MUL_MAT":
                return not ask
            weight = GgmlTensor.from_address(node.src[0])
            if not weight.name.endswith(b".weight"):
                return not ask
            if ask:
                self._note(node, weight)
        except Exception as error:  # noqa: BLE001 - it would be lost in C; raised after the pass
            self._error = self._error or error
        return not ask

    def _note(self, node: GgmlTensor, weight: GgmlTensor) -> None:
        assert self._buffers_of is not None
        base = self._library.base
        buffer = self._buffers_of.setdefault(base.ggml_backend_buffer_name(weight.buffer).decode(), _Weights())
        buffer.types[base.ggml_type_name(weight.type).decode()] += 1
        buffer.bytes += base.ggml_nbytes(ctypes.addressof(weight))
        rows = node.ne[1] * node.ne[2] * node.ne[3]
        buffer.flops += 2 * weight.ne[0] * weight.ne[1] * rows
