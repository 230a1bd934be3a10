"""Execute one notebook in this process with papermill: ``python -m parity_lib.night.notebook``, request on stdin."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, load_notebook_node, papermill_io
from papermill.log import logger
from papermill.utils import find_first_tagged_cell_index
from traitlets.config import Config

from parity_lib.base.errors import ParityError, UsageError
from parity_lib.base.files import write_atomic
from parity_lib.night.job import CELL_RAISED, REPLY_KEY, USAGE, describe_status

Untyped = Any  # papermill and nbclient publish no types

ENGINE = "parity"
AUTOSAVE_SECONDS = 5
IOPUB_SECONDS = 60  # a lost verdict output must be an error, not a warning
# Written by the crashing process itself, so it arrives also where the kernel's own streams are lost.
CRASH_LINE = 'import faulthandler, os; faulthandler.enable(open(os.environ["PARITY_CRASH_LOG"], "w"))'
_PLAIN = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


class AtomicHandler(LocalHandler):  # type: ignore[misc]
    """Writes a notebook under a temporary name and renames it: a kill while saving leaves the last complete one."""

    def write(self, buf: str, path: str) -> None:
        """Write ``buf`` to ``path``."""
        write_atomic(Path(path), buf.encode())


class WitnessClient(PapermillNotebookClient):  # type: ignore[misc]
    """Records the kernel's exit status while its process can still be queried."""

    kernel_end = "the kernel's exit status is unknown"

    def papermill_execute_cells(self) -> None:
        """Run the cells; on the way out of a dead kernel, note its exit status."""
        try:
            super().papermill_execute_cells()
        except DeadKernelError:
            process = getattr(getattr(self.km, "provisioner", None), "process", None)
            if process is not None:
                self.kernel_end = describe_status(process.poll())
            raise


class CrashVisibleEngine(NBClientEngine):  # type: ignore[misc]
    """papermill's engine, with two false greens removed.

    papermill leaves the notebook of a dead kernel without an error and every cell marked as completed.
    Here the cell that was running shows the error, and each cell that got its reply carries a witness of it.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man: Untyped, kernel_name: str, **kwargs: Untyped) -> None:
        """Run the notebook; turn a dead kernel or a cell past its limit into an error output of the running cell."""
        kwargs.pop("input_path", None)
        kwargs["timeout"] = kwargs.pop("execution_timeout", None)
        kwargs["startup_timeout"] = kwargs.pop("start_timeout", 60)
        client = WitnessClient(nb_man, kernel_name=kernel_name, log=logger, on_cell_executed=_leave_witness, **kwargs)
        try:
            client.execute()
        except DeadKernelError:
            _show_error(nb_man, "DeadKernelError", f"the kernel died: {client.kernel_end}")
        except CellTimeoutError as error:
            limit = kwargs["timeout"]
            late = "output" if "IOPub" in str(error) else "answer"
            _show_error(nb_man, "CellTimeoutError", f"no {late} within the cell's limit of {limit} s")


def _leave_witness(cell: Untyped, cell_index: int, execute_reply: Mapping[str, Any]) -> None:
    del cell_index
    cell.metadata[REPLY_KEY] = execute_reply["content"]["status"]


def _show_error(nb_man: Untyped, name: str, value: str) -> None:
    started = [(i, c) for i, c in enumerate(nb_man.nb.cells) if c.metadata["papermill"]["start_time"] is not None]
    code = [(i, c) for i, c in started if c.cell_type == "code"]
    if not code:
        raise RuntimeError(f"{name} before the first cell: {value}")
    index, cell = code[-1]
    cell.outputs.append(new_output("error", ename=name, evalue=value, traceback=[f"{name}: {value}"]))
    nb_man.cell_exception(cell, cell_index=index)


def check_parameters(source: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would only warn about: an unknown name, or a value of another type than declared.

    Raises ``UsageError`` naming the parameter. A parameter without annotation has the type of its default.
    """
    try:
        notebook = load_notebook_node(str(source))
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            "the notebook cannot be read", place=source, expected="a notebook, format 4", found=error
        ) from error
    if find_first_tagged_cell_index(notebook, "parameters") < 0:
        raise UsageError(
            "the notebook has no parameters cell",
            place=source.name,
            expected="one code cell tagged `parameters`",
            found="none",
            next_step="add the tag in the cell's properties",
        )
    known = papermill.inspect_notebook(_escape(source))
    for name, value in parameters.items():
        if name not in known:
            raise UsageError(
                "unknown parameter",
                place=f"{source.name}: {name}",
                expected=f"one of {', '.join(known)}",
                found=name,
                next_step="correct the name; papermill would have run with the default",
            )
        _check_type(source, name, value, known[name])


