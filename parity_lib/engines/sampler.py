"""Samples the program counters of this process while an engine works; see ``burn_gguf/src/sampler.rs``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from parity_lib.numerics.isa_samples import summarise
from parity_lib.records.isa_evidence import Kernel, Sampled

Extension = Any  # the module burn_gguf, whose sampler sees every library of the process

SLICE = 0.25  # seconds of CPU time between two evaluations of the samples
ABSENT = "the extension was built without its sampler, or not for Linux, so program counters cannot be sampled"


@dataclass(slots=True)
class Watch:
    """Samples of several runs of one engine in this process.

    Args:
        extension: the module that samples.
        own: beginnings of the file names of the engine's own libraries.
    """

    extension: Extension
    own: tuple[str, ...]
    n: int = 0
    lost: int = 0
    absent: str = ""  # why nothing was sampled
    places: Counter[Kernel] = field(default_factory=Counter)  # each with n = 0, so that equal ones are added up

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample while the block runs; if sampling is not possible, set ``absent`` to the reason and run it anyway."""
        if not hasattr(self.extension, "sampling_start"):
            self.absent = ABSENT
            yield
            return
        try:
            self.extension.sampling_start()
        except self.extension.BurnError as error:
            self.absent = str(error)
            yield
            return
        try:
            yield
        finally:
            self._take(json.loads(self.extension.sampling_stop()))

    def repeat(self, run: Callable[[], object], enough: Callable[[Sampled], bool], seconds: float) -> None:
        """Call ``run`` at least once, until the samples are enough or the CPU time is over.

        Samples come by CPU time: on a busy machine a second of the clock may bring none. They are looked up once in
        SLICE seconds, because a run may be shorter than looking up what it showed.
        """
        end = time.process_time() + seconds
        while True:
            pause = time.process_time() + SLICE
            with self.watching():
                while not self.absent:
                    run()
                    if time.process_time() >= pause:
                        break
            seen = self.seen()
            if seen is None or enough(seen) or time.process_time() >= end:
                return

    def seen(self) -> Sampled | None:
        """Return the summary of all samples, or None if no run was sampled."""
        if self.absent:
            return None
        return summarise(self.n, self.lost, [replace(place, n=n) for place, n in self.places.items()], self.own)

    def _take(self, samples: dict[str, Any]) -> None:
        self.n += samples["n"]
        self.lost += samples["lost"]
        for place, n in samples["places"]:
            kernel = Kernel(
                library=place["module"],
                function=place["function"],
                inlined=place["inlined"],
                instruction=place["instruction"],
                bits=place["bits"],
                features=tuple(place["features"]),
                n=0,
            )
            self.places[kernel] += n
