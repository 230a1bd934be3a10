"""A cell's request, and everything that is found for it: files, facts, pins, prompts, limits."""

from __future__ import annotations

import atexit
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from parity_lib.base.errors import RecordError, UsageError
from parity_lib.base.files import LOCK, hold_folder
from parity_lib.base.names import Compute
from parity_lib.base.progress import CellProgress
from parity_lib.engines import targets
from parity_lib.engines.targets import Sides
from parity_lib.model_file.facts import ModelFacts, read_facts
from parity_lib.model_file.header import require_file
from parity_lib.models import ensure
from parity_lib.records.pins import ModelPin, Pins, load_pins
from parity_lib.records.prompts import PromptSuite, load_prompts
from parity_lib.records.tolerances import load_tolerances
from parity_lib.records.verdicts import CellId

RECORDS = (
    *("verdict.json", "divergences.jsonl", "limits.json", "spread.json"),
    *("twin.npz", "twin.json", "native.npz", "native.json"),
)
# Locks of this process by their path. The kernel lets go of them when the process ends, however it ends.
_held: dict[Path, IO[bytes]] = {}

Wish = Any  # the fields of a request, each of its own type
HOST = "host"  # as ``isa``: the widest ISA target that this machine can run


@dataclass(frozen=True, slots=True)
class CellRequest:
    """What the user asks for. Empty strings mean the default.

    >>> request = CellRequest("smollm2-135m", "Q8_0", fault="eps_x10@all")
    >>> request.isa, request.stack, request.compute
    ('host', 'crates-io', 'f32')
    """

    model: str  # an id of gguf_parity.toml, or the path of any GGUF file
    quant: str = ""  # read from the file where ``model`` is a path
    isa: str = HOST
    stack: str = "crates-io"
    compute: str = "f32"
    prompts: str = ""  # path of a prompts file of the user's own
    candidate_file: str = ""  # another file for the candidate, for red controls
    fault: str = ""  # seeded into the candidate
    control: bool = False  # a red control of a nightly run: its lines say CONTROL
    fresh: bool = False  # compute the reference although it is cached, and hold it to the cached bits
    full: bool = False  # rungs T3 and T6 on every prompt
    day: int = 0  # which prompt is replayed op by op beside the first; a nightly run passes its date
    require_isa: bool = False  # an unproven ISA target makes the cell incomplete; else T7 is NOT_RUN
    out_dir: str | Path = "reports/scratch"
    n_threads: int = 0  # 0: every core that this process may use


@dataclass(slots=True)
class Diary:
    """Notes of a cell while it runs: cache, timings; they are stored in the verdict."""

    seconds: dict[str, float] = field(default_factory=dict)  # of each step
    cache: dict[str, str] = field(default_factory=dict)  # part of the reference -> computed, cached, ...
    notes: list[str] = field(default_factory=list)  # about the cache: what was refused, what could not be kept


@dataclass(frozen=True, slots=True)
class Cell:
    """A request with everything found: files, facts, pins, prompts, limits."""

    request: CellRequest
    id: CellId
    pins: Pins
    pin: ModelPin | None  # None: a file of the user's own
    suite: PromptSuite
    facts: ModelFacts
    model_path: Path
    twin_path: Path
    candidate_path: Path
    unpinned: bool  # file or prompts are the user's own, so that no pin vouches for them
    tolerances_sha256: str
    out_dir: Path
    n_threads: int
    started: float  # time.monotonic
    progress: CellProgress = field(compare=False)
    diary: Diary = field(default_factory=Diary, compare=False)

    @property
    def sides(self) -> Sides:
        """Return the ISA target that each engine runs; the cell is named by the requested one."""
        return targets.sides(self.pins, self.id.stack, self.id.isa)

    @property
    def spools(self) -> Path:
        """Return the folder of the logit rows while the cell runs."""
        return self.out_dir / ".spool"

    def log(self, engine: str) -> Path:
        """Return the file that gets everything an engine's worker prints."""
        return self.out_dir / f"{engine}.log"