def _check_type(source: Path, name: str, value: object, declared: Mapping[str, str]) -> None:
    word = declared["inferred_type_name"].split("[")[0].strip()
    kind = _PLAIN.get(word)
    if kind is None:
        try:
            kind = type(ast.literal_eval(declared["default"]))
        except (ValueError, SyntaxError):
            kind = object
    same = type(value) is kind or (kind is float and type(value) is int) or kind is object
    if not same:
        raise UsageError(
            "a parameter has the wrong type",
            place=f"{source.name}: {name}",
            expected=kind.__name__,
            found=f"{type(value).__name__} {value!r}",
            next_step="pass a value of the declared type; values are not converted",
        )


def execute(request: Mapping[str, Any]) -> None:
    """Run the notebook that the request describes; raises what papermill raises when a cell failed."""
    scratch = Path(request["usage_file"]).parent
    papermill_io.register("local", AtomicHandler())
    papermill_engines.register(ENGINE, CrashVisibleEngine)
    papermill.execute_notebook(
        _escape(Path(request["source"])),
        _escape(Path(request["output"])),
        request["parameters"],
        engine_name=ENGINE,
        kernel_name="python3",
        progress_bar=False,
        log_output=True,
        cwd=request["cwd"],
        execution_timeout=request["cell_limit_s"],
        autosave_cell_every=AUTOSAVE_SECONDS,
        iopub_timeout=IOPUB_SECONDS,
        raise_on_iopub_timeout=True,
        coalesce_streams=True,
        extra_arguments=[f"--IPKernelApp.exec_lines={CRASH_LINE}"],
        # Sockets in the scratch folder: no port can be taken by another run, and no network has to be up. Without an
        # address of their own all kernels would be called kernel-ipc-1 in one working folder, and meet there.
        config=Config({"KernelManager": {"transport": "ipc", "ip": str(scratch / "kernel")}}),
    )


def _escape(path: Path) -> str:
    """Return the path with braces doubled: papermill fills ``{name}`` in paths from the parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _end_with_parent() -> None:
    """Turn the end of stdin, which comes only when the parent is gone, into an orderly end."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _terminate(number: int, frame: FrameType | None) -> None:
    del frame
    sys.exit(128 + number)


def _read_request() -> dict[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            raise UsageError("no request on stdin", expected="one line of JSON", found="the end of the input")
        line += part
    request: dict[str, Any] = json.loads(line)
    return request


def main() -> int:
    """Serve one request; return 0, ``CELL_RAISED``, ``USAGE``, or raise."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    request = _read_request()
    if "check" not in request:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        for source, parameters in request.get("check") or [(request["source"], request["parameters"])]:
            check_parameters(Path(source), parameters)
    except ParityError as error:
        fields = {k: getattr(error, k) for k in ("what", "place", "expected", "found", "next_step")}
        Path(request["usage_file"]).write_text(json.dumps(fields), encoding="utf-8")
        sys.stderr.write(f"{error}\n")
        return USAGE
    if "check" in request:
        return 0
    if request["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, request["cpus"])  # inherited by the kernel and its workers, which count their cores
    try:
        execute(request)
    except PapermillExecutionError as error:
        with contextlib.suppress(BrokenPipeError):
            traceback.print_exception(error, limit=0)
        return CELL_RAISED
    return 0


if __name__ == "__main__":
    sys.exit(main())
