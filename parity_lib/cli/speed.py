"""Measure speed as ratios within one run. Machines are noisy; a ratio of two runs side by side is not.

Each row names the measurement, its value, its goal and whether the goal was met. It judges nothing else, and no test
depends on it.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parity_lib.base.errors import EngineError
from parity_lib.base.names import Settings
from parity_lib.cell.prompt_tokens import prompt_tokens
from parity_lib.cell.rows import fed_sequences
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.node_file import VALUES
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import read_facts
from parity_lib.models import ensure
from parity_lib.numerics.metrics import pair_statistics
from parity_lib.records.pins import load_pins
from parity_lib.records.prompts import load_prompts

MODEL, QUANT = "smollm2-135m", "Q8_0"
NATIVE = Path(__file__).resolve().parents[1] / "burn_gguf"
ROUNDS = 3  # the best of each side counts: noise only ever adds time
GIGABYTE = 1e9
TRACED = 64  # tokens
TURNS = 41  # of two short calls, one side and then the other


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    value: float
    unit: str
    goal: float | None  # None: for information
    smaller_is_better: bool
    detail: str

    def __str__(self) -> str:
        met = ""
        if self.goal is not None:
            good = self.value <= self.goal if self.smaller_is_better else self.value >= self.goal
            sign = "<=" if self.smaller_is_better else ">="
            met = f"{sign} {self.goal:g}: {'met' if good else 'NOT MET'}"
        return f"{self.name:46} {self.value:8.2f} {self.unit:10} {met:18} {self.detail}"


def best_seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the shortest wall-clock time of some calls, seconds."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def teacher_forced_pass(folder: Path, n_threads: int) -> Iterator[Row]:
    """Yield the teacher-forced pass of all prompts over llama.cpp's greedy decode of the same tokens; memory."""
    pins, suite = load_pins(), load_prompts()
    path = ensure.ensure(MODEL, QUANT, pins)
    facts, isa, log = read_facts(path), machine.host_target(), folder / "engines.log"
    llama = {"path": str(path), "settings": Settings.DEFAULT, "isa": isa, "n_threads": n_threads}
    burn = {"path": str(path), "isa": isa, "stack": "crates-io", "compute": "f32", "n_threads": n_threads}
    lengths = [prompt.n_tokens for prompt in suite.prompts]
    with Worker("llama_cpp", llama, env=worker_env(Settings.DEFAULT), log=log) as reference:
        prompts = prompt_tokens(suite, facts, reference)
        told: list[list[list[int]]] = []
        spool = folder / "reference.f32"
        decode = best_seconds(lambda: told.append(reference.call("generate", prompts, lengths, spool)))
    sequences = fed_sequences(prompts, told[-1])
    n_rows = sum(map(len, sequences))
    with Worker("burn", burn, log=log) as candidate:
        forced = best_seconds(lambda: candidate.call("score", sequences, folder / "candidate.f32"))
        run = candidate.call("run_info")
    rows = f"{n_rows} rows in {forced:.2f} s, llama.cpp's decode {decode:.2f} s, {n_threads} threads"
    yield Row("teacher-forced pass over greedy decode", forced / decode, "x", 0.5, True, rows)
    size = path.stat().st_size
    over = (run.peak_rss_bytes - size) / GIGABYTE
    detail = f"peak {run.peak_rss_bytes / GIGABYTE:.2f} GB, file {size / GIGABYTE:.2f} GB"
    yield Row("candidate's peak memory over the file", over, "GB", 1.0, True, detail)
    yield from statistics(folder, n_rows, facts.n_vocab)


def statistics(folder: Path, n_rows: int, n_vocab: int) -> Iterator[Row]:
    """Yield how fast two spools are compared, in bytes of logits read from both sides a second."""
    rows = [
        np.memmap(folder / f"{name}.f32", np.float32, "r", shape=(n_rows, n_vocab))
        for name in ("reference", "candidate")
    ]
    seconds = best_seconds(lambda: pair_statistics(rows[0], rows[1]))
    speed = 2 * rows[0].nbytes / seconds / GIGABYTE
    yield Row("pairwise statistics over whole rows", speed, "GB/s", 1.0, False, f"{n_rows} x {n_vocab} x 2")


