"""The reference's build for an ISA target: the installed one, or another one that the cache keeps."""

from __future__ import annotations

import importlib.util
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from parity_lib.base.errors import EngineError, ParityError, PinError
from parity_lib.base.files import replacing
from parity_lib.base.names import Isa
from parity_lib.base.surroundings import cache_dir
from parity_lib.engines import machine
from parity_lib.engines.llamacpp.build import LIBRARIES, kept_wheel
from parity_lib.engines.llamacpp.probe import accept, check_accepted, probe, refuse
from parity_lib.engines.llamacpp.receipt import FILE_NAME, hash_libraries, read_receipt
from parity_lib.engines.llamacpp.recipe import compiler_version, recipe_for
from parity_lib.engines.llamacpp.settings import LIB_PATH
from parity_lib.records.builds import Receipt
from parity_lib.records.pins import LlamaCppPin


def target_env(pin: LlamaCppPin, isa: str, cache: Path | None = None) -> dict[str, str]:
    """Return a worker's environment that loads llama.cpp as built for a target; empty for the installed build.

    Raises:
        PinError: this CPU lacks the ISA target's instructions, or there is no build of it.
    """
    folder = target_folder(pin, isa, cache)
    return {} if folder == installed_folder() else {LIB_PATH: str(folder)}


def target_receipt(pin: LlamaCppPin, isa: str, cache: Path | None = None) -> Receipt:
    """Return the receipt of the build that an ISA target runs on. Raises as ``target_env``."""
    return read_receipt(target_folder(pin, isa, cache) / FILE_NAME)


def target_folder(pin: LlamaCppPin, isa: str, cache: Path | None = None) -> Path:
    """Return the folder of an ISA target's libraries and its receipt.

    Args:
        pin: of the reference, with all ISA targets.
        isa: the ISA target.
        cache: folder that keeps the wheels; the project's cache by default.

    Raises:
        PinError: this CPU lacks the ISA target's instructions, there is no build of it, or it was refused.
    """
    missing = machine.missing_flags(pin.target(isa).cpu_flags)
    if missing:
        raise PinError(
            "this machine lacks the instructions of the ISA target",
            place=f"isa {isa}",
            expected=", ".join(pin.target(isa).cpu_flags),
            found=f"without {', '.join(missing)}",
            next_step="run these cells on a machine of that ISA target; `parity doctor` lists those of this one",
        )
    installed = installed_folder()
    if (installed / FILE_NAME).is_file() and read_receipt(installed / FILE_NAME).target == isa:
        return installed
    recipe = recipe_for(pin, Isa(isa), compiler_version())
    wheel = kept_wheel(recipe, (cache or cache_dir()) / "wheels" / recipe.key)
    if wheel is None:
        raise PinError(
            "there is no build of llama.cpp for the ISA target",
            place=f"isa {isa}",
            expected=f"{recipe.key} in the cache",
            found="no wheel, or one that does not match its receipt",
            next_step=f"parity isa build {isa} (about 5 minutes on 2 cores, once)",
        )
    check_accepted(wheel)
    try:
        return unpack(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise PinError("the ISA target's wheel cannot be unpacked", place=wheel.name, found=error) from error


def installed_folder() -> Path:
    """Return the folder of the installed reference's libraries; it need not exist."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list((spec.submodule_search_locations if spec else None) or ["llama_cpp"])
    return Path(folders[0]) / "lib"


@dataclass(frozen=True, slots=True)
class OtherBuild:
    """A build of another ISA target, ready to be loaded by a worker through ``LLAMA_CPP_LIB_PATH``."""

    isa: Isa
    folder: Path  # of its libraries and its receipt


def find_other_build(pin: LlamaCppPin, isa: str, cache: Path | None = None) -> OtherBuild | str:
    """Return a build of another ISA target than ``isa`` from the cache, or why there is none; never compile one.

    Args:
        pin: of the reference, with all ISA targets.
        isa: the ISA target that the cell runs on.
        cache: folder that keeps the wheels; the project's cache by default.
    """
    wheels = (cache or cache_dir()) / "wheels"
    reasons = []
    for name in sorted(pin.targets):
        if name == isa:
            continue
        missing = machine.missing_flags(pin.target(name).cpu_flags)
        if missing:
            reasons.append(f"{name}: this CPU has no {', '.join(missing[:3])}")
            continue
        try:
            recipe = recipe_for(pin, Isa(name), compiler_version())
            wheel = kept_wheel(recipe, wheels / recipe.key)
            if wheel is not None:
                check_accepted(wheel)
                return OtherBuild(Isa(name), unpack(wheel))
        except (ParityError, OSError, zipfile.BadZipFile) as error:
            reasons.append(f"{name}: {error}")
            continue
        reasons.append(
            f"{name}: no wheel in the cache (python -m parity_lib.engines.llamacpp.build --target {name} --site DIR)"
        )
    return "; ".join(reasons) or "no other ISA target is pinned"


def try_wheel(wheel: Path) -> int:
    """Try the build in a kept wheel and note beside it whether it may be used; return the number of products.

    Raises:
        PinError: this CPU lacks instructions that it uses, so that nothing was tried.
        EngineError: it died, or gave a wrong product; from now on it is refused.
    """
    folder = unpack(wheel)
    try:
        n_products = probe(read_receipt(folder / FILE_NAME), folder)
    except EngineError as error:
        refuse(wheel, error)
        raise
    accept(wheel)
    return n_products


def unpack(wheel: Path) -> Path:
    """Return a folder with the libraries of a kept wheel and its receipt, made once and checked by the receipt."""
    receipt = wheel.parent / FILE_NAME
    folder = wheel.parent / "lib"
    if hash_libraries(folder) == dict(read_receipt(receipt).libraries) and (folder / FILE_NAME).is_file():
        return folder
    with replacing(folder, kind=PinError, what="the ISA target's wheel cannot be unpacked", sync=False) as part:
        part.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if str(Path(name).parent) == LIBRARIES and not name.endswith("/"):
                    (part / Path(name).name).write_bytes(archive.read(name))
        shutil.copyfile(receipt, part / FILE_NAME)
    return folder
