"""Get a pinned model file: fetch, make or find it, and check its hash; list all pinned files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from parity_lib.base.errors import ModelFileError, PinError
from parity_lib.model_file.facts import read_facts
from parity_lib.models.cache import Say, check_digest, lock, models_dir, need_space, part_of, quiet
from parity_lib.models.recipes import Job, make, receipt_equalities
from parity_lib.models.twins import ensure_twin, twin_path
from parity_lib.records.model_receipts import Equality
from parity_lib.records.pins import BY_LLAMA_CPP, ON_REQUEST, TRANSPLANTS, ModelPin, Pins

__all__ = [
    "ModelStatus",
    "ensure",
    "ensure_twin",
    "equalities",
    "list_models",
    "models_dir",
    "prepare_all",
    "stage",
]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Path and state of one pinned file on this machine."""

    pin: ModelPin
    path: Path
    state: str  # "ready", "absent", "not staged" or "differs"
    note: str = ""
    twin: Path | None = None  # the F32 twin, where it was made already
    types: Mapping[str, int] = field(default_factory=dict)  # tensor type -> number of tensors; empty where absent
    equalities: tuple[Equality, ...] = ()  # how far the model was from what it was derived from, step by step


def ensure(model_id: str, quant: str, pins: Pins, *, remake: bool = False, say: Say = quiet) -> Path:
    """Return the path of a pinned model file, after fetching or making it if it is not there yet.

    The file appears whole or not at all, and its hash is compared each time (in no time while the file does not
    change). Two processes at once do the work once. A file that is there and is not the pinned one is never
    replaced in silence: ``remake=True`` does that.

    Raises:
        UsageError: the id or the quant is not pinned.
        PinError: the file is there and is another one.
        ModelFileError: it cannot be fetched or made, or is one that is fetched or staged on request only.
    """
    pin = pins.model(model_id, quant)
    path = models_dir() / pin.file_name
    if remake or not path.exists():  # a file that is there is whole: it needs no lock, and no writable cache
        with lock(path):
            if remake and pin.recipe.kind not in ON_REQUEST:
                path.unlink(missing_ok=True)
            if not path.exists():
                make(Job(pin, path, pins, say, lambda other, its: ensure(other, its, pins, say=say)))
    check_digest(path, pin.file, f"{pin.id} {pin.quant}", pin.recipe.kind)
    return path


def prepare_all(
    models: Iterable[tuple[str, str]], pins: Pins, *, twins: bool = True, say: Say = quiet
) -> dict[tuple[str, str], Path]:
    """Make or find every (id, quant) and its twin; return the paths. Idempotent. Raises as ``ensure``."""
    wanted = tuple(dict.fromkeys(models))
    missing = [pin for key in wanted if not (models_dir() / (pin := pins.model(*key)).file_name).exists()]
    need_space(models_dir(), bytes_to_make(missing, pins, twins=twins))
    paths: dict[tuple[str, str], Path] = {}
    for model_id, quant in wanted:
        paths[model_id, quant] = ensure(model_id, quant, pins, say=say)
        if twins:
            ensure_twin(paths[model_id, quant], pins, say=say)
    return paths


def bytes_to_make(missing: Sequence[ModelPin], pins: Pins, *, twins: bool) -> int:
    """Return the bytes that making these files needs on the disk, with their twins and what exists only meanwhile.

    A transplanted F32 source is made for one file at a time and removed, so the largest chain of them counts, once.
    """
    stay = sum(pin.file.bytes + (pin.twin.bytes if twins and pin.twin else 0) for pin in missing)
    return stay + max((_meanwhile(pin, pins) for pin in missing), default=0)


def _meanwhile(pin: ModelPin, pins: Pins) -> int:
    if pin.recipe.kind not in BY_LLAMA_CPP:
        return 0
    source = pins.model(pin.recipe.source_id, pin.recipe.source_quant)
    if source.recipe.kind not in TRANSPLANTS or (models_dir() / source.file_name).exists():
        return 0
    return source.file.bytes + _meanwhile(source, pins)


def equalities(pins: Pins, *, fresh: bool = False, say: Say = quiet) -> list[tuple[ModelPin, Equality]]:
    """Return how far each derived model is from its source, one record for each step that led to a file.

    Args:
        pins: the pins.
        fresh: make each transplanted F32 file again, in a folder that is removed, and measure it now; it must come out
            as pinned. Otherwise what the receipts of the files on this machine say.
        say: called with a line before something slow.

    Raises:
        PinError, ModelFileError: as ``ensure``, with ``fresh`` only.
    """
    if not fresh:
        here = [(pin, models_dir() / pin.file_name) for pin in pins.models]
        return [(pin, one) for pin, path in here if path.exists() for one in receipt_equalities(path)]
    found = []
    models_dir().mkdir(parents=True, exist_ok=True)
    for pin in (pin for pin in pins.models if pin.recipe.kind in TRANSPLANTS):
        with tempfile.TemporaryDirectory(".part", ".equalities.", models_dir()) as folder:
            path = Path(folder) / pin.file_name
            make(Job(pin, path, pins, say, lambda other, its: ensure(other, its, pins, say=say)))
            check_digest(path, pin.file, f"{pin.id} {pin.quant}", pin.recipe.kind)
            found.append((pin, receipt_equalities(path)[-1]))  # those before it belong to the files before it
    return found


def list_models(pins: Pins, *, verify: bool = False) -> list[ModelStatus]:
    """Return the state of each pinned file. ``verify`` hashes every byte again instead of using remembered hashes."""
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
        known = ModelStatus(pin, path, "ready", types=read_facts(path).types, equalities=receipt_equalities(path))
        twin = twin_path(path, digest, pins)
        if not twin.exists():
            return known
        check_digest(twin, pin.twin, twin.name, "quantize", fresh=verify)
        return replace(known, twin=twin)
    except (PinError, ModelFileError) as error:
        return ModelStatus(pin, path, "differs", str(error))
