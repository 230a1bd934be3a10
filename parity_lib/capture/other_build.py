"""Another leg's build of llama.cpp, if set-up has left one in the cache that this CPU can run."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from parity_lib.engines import machine
from parity_lib.engines.receipt import FILE_NAME, hash_libraries, read_receipt
from parity_lib.errors import ParityError
from parity_lib.model_file import cache_dir
from parity_lib.names import Isa
from parity_lib.pins import LlamaCppPin
from parity_lib.reference_build import LIBRARIES, kept_wheel
from parity_lib.reference_recipe import compiler_version, recipe_for


@dataclass(frozen=True, slots=True)
class OtherBuild:
    """A build of another leg, ready to be loaded by a worker through ``LLAMA_CPP_LIB_PATH``."""

    isa: Isa
    folder: Path  # of its libraries and its receipt


def find_other_build(pin: LlamaCppPin, isa: str, cache: Path | None = None) -> OtherBuild | str:
    """Return a build of another leg than ``isa``, or why there is none. Nothing is compiled for it.

    Args:
        pin: of the reference, with all legs.
        isa: the leg that the cell runs on.
        cache: folder that keeps the wheels; the project's cache by default.
    """
    wheels = (cache or cache_dir()) / "wheels"
    reasons = []
    for name in sorted(pin.legs):
        if name == isa:
            continue
        missing = machine.missing_flags(pin.leg(name).cpu_flags)
        if missing:
            reasons.append(f"{name}: this CPU has no {', '.join(missing[:3])}")
            continue
        try:
            recipe = recipe_for(pin, Isa(name), compiler_version())
            wheel = kept_wheel(recipe, wheels / recipe.key)
            if wheel is not None:
                return OtherBuild(Isa(name), unpack(wheel))
        except (ParityError, OSError, zipfile.BadZipFile) as error:
            reasons.append(f"{name}: {error}")
            continue
        reasons.append(f"{name}: no wheel in the cache (python -m parity_lib.reference_build --leg {name} --site DIR)")
    return "; ".join(reasons) or "no other leg is pinned"


def unpack(wheel: Path) -> Path:
    """Return a folder with the libraries of a kept wheel and its receipt, made once and checked by the receipt."""
    receipt = wheel.parent / FILE_NAME
    folder = wheel.parent / "lib"
    if hash_libraries(folder) == dict(read_receipt(receipt).libraries) and (folder / FILE_NAME).is_file():
        return folder
    part = Path(tempfile.mkdtemp(dir=wheel.parent, prefix=".lib-"))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if str(Path(name).parent) == LIBRARIES and not name.endswith("/"):
                    (part / Path(name).name).write_bytes(archive.read(name))
        shutil.copyfile(receipt, part / FILE_NAME)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)  # noqa: PTH105 - a folder onto none
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder
