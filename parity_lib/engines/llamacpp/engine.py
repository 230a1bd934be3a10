"""The reference: llama.cpp through its low-level API, token ids in, logit rows out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.base.names import Isa, Settings
from parity_lib.base.progress import Progress
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.abi import Ctypes, features, load
from parity_lib.engines.llamacpp.quantize import quantize_file, quantize_here
from parity_lib.engines.llamacpp.settings import (
    N_UBATCH,
    asked,
    check_environment,
    check_isa,
    context_params,
    model_params,
    read_back,
    worker_env,
)
from parity_lib.engines.llamacpp.tokenizer import Vocabulary
from parity_lib.engines.spool import SpoolWriter, spool_writer
from parity_lib.engines.worker.protocol import OnOneFile
from parity_lib.model_file.digest import sha256_file
from parity_lib.numerics.metrics import top_k
from parity_lib.records.runs import LlamaDispatchFacts, LlamaRun, LlamaSettings
from parity_lib.records.traces import F32

__all__ = ["LlamaCpp", "quantize_file", "worker_env"]

BUFFER = re.compile(r"(\S+) model buffer size = +([0-9.]+) MiB")


def _silent(done: int, total: int) -> None:
    pass


class LlamaCpp(OnOneFile):
    """llama.cpp on one model file, in this process; meant to live in a worker (``Worker("llama_cpp", ...)``).

    One sequence at a time, always from an empty cache, up to 512 rows a batch. With strict settings a
    row's bits depend on the tokens before it and on nothing else: not on how they were batched.

    Args:
        path: a GGUF file.
        settings: ``strict`` (batch-invariant, F32 cache, no repacked weights) or ``default`` (as deployed).
        isa: the ISA target that was asked for; the loaded build must be of that ISA target.
        n_threads: for prefill and decode.
        n_ctx: positions to allocate; None grows as the sequences need, up to the model's own limit.

    Raises:
        PinError: the library is not the pinned build, or not of this ISA target.
        EngineError: the process has other switches than the settings need, or memory is short.
        ModelFileError: the file is missing or llama.cpp cannot load it.
    """

    def __init__(
        self,
        path: Path | str,
        isa: Isa | str,
        settings: Settings | str = Settings.STRICT,
        n_threads: int = 2,
        n_ctx: int | None = None,
    ) -> None:
        super().__init__(path)
        self._started = datetime.now(UTC)
        self._seconds = 0.0
        self._settings, self._isa = Settings(settings), Isa(isa)
        self._n_threads, self._fixed_ctx = n_threads, n_ctx
        self._model: Ctypes = None
        self._context: Ctypes = None
        self._library = load()
        self._api = self._library.api
        self._features = features(self._library.system_info)
        self._env = check_environment(self._settings)
        check_isa(self._library, self._isa, self._features)
        self._load_model()
        self._batch = self._api.llama_batch_init(N_UBATCH, 0, 1)
        self._open_context(n_ctx or min(N_UBATCH, self._n_ctx_train))

    def n_vocab(self) -> int:
        """Return the number of logits in a row."""
        self._require_open()
        return self._vocabulary.n_tokens

    def run_info(self) -> LlamaRun:
        """Return what ran, with the settings as the context itself reports them."""
        self._require_open()
        return LlamaRun(
            version=self._api.llama_version().decode(),
            commit=self._library.commit,
            build=self._library.receipt,
            model_path=self._path.name,
            model_sha256=self._sha256,
            settings=LlamaSettings(**asked(self._settings), environment=self._env, **self._taken),
            isa_requested=str(self._isa),
            isa_observed="unproven",  # compiled in is not the same as run
            isa_evidence=LlamaDispatchFacts(
                system_info=self._library.system_info,
                features=self._features,
                libraries=tuple(self._library.loaded),
                weight_buffers_mib=self._buffers,
            ),
            n_threads=self._n_threads,
            kv_type=self._taken["type_k"],
            compute="native",
            stack="llama.cpp",
            lock_sha256="",
            machine_class=machine.machine_class(),
            host=machine.host(),
            fault=None,
            started_at=self._started.isoformat(timespec="seconds"),
            seconds=self._seconds,
            peak_rss_bytes=machine.peak_rss_bytes(),
        )

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        spool: Path,
        *,
        batch: int = N_UBATCH,
        progress: Progress = _silent,
    ) -> list[int]:
        """Feed each sequence from an empty cache and write every row; see ``engines/worker/protocol.py``.

        ``batch`` is how many tokens go into one graph, 1 to 512: with 1 it is what decoding computes.
        """
        if not 1 <= batch <= N_UBATCH:
            raise EngineError("no such batch", place="batch", expected=f"1 to {N_UBATCH}", found=batch)
        rows = self._check(sequences, [1] * len(sequences))
        self._grow(max(rows))
        with spool_writer(Path(spool), sum(rows), self._vocabulary.n_tokens, progress) as out:
            for tokens in sequences:
                self._clear()
                self._feed(tokens, 0, out, batch)
        return rows

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: Sequence[int],
        spool: Path,
        *,
        progress: Progress = _silent,
    ) -> list[list[int]]:
        """Continue each prompt greedily, also past an end-of-sequence token, and return the generated ids.

        The spool gets the rows of ``prompt + generated[:-1]``, so ``len(prompt) + n_tokens - 1`` rows a
        prompt, in order. Which logit is largest is decided by ``numerics.metrics.top_k``, as for both engines.

        Raises:
            EngineError: as ``score``; also if a prompt is to generate fewer than one token.
        """
        rows = self._check(prompts, n_tokens)
        self._grow(max(rows))
        with spool_writer(Path(spool), sum(rows), self._vocabulary.n_tokens, progress) as out:
            return [self._continue(prompt, n, out) for prompt, n in zip(prompts, n_tokens, strict=True)]

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text``; see ``Vocabulary.tokenize``."""
        self._require_open()
        return self._vocabulary.tokenize(text)

    def token_bytes(self, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes of each token; see ``Vocabulary.token_bytes``."""
        self._require_open()
        return self._vocabulary.token_bytes(ids)

    def quantize(self, src: Path | str, dst: Path | str, ftype: str) -> None:
        """Quantise the file ``src`` to ``ftype`` and write it to ``dst``; the loaded model is not used."""
        quantize_here(Path(src), Path(dst), ftype, self._n_threads)

    def _free(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_batch_free(self._batch)
        self._api.llama_model_free(self._model)
        self._model = self._context = None

    def _load_model(self) -> None:
        api, log = self._api, self._library.log
        self._sha256 = sha256_file(self._path)
        log.mark()
        params = model_params(self._library, self._settings)
        self._model = api.llama_model_load_from_file(os.fsencode(self._path), params)
        if not self._model:
            raise ModelFileError(
                "llama.cpp cannot load the model file",
                place=self._path,
                expected="a whole GGUF file of a known architecture",
                found=log.complaints(),
                next_step="verify the file's hash, and fetch or make it again",
            )
        self._buffers = {name: float(size) for name, size in BUFFER.findall(log.text())}
        self._vocabulary = Vocabulary(self._library, self._model, self._path.name)
        self._n_ctx_train = int(api.llama_model_n_ctx_train(self._model))

    def _open_context(self, n_ctx: int) -> None:
        api, log = self._api, self._library.log
        if self._context is not None:
            api.llama_free(self._context)
        log.mark()
        params = context_params(self._library, self._settings, n_ctx, self._n_threads)
        self._prepare(params)
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            self._context = None
            raise self._failed("llama.cpp could not make a context", "context", f"{n_ctx} positions", "none")
        self._taken = read_back(self._library, self._context, self._settings, log.text())
        self._memory = api.llama_get_memory(self._context)

    def _prepare(self, params: Ctypes) -> None:
        """Add to a context's parameters before it is made; taps come in here."""

    def _grow(self, n_positions: int) -> None:
        if n_positions > self._taken["n_ctx"]:
            self._open_context(n_positions)

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._memory, True)

    def _continue(self, prompt: Sequence[int], n_tokens: int, out: SpoolWriter) -> list[int]:
        self._clear()
        generated = [_greedy(self._feed(prompt, 0, out))]
        while len(generated) < n_tokens:
            position = len(prompt) + len(generated) - 1
            generated.append(_greedy(self._feed(generated[-1:], position, out)))
        return generated

    def _feed(self, tokens: Sequence[int], position: int, out: SpoolWriter, batch: int = N_UBATCH) -> F32:
        """Feed ``tokens`` from ``position`` on, write their rows, return a view of the last, valid until the next."""
        rows = np.empty((0, self._vocabulary.n_tokens), np.float32)
        for start in range(0, len(tokens), batch):
            rows = self._decode(tokens[start : start + batch], position + start)
            out.write(rows)
        last: F32 = rows[-1]
        return last

    def _decode(self, tokens: Sequence[int], position: int) -> F32:
        """Return the logits of up to 512 tokens, ``(len(tokens), n_vocab)``: llama.cpp's own buffer, not a copy."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = int(token)
            batch.pos[i] = position + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True
        began = time.perf_counter()
        status = self._api.llama_decode(self._context, batch)
        self._seconds += time.perf_counter() - began
        if status != 0:
            place = f"positions {position} to {position + len(tokens) - 1}"
            raise self._failed("llama.cpp could not decode", place, "status 0", f"status {status}")
        pointer = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self._vocabulary.n_tokens))

    def _check(self, sequences: Sequence[Sequence[int]], n_tokens: Sequence[int]) -> list[int]:
        """Return the rows that each sequence gives, or raise ``EngineError`` for what cannot be fed."""
        limit = min(self._fixed_ctx or self._n_ctx_train, self._n_ctx_train)
        fed = self._checked(sequences, limit, self._vocabulary.n_tokens, n_tokens)
        return [len(tokens) + n - 1 for tokens, n in zip(fed, n_tokens, strict=True)]

    def _failed(self, what: str, place: str, expected: object, found: object) -> EngineError:
        return EngineError(
            what,
            place=f"{self._path.name}, {place}",
            expected=expected,
            found=f"{found}; {self._library.log.complaints()}",
            next_step="see the worker's log; if memory is short, score shorter sequences",
        )


def _greedy(row: F32) -> int:
    return int(top_k(row[np.newaxis], 1)[0, 0])
