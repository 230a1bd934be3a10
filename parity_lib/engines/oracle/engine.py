"""The float64 oracle: the same forward pass in float64 numpy, one page, written to be read and not to be fast.

Weights are dequantised by ``gguf.dequantize`` and widened exactly; every sum and exponential is float64.
So its distance to the real model of a file is about 1e-13 of the logits' spread, 1e7 times below the engines'.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.progress import Progress
from parity_lib.engines import machine
from parity_lib.engines.oracle.rope import ANGLES, EXACT, magnitude, rope
from parity_lib.engines.spool import new_spool
from parity_lib.engines.worker.protocol import OnOneFile
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import ModelFile, Tensor, facts_of
from parity_lib.numerics.ggml_activations import ACTIVATIONS, Quantised, correction, minima, quantise
from parity_lib.records.runs import OracleRun, OracleSettings
from parity_lib.records.traces import F64

PANEL = 1 << 22  # weights that are float64 at a time: 32 MB


def rms_norm(x: F64, weight: F64, eps: float) -> F64:
    """Return x / sqrt(mean(x^2) + eps) * weight along the last axis (Zhang and Sennrich 2019, eq. 4)."""
    normed: F64 = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return normed


def score_scale(key_length: int) -> float:
    """Return what llama.cpp scales scores by: ``1.0f / sqrtf(key_length)``, a float32."""
    return float(np.float32(1) / np.sqrt(np.float32(key_length)))


def attention(q: F64, k: F64, v: F64) -> F64:
    """Return softmax(q k^T / sqrt(key_length)) v, causal, one sequence from an empty cache.

    Args:
        q: ``(n, n_head, key_length)``; head h reads KV head ``h // (n_head / n_head_kv)``.
        k: ``(n, n_head_kv, key_length)``.
        v: ``(n, n_head_kv, value_length)``.

    Returns:
        ``(n, n_head * value_length)``, heads one after the other.
    """
    n, n_head, key_length = q.shape
    future = np.triu(np.ones((n, n), dtype=bool), 1)
    out = np.empty((n, n_head, v.shape[2]))
    for head in range(n_head):
        shared = head // (n_head // k.shape[1])
        score = q[:, head] @ k[:, shared].T / np.sqrt(key_length)
        score[future] = -np.inf
        weight = np.exp(score - score.max(axis=1, keepdims=True))
        out[:, head] = weight / weight.sum(axis=1, keepdims=True) @ v[:, shared]
    return out.reshape(n, -1)


def swiglu(gate: F64, up: F64) -> F64:
    """Return silu(gate) * up with silu(x) = x / (1 + exp(-x)) (Shazeer 2020)."""
    with np.errstate(over="ignore"):  # exp(-x) may reach infinity; the quotient is then the right zero
        activated: F64 = gate / (1.0 + np.exp(-gate)) * up
    return activated


def linear(weight: Tensor, x: F64, out: Any = None, bias: Tensor | None = None, *, rounded: bool = False) -> Any:  # noqa: ANN401 - array or map
    """Return ``x @ weight^T + bias``, the weight dequantised a panel of its rows at a time.

    Args:
        weight: ``(n_out, n_in)``, any supported type.
        x: ``(n, n_in)``.
        out: filled if given, ``(n, n_out)`` of any float type; else a float64 array is made.
        bias: ``(n_out,)`` or None.
        rounded: put the activations through the reference's quantiser first, as its product with this type does.
    """
    n_out, n_in = weight.shape
    out = np.empty((len(x), n_out)) if out is None else out
    given = quantise(ACTIVATIONS[weight.type], x.astype(np.float32)) if rounded else Quantised(x, None)
    step = max(1, PANEL // n_in)
    for start in range(0, n_out, step):
        rows = slice(start, min(start + step, n_out))
        product = given.values @ weight.dequantize(rows.start, rows.stop).astype(np.float64).T
        if given.sums is not None:
            blocks = np.ascontiguousarray(weight.rows[rows]).view(np.uint8).reshape(rows.stop - rows.start, -1)
            product += correction(given, minima(weight.type, blocks))
        out[:, rows] = product
    if bias is not None:
        out += bias.dequantize()
    return out


@contextmanager
def _new_rows(spool: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> Iterator[Any]:
    """Yield a memory-mapped array that becomes the spool at the end, or vanishes if anything goes wrong."""
    n_bytes = shape[0] * shape[1] * dtype.itemsize
    with new_spool(spool, n_bytes) as part, part.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, n_bytes)  # a full disk under a mapped page would kill the process
        rows = np.memmap(file, dtype, "r+", shape=shape)
        yield rows
        rows.flush()


class Oracle(OnOneFile):
    """The float64 engine on one GGUF file; answers ``engines/worker/protocol.py``, and ``score64`` in full precision.

    Args:
        path: a GGUF file of a supported architecture, quantised or not.
        n_threads: recorded only; the matrix product's threads are set where the process starts.
        angles: RoPE's, ``exact`` or ``walked``; see ``oracle_rope``.
        rounded: emulate the reference's quantiser of activations in front of each product; all else stays float64.

    Raises:
        EngineError: ``angles`` is neither.
        ModelFileError: the file cannot be read or is not supported.
    """

    def __init__(self, path: Path | str, n_threads: int = 2, angles: str = EXACT, *, rounded: bool = False) -> None:
        if angles not in ANGLES:
            raise EngineError("unknown angles", place="oracle", expected=" or ".join(ANGLES), found=angles)
        super().__init__(path)
        self._angles, self._rounded = angles, rounded
        self._file = ModelFile(self._path)
        self._facts = facts_of(self._file)
        self._n_threads, self._seconds = n_threads, 0.0
        self._started = datetime.now(UTC).isoformat(timespec="seconds")

    def run_info(self) -> OracleRun:
        """Return what ran."""
        self._require_open()
        return OracleRun(
            version=f"numpy {np.__version__}",
            commit="",
            model_path=self._path.name,
            model_sha256=sha256_file(self._path),
            settings=OracleSettings("float64", self._angles, self._rounded),
            isa_requested="any",
            isa_observed="unproven",
            n_threads=self._n_threads,
            kv_type="F64",
            compute="f64",
            stack="numpy",
            lock_sha256="",
            machine_class=machine.machine_class(),
            host=machine.host(),
            fault=None,
            started_at=self._started,
            seconds=self._seconds,
            peak_rss_bytes=machine.peak_rss_bytes(),
        )

    def n_vocab(self) -> int:
        """Return the number of logits in a row."""
        self._require_open()
        return self._facts.n_vocab

    def score(self, sequences: Sequence[Sequence[int]], spool: Path, *, progress: Progress) -> list[int]:
        """Write every row's logits, rounded once to float32; see ``engines/worker/protocol.py``."""
        return self._score(sequences, Path(spool), np.dtype("<f4"), progress)

    def score64(self, sequences: Sequence[Sequence[int]], spool: Path, *, progress: Progress) -> list[int]:
        """Write every row's logits as little-endian float64, else as ``score``."""
        return self._score(sequences, Path(spool), np.dtype("<f8"), progress)

    def taps(self, sequence: Sequence[int], folder: Path, *, progress: Progress) -> None:
        """Write one sequence's ``l_out.f64``, ``(n_layer, n, n_embd)``, and ``logits.f64``, ``(n, n_vocab)``.

        Both are raw little-endian float64; ``l_out`` is the residual stream after each block.
        """
        folder = Path(folder)
        shape = (self._facts.n_layer * len(sequence), self._facts.n_embd)
        with _new_rows(folder / "l_out.f64", shape, np.dtype("<f8")) as rows:
            streams = rows.reshape(self._facts.n_layer, len(sequence), -1)
            self._score([sequence], folder / "logits.f64", np.dtype("<f8"), progress, streams)

    def _free(self) -> None:
        del self._file

    def _score(
        self,
        sequences: Sequence[Sequence[int]],
        spool: Path,
        dtype: np.dtype[Any],
        progress: Progress,
        streams: F64 | None = None,
    ) -> list[int]:
        sequences, file = self._checked(sequences, self._facts.n_ctx_train, self._facts.n_vocab), self._file
        began = time.perf_counter()
        n_rows = sum(len(tokens) for tokens in sequences)
        with _new_rows(spool, (n_rows, self._facts.n_vocab), dtype) as rows:
            hidden = self._forward(file, sequences, progress, streams)
            output = file.tensors["token_embd.weight" if self._facts.tied_output else "output.weight"]
            linear(output, hidden, rows, rounded=self._rounded)
        self._seconds += time.perf_counter() - began
        progress(n_rows, n_rows)
        return [len(tokens) for tokens in sequences]

    def _forward(
        self, file: ModelFile, sequences: Sequence[Sequence[int]], progress: Progress, streams: F64 | None = None
    ) -> F64:
        """Return the normed residual stream after the last layer, ``(rows, n_embd)``; all sequences at once.

        ``streams``, ``(n_layer, rows, n_embd)``, gets the residual stream after each layer.
        """
        facts, tensors = self._facts, file.tensors
        tokens = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens in sequences])
        embedding = tensors["token_embd.weight"]
        x = np.stack([embedding.dequantize(token, token + 1)[0] for token in tokens]).astype(np.float64)
        for layer in range(facts.n_layer):
            progress(len(tokens) * layer // (facts.n_layer + 1), len(tokens))
            part = {name.removeprefix(f"blk.{layer}."): t for name, t in tensors.items() if f"blk.{layer}." in name}
            normed = rms_norm(x, part["attn_norm.weight"].dequantize().astype(np.float64), facts.rms_eps)
            heads = self._attend(file, part, normed, sequences)
            x = x + self._linear(part["attn_output.weight"], heads, part.get("attn_output.bias"))
            normed = rms_norm(x, part["ffn_norm.weight"].dequantize().astype(np.float64), facts.rms_eps)
            gated = swiglu(
                self._linear(part["ffn_gate.weight"], normed, part.get("ffn_gate.bias")),
                self._linear(part["ffn_up.weight"], normed, part.get("ffn_up.bias")),
            )
            x = x + self._linear(part["ffn_down.weight"], gated, part.get("ffn_down.bias"))
            if streams is not None:
                streams[layer] = x
        return rms_norm(x, tensors["output_norm.weight"].dequantize().astype(np.float64), facts.rms_eps)

    def _attend(self, file: ModelFile, part: dict[str, Tensor], x: F64, sequences: Sequence[Sequence[int]]) -> F64:
        """Return the heads' outputs, ``(rows, n_head * value_length)``, each sequence for itself."""
        facts, n = self._facts, len(x)
        freqs = file.tensors.get("rope_freqs.weight")
        divisors = np.ones(facts.rope_dim // 2) if freqs is None else freqs.dequantize().astype(np.float64)
        positions = np.concatenate([np.arange(len(tokens), dtype=np.float64) for tokens in sequences])
        q = self._linear(part["attn_q.weight"], x, bias=part.get("attn_q.bias")).reshape(n, facts.n_head, -1)
        k = self._linear(part["attn_k.weight"], x, bias=part.get("attn_k.bias")).reshape(n, facts.n_head_kv, -1)
        v = self._linear(part["attn_v.weight"], x, bias=part.get("attn_v.bias")).reshape(n, facts.n_head_kv, -1)
        adjacent = facts.arch == "llama"
        angles = ANGLES[self._angles](positions, facts.rope_base, facts.rope_dim, divisors, facts.rope_scaling)
        scale = magnitude(facts.rope_scaling)
        q, k = (rope(heads, angles, adjacent=adjacent, magnitude=scale) for heads in (q, k))
        ends = np.cumsum([len(tokens) for tokens in sequences])[:-1]
        parts = zip(*(np.split(array, ends) for array in (q, k, v)), strict=True)
        return np.concatenate([attention(*one) for one in parts])

    def _linear(self, weight: Tensor, x: F64, bias: Tensor | None = None) -> Any:  # noqa: ANN401 - array or map
        return linear(weight, x, bias=bias, rounded=self._rounded)