def share_of_sgemm(n_threads: int, n_rows: int) -> Iterator[Row]:
    """Yield, for each shape, the share of raw sgemm speed that ``linear`` reaches, dequantisation included.

    Raises:
        EngineError: cargo could not build or run the measurement.
    """
    command = ["cargo", "run", "--release", "--locked", "--quiet", "--example", "share"]
    command += ["--manifest-path", str(NATIVE / "Cargo.toml"), "--", str(n_threads), str(n_rows)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError("the share of sgemm could not be measured", place="cargo", found=done.stderr[-400:])
    for line in done.stdout.splitlines()[1:]:
        name, words = line[:18].strip(), line[18:].split()
        raw, ours, share = float(words[1]), float(words[2]), float(words[3].rstrip("%")) / 100
        yield Row(f"share of sgemm, {name}", share, "", 0.7, False, f"{ours:.0f} of {raw:.0f} GFLOPS, {words[0]} rows")


def tracing(folder: Path, n_threads: int) -> Iterator[Row]:
    """Yield what observing every node costs the reference, and how long rung T3 takes for one prompt of 64 tokens."""
    path = ensure.ensure(MODEL, QUANT, load_pins())
    facts, isa, log = read_facts(path), machine.host_target(), folder / "engines.log"
    asked = {"path": str(path), "isa": isa, "n_threads": n_threads}
    theirs, env = asked | {"settings": Settings.STRICT}, worker_env(Settings.STRICT)
    with (
        Worker("llama_cpp", theirs, env=env, log=log) as plain,
        Worker("llama_taps", theirs, env=env, log=log) as tapped,
    ):
        longest = max(prompt_tokens(load_prompts(), facts, plain), key=len)[:TRACED]
        nodes = folder / "nodes"
        times: list[tuple[float, float]] = []
        writes: list[float] = []

        def capture() -> None:
            writes.append(tapped.call("capture", longest, [TRACED], nodes)["write_seconds"])

        for _ in range(TURNS):  # in turn: whatever else the machine does, both sides get some of it
            without = _own_seconds(plain, lambda: plain.call("score", [longest], folder / "plain.f32"))
            times.append((without, _own_seconds(tapped, capture)))
    ratio = float(np.median([taps / without for without, taps in times]))
    written = float(np.median([(taps + w) / without for (without, taps), w in zip(times, writes, strict=True)]))
    plain_s, taps_s = (min(side) for side in zip(*times, strict=True))
    size = (nodes / VALUES).stat().st_size / 1e6
    detail = f"median of {TURNS}; best {taps_s * 1e3:.0f} over {plain_s * 1e3:.0f} ms, {TRACED} tokens, {size:.0f} MB"
    yield Row("every node observed over none, prefill", ratio, "x", 1.15, True, detail)
    after = f"and {np.median(writes) * 1e3:.0f} ms for the file, after the pass"
    yield Row("the same with the file that it writes", written, "x", None, True, after)
    ours = asked | {"stack": "crates-io", "compute": "ggml"}

    def replay() -> None:
        with Worker("llama_taps", theirs, env=env, log=log) as engine:
            engine.call("capture", longest, [TRACED], nodes)
        with Worker("burn_replay", ours, log=log) as engine:
            engine.call("replay", nodes)

    seconds = best_seconds(replay)
    words = f"{MODEL} {QUANT}, both engines started, {n_threads} threads"
    yield Row(f"T3 of one prompt of {TRACED} tokens", seconds, "s", 10.0, True, words)


def _own_seconds(engine: Worker, run: Callable[[], object]) -> float:
    """Return the time that an engine itself measures for a call: its graph, taps included."""
    before: float = engine.call("run_info").seconds
    run()
    after: float = engine.call("run_info").seconds
    return after - before


def rows(parts: Sequence[str], n_threads: int) -> Iterator[Row]:
    """Yield the rows of the chosen parts: ``pass``, ``sgemm``, ``trace``."""
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as folder:
        if "pass" in parts:
            yield from teacher_forced_pass(Path(folder), n_threads)
        if "trace" in parts:
            yield from tracing(Path(folder), n_threads)
    if "sgemm" in parts:
        yield from share_of_sgemm(n_threads, 640)
