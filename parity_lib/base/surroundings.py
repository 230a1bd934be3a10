"""The environment of every process: no variable that changes numbers, no foreign package, one cache folder."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from parity_lib.base.errors import SurroundingsError

ROOT = Path(__file__).resolve().parents[2]
CACHE = "PARITY_CACHE"

# A switch inherited from the user's shell would change kernels, threads, memory or packages behind the run info's back.
NOT_INHERITED = (
    *("GGML_", "LLAMA_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BLIS_", "VECLIB_"),
    *("RAYON_", "MATMUL_", "MIMALLOC_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTHON"),
)


def clean_environment() -> dict[str, str]:
    """Return this process's environment without any switch of ``NOT_INHERITED``, and with this library on the path."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(NOT_INHERITED)}
    return env | {"PYTHONPATH": str(ROOT)}


def restart_clean() -> None:
    """Start this program again, as the same process, where the shell set a switch of ``NOT_INHERITED``.

    A preloaded library or a package found through PYTHONPATH cannot be taken back in a running process. Call it
    before anything heavy is imported.
    """
    env = clean_environment()
    if any(key.startswith(NOT_INHERITED) and env.get(key) != value for key, value in os.environ.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)  # noqa: S606 - our own command line
    if sys.path and sys.path[0] in ("", os.getcwd()) and Path.cwd() != ROOT:  # noqa: PTH109 - compared as text
        del sys.path[0]  # `python -m` puts the current folder first, and a stray gguf.py in it


def settle() -> None:
    """Make paths that depend on the current folder or the home folder absolute, for this process and its children.

    A relative ``PARITY_CACHE`` counts from the current folder, once: notebooks run in a folder of their own. Where
    there is no home folder, the cache serves as one for the tools that write into it.

    Raises:
        SurroundingsError: ``PARITY_CACHE`` begins with ``~`` and there is no home folder.
    """
    named = os.environ.get(CACHE)
    if not named:
        return
    path = _expanded(named)
    os.environ[CACHE] = str(path if path.is_absolute() else Path.cwd() / path)
    if _home() is None:
        os.environ["HOME"] = os.environ[CACHE]


def cache_dir() -> Path:
    """Return the project's cache folder: ``$PARITY_CACHE``, or ``~/.cache/gguf-parity``. It may not exist yet.

    Raises:
        SurroundingsError: ``PARITY_CACHE`` is relative, or it is not set and there is no home folder.
    """
    named = os.environ.get(CACHE)
    if named:
        path = _expanded(named)
        if not path.is_absolute():
            raise SurroundingsError(
                "the cache folder is relative, and would be another one in each working folder",
                place=CACHE,
                expected="an absolute path",
                found=named,
                next_step=f"set {CACHE}={Path.cwd() / path}",
            )
        return path
    home = _home()
    if home is None:
        raise SurroundingsError(
            "there is no home folder, and so no cache folder",
            place="HOME",
            expected=f"an absolute HOME, a user with an entry in the password file, or {CACHE}",
            found=f"HOME={os.environ['HOME']!r}" if "HOME" in os.environ else f"no HOME, unknown user {os.getuid()}",
            next_step=f"set {CACHE} to a folder that you may write",
        )
    return home / ".cache" / "gguf-parity"


def kind_of(path: Path) -> str:
    """Return what a path is if it is not a regular file: "a folder", "a pipe", ..; "" for a file or a missing path.

    Opening a pipe without a writer blocks, so callers ask first.

    >>> kind_of(Path("/"))
    'a folder'
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFREG: ""}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _home() -> Path | None:
    if os.environ.get("HOME") == "":  # Python takes it for the root folder
        return None
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home if home.is_absolute() else None


def _expanded(named: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise SurroundingsError(
            "its home folder is unknown", place=CACHE, expected="an absolute path", found=named
        ) from error
