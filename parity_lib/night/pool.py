"""Runs several notebooks at once, each on its own cores. Its threads only wait; the main thread judges."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from parity_lib.base.errors import UsageError
from parity_lib.night.job import NotebookEnd, NotebookJob, run_notebook

T = TypeVar("T")

WAIT_SECONDS = 0.2  # a signal is handled between two waits


class Stopped(Exception):
    """The nightly run is ending; raised in a notebook's thread, which then kills its processes."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """One run that came back: how it ended, or why it never started."""

    item: T
    end: NotebookEnd | None
    error: BaseException | None


class Pool(Generic[T]):
    """Runs up to ``jobs`` notebooks at once.

    Args:
        jobs: at least 1; more than there are cores is brought down to their number.

    Leaving the context ends what still runs, with all of its processes.

    Raises:
        UsageError: ``jobs`` is no positive number.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise UsageError("no cell can run with this many jobs", place="--jobs", expected="1 or more", found=jobs)
        self.shares = share_cores(_cores(), jobs)
        self._free = list(range(len(self.shares)))[::-1]
        self._back: queue.SimpleQueue[tuple[int, Finished[T]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads: dict[int, threading.Thread] = {}

    @property
    def busy(self) -> int:
        """Return how many runs are under way or have not been taken yet."""
        return len(self._threads)

    @property
    def full(self) -> bool:
        """Return whether every slot is taken."""
        return not self._free

    def start(self, item: T, job: NotebookJob, on_tick: Callable[[], None]) -> None:
        """Start a run in a free slot; ``on_tick`` is called from its thread."""
        slot = self._free.pop()
        job = replace(job, cpus=self.shares[slot])
        thread = threading.Thread(target=self._run, args=(slot, item, job, on_tick), name=f"cell-slot-{slot}")
        self._threads[slot] = thread
        thread.start()

    def wait(self) -> Finished[T]:
        """Return the next run that comes back; a signal interrupts the wait.

        Raises:
            BaseException: what the run raised, unless it is an error of its request, which is returned.
        """
        while True:
            try:
                slot, finished = self._back.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                continue
            self._threads.pop(slot).join()
            self._free.append(slot)
            if finished.error is not None and not isinstance(finished.error, UsageError):
                raise finished.error
            return finished

    def stop(self) -> None:
        """End every run and all of its processes; returns when they are gone."""
        self._stop.set()
        for thread in self._threads.values():
            thread.join()

    def _run(self, slot: int, item: T, job: NotebookJob, on_tick: Callable[[], None]) -> None:
        def tick() -> None:
            if self._stop.is_set():
                raise Stopped
            on_tick()

        try:
            finished = Finished(item, run_notebook(job, tick), None)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the main thread
            finished = Finished(item, None, error)
        self._back.put((slot, finished))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()


def share_cores(cores: list[int], jobs: int) -> list[tuple[int, ...]]:
    """Return the cores of each slot. One slot is not bound at all; no core is in two slots.

    Engines start a thread for each core they may use, and llama.cpp's threads spin: two cells on the same cores
    would take several times as long as one after the other.
    """
    jobs = min(jobs, max(len(cores), 1))
    return [()] if jobs == 1 else [tuple(cores[slot::jobs]) for slot in range(jobs)]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
