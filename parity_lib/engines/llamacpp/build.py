"""Build and install the pinned llama.cpp: ``python -m parity_lib.engines.llamacpp.build``. Seconds if built."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from parity_lib.base.errors import EngineError, PinError
from parity_lib.base.exit_status import OK, ended, guard_streams
from parity_lib.base.files import LOCK, hold, put
from parity_lib.base.record import save_record
from parity_lib.base.surroundings import cache_dir, restart_clean
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.probe import probe
from parity_lib.engines.llamacpp.receipt import (
    FILE_NAME,
    hash_libraries,
    read_receipt,
    sha256_of,
)
from parity_lib.engines.llamacpp.recipe import (
    PACKAGE,
    Recipe,
    build_environment,
    compiler_version,
    host_target,
    recipe_for,
)
from parity_lib.records.builds import Receipt
from parity_lib.records.pins import load_pins

LIBRARIES = "llama_cpp/lib"  # inside the wheel and inside the site folder
TOOLS = ("cmake", "ninja", "scikit-build-core")
STEP = re.compile(r"\[(\d+)/(\d+)\]")  # ninja's count of compiled files
SECONDS_BETWEEN_LINES = 10.0
TAIL_LINES = 25

Say = Callable[[str], None]


def ensure(recipe: Recipe, cache: Path, site: Path, say: Say, *, pip_site: Path | None = None) -> str:
    """Have the recipe's build in ``site``; do only what is missing; return "present", "installed" or "built".

    Args:
        recipe: what to build.
        cache: folder that keeps sdist, wheels and receipts.
        site: the folder that Python imports from.
        say: told what happens, a line each.
        pip_site: given to pip as its target; None is the running environment.

    Raises:
        PinError: the sdist is not the pinned one.
        EngineError: a tool is missing, or the build failed.
    """
    if is_installed(recipe, site):
        say(f"llama.cpp {recipe.commit[:8]} ({recipe.target}) is installed and matches its receipt")
        return "present"
    folder = cache / "wheels" / recipe.key
    with _alone(folder, say):
        wheel = kept_wheel(recipe, folder)
        done = "built" if wheel is None else "installed"
        wheel = wheel or build(recipe, cache, folder, say)
        say(f"installing {wheel.name} ({recipe.target})")
        install(wheel, site, pip_site)
    return done


def ensure_wheel(recipe: Recipe, cache: Path, say: Say) -> Path:
    """Return the recipe's wheel, built if the cache has none, without installing it. Raises as ``ensure``."""
    folder = cache / "wheels" / recipe.key
    with _alone(folder, say):
        return kept_wheel(recipe, folder) or build(recipe, cache, folder, say)


def _alone(folder: Path, say: Say) -> IO[bytes]:
    return hold(folder / LOCK, lambda _: say("waiting for another set-up that is building the same"))


def is_installed(recipe: Recipe, site: Path) -> bool:
    """Return whether this recipe's build is installed in ``site``, with the library hashes of its receipt."""
    folder = site / LIBRARIES
    try:
        receipt = read_receipt(folder / FILE_NAME)
    except PinError:
        return False
    return recipe.matches(receipt) and hash_libraries(folder) == receipt.libraries


def kept_wheel(recipe: Recipe, folder: Path) -> Path | None:
    """Return the wheel in ``folder``, or None if there is none or it does not match its receipt."""
    wheels = sorted(folder.glob("*.whl"))
    try:
        receipt = read_receipt(folder / FILE_NAME)
    except PinError:
        return None
    good = len(wheels) == 1 and recipe.matches(receipt) and sha256_of(wheels[0]) == receipt.wheel_sha256
    return wheels[0] if good else None


def build(recipe: Recipe, cache: Path, folder: Path, say: Say) -> Path:
    """Compile the wheel, write its receipt beside it, and return its path."""
    sdist = fetch_sdist(recipe, cache / "sdists", say)
    say(
        f"building llama.cpp {recipe.commit[:8]} for {recipe.target} with {recipe.compiler}: about 5 minutes on 2 cores"
    )
    log = folder / "build.log"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        words = ["wheel", "-v", "--no-deps", "--no-cache-dir", "--no-build-isolation", "--no-index", "-w", part]
        run_pip([*words, str(sdist)], log, say, build_environment(recipe))
        made = next(Path(part).glob("*.whl"))
        receipt = make_receipt(recipe, made)
        (folder / FILE_NAME).unlink(missing_ok=True)
        wheel = put(made, folder / made.name)
    save_record(receipt, folder / FILE_NAME)
    return wheel


def make_receipt(recipe: Recipe, wheel: Path) -> Receipt:
    """Return the receipt of a wheel that was built by ``recipe``: hashes of it and of each library inside."""
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(n) for n in archive.namelist() if str(Path(n).parent) == LIBRARIES]
        hashes = {
            path.name: hashlib.sha256(archive.read(str(path))).hexdigest()
            for path in sorted(names)
            if path.match("lib*.so*")
        }
    if not hashes:
        raise EngineError(
            "the built wheel holds no library",
            place=wheel.name,
            expected=f"{LIBRARIES}/lib*.so",
            found=f"{len(names)} files there",
            next_step="read build.log beside it",
        )
    fields = {name: getattr(recipe, name) for name in recipe.__slots__}
    tools = {name: importlib.metadata.version(name) for name in TOOLS}
    return Receipt(binding=PACKAGE, wheel_sha256=sha256_of(wheel), tools=tools, libraries=hashes, **fields)


