"""The Rust emulators of the activation quantisers are held to digests; here the reference's own library gives them."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.engine

F32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

N_VALUES = 65_536  # of each family
GOLDEN = Path(__file__).parents[2] / "parity_lib" / "burn_gguf" / "tests" / "golden" / "activation.txt"
GOLDEN_HEAD = (
    "# Family, kind, digest of the reference's blocks. tests/burn_gguf/test_activation.py says of what; checks it.\n"
)
FAMILIES = ("any", "blocks", "ties", "sparse", "infinite", "near")
BLOCKS = {"q8_0": (32, 34), "q8_1": (32, 36), "q8_K": (256, 292)}  # values and bytes of a block


def random_numbers(seed: int) -> npt.NDArray[np.uint64]:
    """splitmix64 of a counter, (N_VALUES,)."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed << 32) + np.arange(1, N_VALUES + 1, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def values(family: str) -> F32:
    """Activations, (N_VALUES,): made of bits, so that Rust makes the same ones.

    ``any``: every finite f32. ``blocks``: 32 values within 2^8 of each other, magnitudes from subnormal to 1e38.
    ``ties``: halves up to 127, so that every second one is a tie. ``sparse``: ``blocks`` with 15 of 16 values zero,
    and the first 512 too. ``infinite``: ``blocks`` with one of 256 infinite. ``near``: ``ties`` times a factor from 1
    to 2, one for each 256 values: ties but for a rounding, where 127 / max and 1 / scale give other codes.
    """
    r = random_numbers(FAMILIES.index(family))
    low = r.astype(np.uint32)  # the lower half
    if family == "any":
        return np.where(low & 0x7F800000 == 0x7F800000, low & 0x807FFFFF, low).astype(np.uint32).view(np.float32)
    if family in ("ties", "near"):
        doubled = (r >> 8) % 509
        doubled[::32] = 508 * (r[::32] & 1)
        halves = doubled.astype(np.float32) * np.float32(0.5) - np.float32(127)
        factor = np.repeat((r[::256] >> 41 | 0x3F800000).astype(np.uint32), 256).view(np.float32)
        return halves if family == "ties" else halves * factor
    top = np.repeat((r[::32] >> 40) % 255, 32).astype(np.int64)
    exponent = np.maximum(top - (r >> 32 & 7).astype(np.int64), 0).astype(np.uint32)
    bits = low & np.uint32(0x807FFFFF) | exponent << np.uint32(23)
    if family == "sparse":
        bits = np.where((r >> 60 == 0) & (np.arange(N_VALUES) >= 512), bits, low & 0x80000000)
    if family == "infinite":
        bits = np.where(r >> 56 == 7, low & 0x80000000 | 0x7F800000, bits)
    return bits.astype(np.uint32).view(np.float32)


def digest(raw: Bytes) -> int:
    """Sum of ``raw[i] * (2 i + 1)`` modulo 2^64."""
    odd = 2 * np.arange(raw.size, dtype=np.uint64) + np.uint64(1)
    return int((raw.ravel().astype(np.uint64) * odd).sum())


@pytest.fixture(scope="module")
def reference() -> Callable[[str, F32], Bytes]:
    """What the reference's CPU library makes of a row: its blocks, or the f16 or bf16 values."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "lib"
    ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    library.ggml_cpu_init()

    def convert(kind: str, row: F32) -> Bytes:
        n_values, n_bytes = BLOCKS.get(kind, (1, 2))
        out = np.zeros(row.size // n_values * n_bytes, np.uint8)  # bsums of a block of zeros are left as they are
        name = f"quantize_row_{kind}" if kind in BLOCKS else f"ggml_cpu_fp32_to_{kind}"
        getattr(library, name)(
            ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(row.size)
        )
        return out

    return convert


def test_golden_digests_of_the_rust_tests_are_those_of_the_reference(reference: Callable[[str, F32], Bytes]) -> None:
    lines = [
        f"{family} {kind} {digest(reference(kind, values(family))):016x}\n"
        for family in FAMILIES
        for kind in (*BLOCKS, "fp16", "bf16")
    ]
    assert GOLDEN.read_text() == GOLDEN_HEAD + "".join(lines)


def test_families_are_what_they_are_called() -> None:
    assert np.isfinite(values("any")).all()
    magnitudes = np.abs(values("blocks"))
    assert magnitudes[magnitudes > 0].min() < np.finfo(np.float32).tiny
    assert magnitudes.max() > 1e38
    ties = values("ties")
    assert ((ties * 2 % 2) == 1).mean() > 0.4
    assert set(np.abs(ties[::32])) == {127.0}
    assert np.unique(np.abs(values("near")[::32])).size > 200
    assert (values("sparse") == 0).mean() > 0.9
    assert np.isinf(values("infinite")).sum() > 100
    assert not np.isnan(values("infinite")).any()
