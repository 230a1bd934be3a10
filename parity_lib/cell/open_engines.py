"""Open a cell's engines, each in a worker process of its own, on the cell's ISA target, stack, threads and fault."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from parity_lib.base.names import Settings
from parity_lib.cell.request import Cell
from parity_lib.engines.llamacpp.isa_build import target_env
from parity_lib.engines.llamacpp.settings import LIB_PATH, worker_env
from parity_lib.engines.worker.client import Worker


def open_llama(
    cell: Cell,
    path: Path | None = None,
    settings: Settings = Settings.STRICT,
    *,
    kind: str = "llama_cpp",
    n_threads: int | None = None,
    isa: str = "",
    env: Mapping[str, str] | None = None,
) -> Worker:
    """Return a worker with llama.cpp on a file.

    Args:
        cell: whose ISA target of the reference, threads and log it gets.
        path: the model file; the cell's own if None.
        settings: how llama.cpp is set, and with it a part of its environment.
        kind: which engine of ``engines/`` runs it.
        n_threads: others than the cell's.
        isa: another ISA target than the cell's.
        env: set last, over everything; ``LLAMA_CPP_LIB_PATH`` in it chooses another build than the ISA target's.

    Raises:
        PinError: this CPU lacks the ISA target's instructions, or there is no build of it.
    """
    isa, env = isa or cell.sides.reference.isa, env or {}
    libraries = {} if LIB_PATH in env else target_env(cell.pins.llama_cpp, isa)
    asked = {
        "path": str(path or cell.model_path),
        "settings": settings,
        "isa": isa,
        "n_threads": n_threads or cell.n_threads,
    }
    return Worker(kind, asked, env={**worker_env(settings), **libraries, **env}, log=cell.log("llama_cpp"))


def open_burn(cell: Cell, kind: str = "burn", **other: object) -> Worker:
    """Return a worker with the candidate as the cell asks for it.

    Args:
        cell: whose file, ISA target, stack, policy, threads and fault it gets.
        kind: which engine of ``engines/`` runs it.
        other: arguments of that engine in place of the cell's, or beside them.
    """
    asked: dict[str, object] = {
        "path": str(cell.candidate_path),
        "isa": cell.sides.candidate.isa,
        "stack": cell.id.stack,
        "compute": cell.id.compute,
        "n_threads": cell.n_threads,
        "fault": cell.request.fault or None,
    }
    return Worker(kind, asked | other, log=cell.log("burn"))