def open_cell(request: CellRequest | None = None, /, **wishes: Wish) -> Cell:
    """Resolve a request: find or make the files, read facts, prompts and limits. Keyword arguments make the request.

    Raises:
        UsageError: an unknown model, quant, ISA target, stack, policy or prompts file.
        PinError: a file is another one, or no engine can run the ISA target here.
        ModelFileError: a file cannot be made, or is not supported.
        RecordError: the output folder cannot be written.
    """
    request = CellRequest(**wishes) if request is None else request
    out_dir = Path(request.out_dir)
    progress = CellProgress(out_dir)
    pins = load_pins()
    suite = load_prompts(request.prompts or None)
    if request.compute not in list(Compute):
        raise UsageError("unknown compute policy", expected=", ".join(Compute), found=request.compute)
    pins.stack(request.stack)
    isa = targets.host(pins, request.stack) if request.isa == HOST else request.isa
    targets.sides(pins, request.stack, isa)
    progress.step("model files")
    pin, path = _model(request, pins)
    facts = read_facts(path)
    candidate = Path(request.candidate_file) if request.candidate_file else path
    require_file(candidate)
    pinned = pin is not None and not request.prompts and not request.candidate_file
    name = pin.id if pin is not None else path.stem
    quant = pin.quant if pin is not None else facts.quant
    twin = ensure.ensure_twin(path, pins)
    take(out_dir)  # last: a request that is refused leaves the folder, and the record in it, as they were
    return Cell(
        request=replace(request, out_dir=out_dir),
        id=CellId(name, quant, isa, request.stack, request.compute),
        pins=pins,
        pin=pin,
        suite=suite,
        facts=facts,
        model_path=path,
        twin_path=twin,
        candidate_path=candidate,
        unpinned=not pinned,
        tolerances_sha256=load_tolerances().sha256,
        out_dir=out_dir,
        n_threads=request.n_threads or len(os.sched_getaffinity(0)),
        started=time.monotonic(),
        progress=progress,
    )


def _model(request: CellRequest, pins: Pins) -> tuple[ModelPin | None, Path]:
    """Return (pin, path) of a pinned model, or (None, path) of an unpinned file."""
    path = Path(request.model)
    if path.suffix == ".gguf" or path.is_file():
        if request.quant and path.is_file() and read_facts(path).quant != request.quant:
            raise UsageError(
                "the file is of another quant",
                place=path,
                expected=request.quant,
                found=read_facts(path).quant,
                next_step="leave QUANT out: it is read from the file",
            )
        return None, path
    pin = pins.model(request.model, request.quant)
    return pin, ensure.ensure(request.model, request.quant, pins)


def take(folder: Path) -> None:
    """Make the output folder, hold it, and clear it of an earlier run's record, which must not pass for this one's.

    Raises:
        UsageError: another process writes into it. Nothing in it was touched.
        RecordError: the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _hold(folder)
        for name in RECORDS:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise RecordError(
            "the output folder cannot be written",
            place=folder,
            expected="a folder that no other run is writing to",
            found=error.strerror or error,
            next_step="give another --out, or put the folder's permissions right",
        ) from error


def let_go(folder: Path) -> None:
    """Release the lock of the cell's folder, if it is held."""
    file = _held.pop(folder.resolve() / LOCK, None)
    if file is not None:
        file.close()


@atexit.register
def _let_all_go() -> None:
    """Release every lock that this process still holds: a cell keeps its folder until its process ends."""
    while _held:
        _held.popitem()[1].close()


def _hold(folder: Path) -> None:
    """Lock the folder for this process, unless it holds it already (a notebook may open its cell again)."""
    path = folder.resolve() / LOCK
    mine = _held.get(path)
    if mine is not None and path.exists() and os.path.samestat(os.fstat(mine.fileno()), path.stat()):
        return
    let_go(folder)
    _held[path] = hold_folder(folder, "wait for it, or give another --out")