def install(wheel: Path, site: Path, pip_site: Path | None) -> None:
    """Install ``wheel`` without dependencies and put its receipt beside the installed libraries."""
    receipt = read_receipt(wheel.parent / FILE_NAME)
    words = ["install", "--no-deps", "--no-index", "--force-reinstall"]
    words += [] if pip_site is None else ["--upgrade", "--target", str(pip_site)]
    run_pip([*words, str(wheel)], wheel.parent / "install.log", lambda _: None, dict(os.environ))
    found = hash_libraries(site / LIBRARIES)
    if found != receipt.libraries:
        raise PinError(
            "pip installed other libraries than the wheel holds",
            place=site / LIBRARIES,
            expected=dict(receipt.libraries),
            found=found,
            next_step="remove the folder llama_cpp from the environment and run this again",
        )
    save_record(receipt, site / LIBRARIES / FILE_NAME)


def fetch_sdist(recipe: Recipe, folder: Path, say: Say) -> Path:
    """Return the pinned sdist, fetched by pip unless it is there already; pip checks its hash."""
    path = folder / f"{PACKAGE.replace('-', '_')}-{recipe.version}.tar.gz"
    if path.is_file() and sha256_of(path) == recipe.sdist_sha256:
        return path
    say(f"fetching the source of {PACKAGE} {recipe.version} (77 MB)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        pinned = Path(part) / "requirements.txt"
        pinned.write_text(f"{PACKAGE}=={recipe.version} --hash=sha256:{recipe.sdist_sha256}\n")
        words = ["download", "--no-deps", "--no-binary", PACKAGE, "--no-build-isolation", "--require-hashes"]
        run_pip([*words, "-d", part, "-r", str(pinned)], folder / "fetch.log", say, build_environment(recipe))
        return put(Path(part) / path.name, path)


def run_pip(words: list[str], log: Path, say: Say, env: Mapping[str, str]) -> None:
    """Run pip with ``words``, write its output to ``log``, and report the progress of a build.

    Raises:
        EngineError: pip ended with an error; its last lines and the log's name are in the message.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *words]
    with log.open("w") as file, _running(command, env) as process:
        assert process.stdout is not None
        for step in build_steps(_copied(process.stdout, file)):
            say(step)
        status = process.wait()
    if status != 0:
        tail = "\n".join(log.read_text().splitlines()[-TAIL_LINES:])
        raise EngineError(
            f"pip {words[0]} failed",
            place=log,
            expected="status 0",
            found=f"status {status}\n{tail}",
            next_step="read it",
        )


def build_steps(lines: Iterable[str], clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """Yield ``compiled 57 of 139`` out of ninja's lines, one every ten seconds and the last one."""
    due = clock()
    for line in lines:
        step = STEP.search(line)
        if step and (clock() >= due or step[1] == step[2]):
            due = clock() + SECONDS_BETWEEN_LINES
            yield f"compiled {step[1]} of {step[2]}"


def _copied(lines: Iterable[str], file: IO[str]) -> Iterator[str]:
    for line in lines:
        file.write(line)
        yield line


@contextmanager
def _running(command: list[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # pip, CMake, ninja and the compilers
            raise


def main(arguments: list[str] | None = None) -> int:
    """Build and install what is missing; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parity_lib.engines.llamacpp.build", description=__doc__)
    parser.add_argument(
        "--target", default="host", help="host (default), or one of the ISA targets in fixtures/gguf_parity.toml"
    )
    parser.add_argument("--cache", type=Path, default=None, help="folder for sdist and wheels ($PARITY_CACHE)")
    parser.add_argument("--site", type=Path, default=None, help="install here instead of this Python's environment")
    options = parser.parse_args(arguments)
    return ended(lambda: _ensure(options), program="reference")


def _ensure(options: argparse.Namespace) -> int:
    pin = load_pins().llama_cpp
    target = host_target(pin) if options.target == "host" else pin.target(options.target).isa
    recipe = recipe_for(pin, target, compiler_version())
    site = options.site or Path(sysconfig.get_path("purelib"))
    ensure(recipe, options.cache or cache_dir(), site, _say, pip_site=options.site)
    missing, folder = machine.missing_flags(recipe.cpu_flags), (site / LIBRARIES).absolute()
    if missing:
        _say(f"not tried: this CPU lacks {', '.join(missing)}")
    else:  # each time: a build that was refused is there, and stays refused
        _say(f"tried: {probe(read_receipt(folder / FILE_NAME), folder)} products, each right")
    return OK


def _say(line: str) -> None:
    sys.stdout.write(f"reference: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    guard_streams()
    restart_clean()
    sys.exit(main())
