"""The door to llama.cpp opens only for the pinned build."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from msgspec.structs import replace

from parity_lib.base.errors import PinError
from parity_lib.base.record import save_record
from parity_lib.engines.llamacpp.abi import BINDING_VERSION, COMMIT, GgmlTensor, _check_defaults, features
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.receipt import FILE_NAME, read_receipt
from parity_lib.engines.llamacpp.settings import READ_BACK, _set
from parity_lib.engines.worker.client import Worker
from parity_lib.records.pins import load_pins

pytestmark = pytest.mark.engine


def installed() -> Path:
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "lib"


def test_the_code_is_written_for_the_pinned_commit() -> None:
    pin = load_pins().llama_cpp
    assert (pin.commit, pin.version) == (COMMIT, BINDING_VERSION)


def test_ggml_tensor_has_the_size_of_the_pinned_commit() -> None:
    assert ctypes.sizeof(GgmlTensor) == 336
    assert GgmlTensor.src.offset == 152
    assert GgmlTensor.name.offset == 256


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A copy of the installed libraries and their receipt, to be damaged."""
    return Path(shutil.copytree(installed(), tmp_path / "lib"))


def open_with(library: Path, model: Path, target: str) -> str:
    """Open an engine on the libraries in ``library``; return the refusal's text, or nothing."""
    env = worker_env("strict") | {"LLAMA_CPP_LIB_PATH": str(library)}
    try:
        with Worker("llama_cpp", {"path": str(model), "isa": target}, env=env):
            return ""
    except PinError as error:
        return str(error)


def _other_library(folder: Path) -> None:
    for path in folder.glob("libggml-cpu.so*"):
        path.write_bytes(path.read_bytes() + b"\0")


def _no_receipt(folder: Path) -> None:
    (folder / FILE_NAME).unlink()


def _damaged_receipt(folder: Path) -> None:
    (folder / FILE_NAME).write_text("{")


def _old_receipt(folder: Path) -> None:
    text = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(text.replace("receipt/1", "receipt/0"))


def _thin_receipt(folder: Path) -> None:
    (folder / FILE_NAME).write_text((folder / FILE_NAME).read_text().replace('"target"', '"foot"'))


def _other_commit(folder: Path) -> None:
    save_record(replace(read_receipt(folder / FILE_NAME), commit="f" * 40), folder / FILE_NAME)


def _other_target(folder: Path) -> None:
    save_record(replace(read_receipt(folder / FILE_NAME), target="amx"), folder / FILE_NAME)


def _other_machine(folder: Path) -> None:
    save_record(replace(read_receipt(folder / FILE_NAME), cpu_flags=("avx9000",)), folder / FILE_NAME)


def _no_library(folder: Path) -> None:
    (folder / "libllama.so").unlink()


def test_an_untouched_copy_of_the_build_is_accepted(library: Path, tiny_models: dict[str, Path], target: str) -> None:
    assert open_with(library, tiny_models["Q8_0"], target) == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_other_library, "libggml-cpu.so.0: a library of the reference is not the one that was built"),
        (_no_receipt, "has no receipt"),
        (_damaged_receipt, "is not valid JSON"),
        (_old_receipt, "of another schema"),
        (_thin_receipt, "unknown field `foot`"),
        (_other_commit, "another commit"),
        (_other_target, "another ISA target"),
        (_other_machine, "lacks instructions"),
        (_no_library, "cannot be loaded"),
    ],
)
def test_any_other_build_is_refused_by_name(
    library: Path, tiny_models: dict[str, Path], target: str, damage: Callable[[Path], None], words: str
) -> None:
    damage(library)
    refusal = open_with(library, tiny_models["Q8_0"], target)
    assert words in refusal
    assert "parity_lib.engines.llamacpp.build" in refusal


def test_the_loaded_binding_leaves_no_file_open() -> None:
    load = "from parity_lib.engines.llamacpp.abi import load; load()"
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", load]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


class _Shifted(ctypes.Structure):
    _fields_ = [("n_ctx", ctypes.c_uint32), ("n_batch", ctypes.c_uint32)]


def test_a_shifted_structure_is_refused() -> None:
    _check_defaults("params", _Shifted(512, 2048), {"n_ctx": 512, "n_batch": 2048})
    with pytest.raises(PinError, match=r"params\.n_batch"):
        _check_defaults("params", _Shifted(512, 0), {"n_ctx": 512, "n_batch": 2048})
    with pytest.raises(PinError, match="no such field"):
        _check_defaults("params", _Shifted(512, 2048), {"n_ubatch": 512})


def test_a_setting_that_the_binding_does_not_have_is_refused() -> None:
    assert _set(_Shifted(), {"n_ctx": 7}).n_ctx == 7
    with pytest.raises(PinError, match=r"_Shifted\.use_mmap"):
        _set(_Shifted(), {"use_mmap": True})


def test_compiled_features_are_read_from_the_system_info() -> None:
    assert features("CPU : AVX2 = 1 | AVX512 = 0 | F16C = 1") == {"AVX2": 1, "AVX512": 0, "F16C": 1}


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("flash_attn", "llama_context: flash_attn            = disabled", "disabled"),
        ("flash_attn", "llama_context: flash_attn = auto\nresolve_fused_ops: Flash Attention enabled", "enabled"),
        ("type_k", "llama_kv_cache: size = 1 MiB, K (f32):   16.88 MiB, V (f16):   16.88 MiB", "f32"),
        ("type_v", "llama_kv_cache: size = 1 MiB, K (f32):   16.88 MiB, V (f16):   16.88 MiB", "f16"),
    ],
)
def test_what_the_context_took_is_read_from_its_own_words(name: str, said: str, value: str) -> None:
    assert READ_BACK[name].findall(said)[-1] == value
