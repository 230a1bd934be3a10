"""The worker against real crashes: nothing here is simulated."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import parity_lib
from parity_lib.base.errors import EngineError, ModelFileError, WorkerDied
from parity_lib.base.surroundings import NOT_INHERITED
from parity_lib.engines.worker.client import Worker, describe_status, environment

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parent
ROOT = Path(parity_lib.__path__[0]).parent
PATH = {"PYTHONPATH": f"{ROOT}{os.pathsep}{FOLDER}"}
VICTIM = "victim:Victim"


def start(**named: object) -> Worker:
    return Worker(VICTIM, env=PATH, **named)  # type: ignore[arg-type]


@pytest.fixture
def worker() -> Iterator[Worker]:
    with start() as running:
        yield running


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # an orphan that nobody reaps is dead all the same


def wait_until_dead(pid: int, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


def test_call_passes_arguments_and_answer(worker: Worker) -> None:
    assert worker.call("echo", 1, "two", three=[3.0]) == (1, "two", {"three": [3.0]})


def test_a_large_answer_arrives_whole(worker: Worker) -> None:
    assert worker.call("bytes", 50_000_000) == bytes(50_000_000)


@pytest.mark.parametrize(
    ("method", "args", "status", "words"),
    [
        ("abort", (), -signal.SIGABRT, ["about to abort", "Fatal Python error: Aborted", "in abort"]),
        ("segfault", (), -signal.SIGSEGV, ["Segmentation fault", "in segfault"]),
        ("die", (), -signal.SIGKILL, []),
        ("leave", (7,), 7, []),
    ],
)
def test_death_is_reported_with_status_and_stderr(
    worker: Worker, method: str, args: tuple[int, ...], status: int, words: list[str]
) -> None:
    with pytest.raises(WorkerDied) as caught:
        worker.call(method, *args)
    assert caught.value.status == status
    assert describe_status(status) in str(caught.value)
    assert f"{VICTIM}.{method}" in str(caught.value)
    for word in words:
        assert word in caught.value.stderr


def test_out_of_memory_is_suggested_after_sigkill(worker: Worker) -> None:
    with pytest.raises(WorkerDied, match="ran out of memory"):
        worker.call("die")


def test_death_in_the_constructor_is_a_death() -> None:
    with pytest.raises(WorkerDied) as caught:
        start(kwargs={"fate": "segfault"})
    assert caught.value.status == -signal.SIGSEGV
    assert "in __init__" in caught.value.stderr


def test_stderr_is_complete_and_only_of_this_worker(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "engine.log"
    with start(log=log) as first:
        first.call("say", "first worker\n")
    text = "".join(f"line {i}\n" for i in range(5000))
    with start(log=log) as second:
        second.call("say", text)
        with pytest.raises(WorkerDied) as caught:
            second.call("abort")
    assert text in caught.value.stderr
    assert "first worker" not in caught.value.stderr
    assert str(log) in str(caught.value)
    assert "first worker" in log.read_text()
    assert "FIRST WORKER" in log.read_text()


@pytest.mark.parametrize("method", ["hang", "hang_in_c"])
def test_a_hang_ends_at_its_time_limit_and_shows_where_it_stood(worker: Worker, method: str) -> None:
    pid = worker.pid
    with pytest.raises(WorkerDied, match=r"no answer within 0\.5 s") as caught:
        worker.call(method, timeout=0.5)
    assert f"in {method}" in caught.value.stderr
    assert wait_until_dead(pid)


def test_a_dead_worker_refuses_further_calls(worker: Worker) -> None:
    with pytest.raises(WorkerDied):
        worker.call("die")
    with pytest.raises(EngineError, match="the worker is closed"):
        worker.call("echo")


def test_an_error_of_the_hierarchy_travels_as_it_is(worker: Worker) -> None:
    with pytest.raises(ModelFileError) as caught:
        worker.call("refuse")
    error = caught.value
    assert (error.what, error.place, error.expected, error.found) == ("bad magic", "x.gguf", "GGUF", "GGML")
    assert error.next_step == "convert it"
    assert worker.call("echo", 1) == (1, {}), "a refusal must not cost the worker"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("blunder", ["ValueError: the wrapper is wrong", "in blunder"]),
        ("panic", ["NotAnException: index out of bounds", "in panic"]),
        ("exit", ["SystemExit: 5", "in exit"]),
        ("unportable", ["lost in the pipe"]),
        ("unpicklable", ["pickle"]),
    ],
)
def test_any_other_exception_becomes_an_engine_error_with_its_traceback(
    worker: Worker, method: str, words: list[str]
) -> None:
    with pytest.raises(EngineError) as caught:
        worker.call(method)
    assert not isinstance(caught.value, WorkerDied)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert "Traceback" in str(caught.value.__cause__), "for --debug"
    assert worker.call("echo", 1) == (1, {})


def test_unknown_engines_and_methods_are_refused(worker: Worker) -> None:
    with pytest.raises(EngineError, match="no such engine"):
        Worker("onnx")
    with pytest.raises(EngineError, match="no such method"):
        worker.call("divine")
    with pytest.raises(EngineError, match="no such method"):
        worker.call("__init__")


def test_many_progress_reports_arrive_in_order_and_end_at_the_total(worker: Worker) -> None:
    seen: list[tuple[int, int]] = []
    assert worker.call("count", 1_000_000, progress=lambda done, total: seen.append((done, total))) == 1_000_000
    assert seen == sorted(seen)
    assert seen[0] == (1, 1_000_000)
    assert seen[-1] == (1_000_000, 1_000_000)
    assert len(seen) < 10_000, "a report for every row would cost more than the row"


def test_progress_is_optional_for_the_caller(worker: Worker) -> None:
    assert worker.call("count", 10) == 10


def test_an_interrupt_from_progress_ends_the_whole_group() -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with start() as worker:
        pids = [worker.pid, worker.call("child")]
        assert all(is_alive(pid) for pid in pids)
        with pytest.raises(KeyboardInterrupt):
            worker.call("wait", progress=interrupt)
    assert all(wait_until_dead(pid) for pid in pids)


def test_ctrl_c_during_a_call_ends_the_whole_group() -> None:
    with start() as worker:
        pids = [worker.pid, worker.call("child")]
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            worker.call("hang")
    assert all(wait_until_dead(pid) for pid in pids)


def test_closing_ends_the_group_and_may_be_repeated() -> None:
    worker = start()
    pids = [worker.pid, worker.call("child")]
    worker.close()
    worker.close()
    assert all(wait_until_dead(pid) for pid in pids)


@pytest.mark.parametrize("method", ["", "hang", "hang_in_c"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_worker_dies_with_its_parent(method: str, number: signal.Signals) -> None:
    command = [sys.executable, str(FOLDER / "owner.py"), str(FOLDER), str(ROOT), method]
    env = environment(1)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        time.sleep(0.2)  # let the call begin
        owner.send_signal(number)
        owner.wait()
        assert wait_until_dead(pid)


def test_a_worker_outlives_the_thread_that_started_it() -> None:
    started: list[Worker] = []
    thread = threading.Thread(target=lambda: started.append(start()))
    thread.start()
    thread.join()
    with started[0] as worker:
        assert worker.call("echo", "still here") == ("still here", {})


def test_a_second_call_during_a_call_is_refused(worker: Worker) -> None:
    errors: list[str] = []

    def meddle(done: int, total: int) -> None:
        try:
            worker.call("echo")
        except EngineError as error:
            errors.append(error.what)

    assert worker.call("count", 1, progress=meddle) == 1
    assert errors == ["the worker is busy"]


def test_the_environment_holds_no_inherited_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = ("GGML_CPU_TILED_MM_FORCE", "LLAMA_CPP_LIB_PATH", "OMP_PROC_BIND", "RAYON_LOG", "LD_PRELOAD")
    for name in inherited:
        assert name.startswith(NOT_INHERITED)
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PARITY_CACHE", "kept")
    with Worker(VICTIM, {"n_threads": 3}, env=PATH | {"GGML_CPU_TILED_MM": "1"}) as worker:
        found = worker.call("environment")
    assert not set(inherited) & set(found)
    assert found["PARITY_CACHE"] == "kept"
    assert found["GGML_CPU_TILED_MM"] == "1", "what the caller asks for comes last"
    for pool in ("OMP", "OPENBLAS", "MATMUL", "RAYON"):
        assert found[f"{pool}_NUM_THREADS"] == "3"


def test_the_tiled_product_is_off_unless_asked_for() -> None:
    assert environment(2)["GGML_CPU_TILED_MM"] == "0"


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "did not exit"), (3, "status 3"), (-9, "SIGKILL"), (-64, "SIGRTMAX"), (-99, "signal 99")],
)
def test_statuses_are_put_into_words(status: int | None, words: str) -> None:
    assert words in describe_status(status)
