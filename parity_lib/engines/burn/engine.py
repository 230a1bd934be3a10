"""The candidate: burn through the Rust extension ``burn_gguf``, token ids in, logit rows out."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from parity_lib.base.errors import EngineError, ModelFileError
from parity_lib.base.json_text import encode
from parity_lib.base.names import Compute, Isa
from parity_lib.base.progress import Progress
from parity_lib.base.record import decode_record
from parity_lib.engines import machine
from parity_lib.engines.burn import isa as burn_isa
from parity_lib.engines.burn import paths
from parity_lib.engines.burn.build_info import CRATES_IO, load
from parity_lib.engines.burn.paths import Digests, Span
from parity_lib.engines.sampler import Watch
from parity_lib.engines.spool import new_spool
from parity_lib.engines.worker.protocol import OnOneFile
from parity_lib.model_file.digest import sha256_file
from parity_lib.records.isa_evidence import UNPROVEN, Evidence
from parity_lib.records.runs import BurnDispatchFacts, BurnRun, BurnSettings
from parity_lib.records.traces import F32

__all__ = ["CRATES_IO", "Burn", "load"]

BACKENDS = ("burn-ndarray", "burn-flex")  # each stack has one of them
Extension = Any  # the module burn_gguf, or an object of it; its types are in burn_gguf/burn_gguf.pyi


def _silent(done: int, total: int) -> None:
    pass


class Burn(OnOneFile):
    """burn on one model file, in this process; meant to live in a worker (``Worker("burn", ...)``).

    All sequences are rows of one pass. A row's bits depend on the tokens before it and on nothing else.

    Args:
        path: a GGUF file of architecture llama or qwen2, any supported tensor types.
        isa: the ISA target that was asked for. The build chooses its kernel by the CPU; what ran is for T7 to judge.
        stack: which burn the extension was built on, ``crates-io`` unless a stack was built instead.
        compute: arithmetic of the weight matmuls.
        n_threads: threads of the engine's own pool.
        fault: a seeded fault as ``faults.names.known_faults`` lists them, or None. The judged library has none, so the
            stack's second library seeds it.
        sampled: note where program counters stand during ``score``; it changes no bit.
        plain: ops of burn that are computed by plain twins instead (``burn_gguf.plain_ops()``), to find a reason;
            the run info's settings list them. Such a run says nothing about the stack.
        with_faults: take the library with faults although none is asked for, to compare the two.

    Raises:
        EngineError: the extension is not built, or an option is unknown.
        PinError: the extension is stale, or of another stack.
        ModelFileError: the file cannot be read or asks for what is not supported.
    """

    def __init__(
        self,
        path: Path | str,
        isa: Isa | str,
        stack: str = CRATES_IO,
        compute: Compute | str = Compute.F32,
        n_threads: int = 2,
        fault: str | None = None,
        plain: Sequence[str] = (),
        *,
        sampled: bool = False,
        with_faults: bool = False,
    ) -> None:
        super().__init__(path)
        self._started = datetime.now(UTC)
        self._seconds = 0.0
        self._isa, self._stack = Isa(isa), stack
        self._compute, self._n_threads, self._fault = Compute(compute), n_threads, fault
        self._plain = list(plain)
        self._extension, self._build = load(stack, faults=with_faults or fault is not None)
        self._evidence: dict[str, Any] = json.loads(self._extension.isa_json())
        with self._translated():
            self._file: Extension = self._extension.GgufFile(self._path)
            self._model: Extension = self._load(n_threads)
        self._sha256 = sha256_file(self._path)
        self._facts: dict[str, Any] = json.loads(self._model.facts_json())
        self._watch = Watch(self._extension, burn_isa.OWN) if sampled else None

    def n_vocab(self) -> int:
        """Return the number of logits in a row."""
        self._require_open()
        return int(self._facts["n_vocab"])

    def run_info(self) -> BurnRun:
        """Return what ran, with the settings as the engine itself reports them."""
        self._require_open()
        crates, seen = self._build.crates, self._evidence | {"samples": encode(self.evidence())}
        return BurnRun(
            version=next(crates[name] for name in BACKENDS if name in crates),
            commit=f"source {self._build.source_sha256[:12]}",
            build=self._build,
            model_path=self._path.name,
            model_sha256=self._sha256,
            settings=decode_record(self._facts, BurnSettings, "facts_json"),
            isa_requested=str(self._isa),
            isa_observed=UNPROVEN,  # what the samples show is for T7 to judge
            isa_evidence=decode_record(seen, BurnDispatchFacts, "isa_json"),
            n_threads=self._facts["n_threads"],
            kv_type="F32",
            compute=self._facts["policy"],
            stack=self._build.stack,
            lock_sha256=self._build.lock_sha256,
            machine_class=machine.machine_class(),
            host=machine.host(),
            fault=self._facts["fault"],
            started_at=self._started.isoformat(timespec="seconds"),
            seconds=self._seconds,
            peak_rss_bytes=machine.peak_rss_bytes(),
        )

    def score(self, sequences: Sequence[Sequence[int]], spool: Path, *, progress: Progress = _silent) -> list[int]:
        """Feed each sequence from an empty cache and write every row; see ``engines/worker/protocol.py``.

        The engine's own count of rows is returned, whatever was expected: judging it is not its own task.
        """
        rows = self._check(sequences)
        with self._spool(Path(spool)) as part, self._watch.watching() if self._watch else contextlib.nullcontext():
            counts: list[int] = self._model.score(rows, part, progress)
        return counts

    def evidence(self) -> Evidence:
        """Return the samples of program counters from every pass that ``score`` has made."""
        return burn_isa.evidence(
            self._watch, self._isa, burn_isa.fingerprint(partial(self.op, "linear"), self._facts["policy"])
        )

    def prove_isa(self, sequences: Sequence[Sequence[int]], folder: Path, seconds: float = 2.0) -> Evidence:
        """Score again until enough program counters were seen, or for ``seconds``; the rows are dropped.

        Args:
            sequences: what is fed, as rows of one pass.
            folder: where the rows lie meanwhile.
            seconds: of CPU time, all threads together.
        """
        rows = self._check(sequences)
        watch = self._watch = self._watch or Watch(self._extension, burn_isa.OWN)
        spool = Path(folder) / "sampled.f32"
        with self._spool(spool) as part:

            def run() -> None:
                part.unlink(missing_ok=True)
                self._model.score(rows, part, _silent)

            watch.repeat(run, burn_isa.is_enough, seconds)
        spool.unlink()
        return self.evidence()

    def decode(self, sequences: Sequence[Sequence[int]], spool: Path, *, progress: Progress = _silent) -> list[int]:
        """Write the same rows as ``score``, fed one token at a time through the key and value cache.

        All sequences advance in lockstep, one pass a position.
        """
        rows = self._check(sequences)
        starts = np.cumsum([0, *(len(tokens) for tokens in rows)])
        with self._spool(Path(spool)) as part:
            session = self._extension.Session(self._model, len(rows))
            logits = np.memmap(part, "<f4", "w+", shape=(int(starts[-1]), self.n_vocab()))
            done = 0
            for position in range(max(map(len, rows))):
                alive = [index for index, tokens in enumerate(rows) if position < len(tokens)]
                raw, _ = session.append([(index, rows[index][position]) for index in alive])
                logits[starts[alive] + position] = np.frombuffer(raw, "<f4").reshape(len(alive), -1)
                done += len(alive)
                progress(done, int(starts[-1]))
            logits.flush()
        return [len(tokens) for tokens in rows]

    def row_digests(
        self, sequences: Sequence[Sequence[int]], folder: Path, *, n_threads: int | None = None
    ) -> list[Digests]:
        """Return the digests of the rows that ``score`` gives, for each sequence; no row is kept.

        Args:
            sequences: what is fed, as rows of one pass.
            folder: where the rows lie until they are hashed.
            n_threads: of a pool for this call alone; the engine's own if None.
        """
        rows = self._check(sequences)
        spool = Path(folder) / "digested.f32"
        with self._spool(spool) as part:
            model = self._model if n_threads is None else self._load(n_threads)
            counts = model.score(rows, part, _silent)
            digests = paths.of_file(part, counts, self.n_vocab())
        spool.unlink()
        return digests

    def interleaved_digests(self, sequences: Sequence[Sequence[int]], *, progress: Progress = _silent) -> list[Digests]:
        """Return the digests of every row, fed in an order that mixes the sequences; see ``burn_paths.interleaved``."""
        rows = self._check(sequences)
        with self._translated():
            return paths.interleaved(self._new_session, rows, self.n_vocab(), progress)

    def decoded_digests(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Sequence[Span],
        restore_at: int,
        *,
        progress: Progress = _silent,
    ) -> tuple[list[Digests], list[Digests]]:
        """Return the digests of rows fed one at a time, twice: straight on, and from a restored state.

        See ``burn_paths.decoded``.
        """
        rows = self._check(sequences)
        with self._translated():
            return paths.decoded(self._new_session, rows, spans, restore_at, self.n_vocab(), progress)

    def taps(self, sequence: Sequence[int], sites: Sequence[str]) -> dict[str, F32]:
        """Return the values at ``sites`` (llama.cpp's node names) of one sequence, each ``(len(sequence), width)``."""
        [tokens] = self._check([sequence])
        with self._translated():
            session = self._extension.Session(self._model, 1)
            wanted: list[int] | None = None if "result_output" in sites else []
            _, taken = session.append([(0, token) for token in tokens], list(sites), wanted)
        return {name: np.frombuffer(raw, "<f4").reshape(shape) for name, (shape, raw) in taken.items()}

    def score_from(self, layer: int, residual: F32, sequence: Sequence[int]) -> F32:
        """Return the logits ``(n, n_vocab)`` of one sequence, entered at block ``layer``.

        Args:
            layer: the first block that runs.
            residual: the residual stream that enters it, ``(n, n_embd)``.
            sequence: the n tokens that it belongs to.
        """
        [tokens] = self._check([sequence])
        rows = [(0, token) for token in tokens]
        with self._translated():
            session = self._extension.Session(self._model, 1)
            raw, _ = session.score_from(layer, _bytes(residual), rows)
        return np.frombuffer(raw, "<f4").reshape(len(tokens), -1)

    def op(self, name: str, *args: object, **named: object) -> F32:
        """Call one op, ``burn_gguf.op_<name>``, with float32 arrays, and return its value as a flat float32 array.

        Raises:
            EngineError: there is no such op, or it refuses what it was given.
        """
        function = getattr(self._extension, f"op_{name}", None)
        if function is None:
            known = sorted(word.removeprefix("op_") for word in dir(self._extension) if word.startswith("op_"))
            raise EngineError("there is no such op", place="burn", expected=f"one of {', '.join(known)}", found=name)
        with self._translated():
            raw = function(*map(_bytes, args), **{key: _bytes(value) for key, value in named.items()})
        return np.frombuffer(raw, "<f4")

    def tensors(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return name, type and shape (numpy order) of every tensor, in the order of the file."""
        self._require_open()
        return [(name, kind, tuple(reversed(dims))) for name, kind, dims, _ in self._file.tensors()]

    def dequantize(self, name: str, *, scalar: bool = False) -> bytes:
        """Return a tensor's values as little-endian float32; ``scalar`` takes the plain twin of the fast code."""
        self._require_open()
        with self._translated():
            values: bytes = self._file.dequantize(name, scalar)
        return values

    def _free(self) -> None:
        self._model = self._file = None

    def _load(self, n_threads: int) -> Extension:
        return self._extension.Model(self._path, str(self._compute), n_threads, self._fault, self._plain)

    def _new_session(self, n_sequences: int) -> Extension:
        return self._extension.Session(self._model, n_sequences)

    def _check(self, sequences: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return the sequences as lists of plain ints, or raise ``EngineError`` for what cannot be fed."""
        return self._checked(sequences, self._facts["n_ctx_train"], self._facts["n_vocab"])

    @contextlib.contextmanager
    def _spool(self, spool: Path) -> Iterator[Path]:
        """Yield a file to write rows to; it gets the spool's name only if the block ends well."""
        began = time.perf_counter()
        try:
            with new_spool(spool) as part, self._translated():
                yield part
        finally:
            self._seconds += time.perf_counter() - began

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise the extension's errors as the project's own; the messages are the extension's."""
        try:
            yield
        except self._extension.BurnFileError as error:
            raise ModelFileError(str(error)) from error
        except self._extension.BurnError as error:
            raise EngineError(str(error), place=self._path.name) from error


def _bytes(value: object) -> object:
    return np.ascontiguousarray(value, "<f4").tobytes() if isinstance(value, np.ndarray) else value
