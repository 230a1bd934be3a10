"""Weights must have the bits of gguf-py's ``dequantize``: the Rust golden values first, then the built module."""

from __future__ import annotations

from pathlib import Path

import burn_gguf
import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as GgmlType

pytestmark = pytest.mark.engine

Bytes = npt.NDArray[np.uint8]

TYPES = [
    *(GgmlType.F32, GgmlType.F16, GgmlType.BF16),
    *(GgmlType.Q8_0, GgmlType.Q4_0, GgmlType.Q4_1, GgmlType.Q5_0, GgmlType.Q5_1),
    *(GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K),
]
WITH_MINIMUM = {GgmlType.Q4_1, GgmlType.Q5_1, GgmlType.Q4_K, GgmlType.Q5_K}
N_VALUES = 65_536  # of each type
ROW = 1_024  # values
GOLDEN = Path(__file__).parents[2] / "parity_lib" / "burn_gguf" / "tests" / "golden" / "dequantize.txt"
GOLDEN_HEAD = (
    "# Type, values, digest of gguf.dequantize. tests/burn_gguf/test_dequantize.py says of what, and checks it.\n"
)
# Infinity, its negative, quiet and signalling NaN, the smallest and largest subnormal, minus zero, the largest f16.
SCALES = np.array([0x7C00, 0xFC00, 0xFE01, 0x7D01, 0x0001, 0x83FF, 0x8000, 0x7BFF], np.uint16)


def blocks(ty: GgmlType) -> Bytes:
    """Pseudo-random blocks, (rows, bytes of a row); the first 64 have every pair of ``SCALES`` as scale and minimum."""
    block_size, type_size = gguf.GGML_QUANT_SIZES[ty]
    n_bytes = N_VALUES // block_size * type_size
    with np.errstate(over="ignore"):
        z = np.uint64(ty.value << 32) + np.arange(1, -(-n_bytes // 8) + 1, dtype=np.uint64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    made = z.astype("<u8").view(np.uint8)[:n_bytes].reshape(-1, type_size)
    if block_size > 1:
        scale_at = 208 if ty is GgmlType.Q6_K else 0
        made[:64, scale_at : scale_at + 2] = np.tile(SCALES, 8).view(np.uint8).reshape(64, 2)
        if ty in WITH_MINIMUM:
            made[:64, 2:4] = np.repeat(SCALES, 8).view(np.uint8).reshape(64, 2)
    return made.reshape(N_VALUES // ROW, -1)


def reference(ty: GgmlType) -> npt.NDArray[np.uint32]:
    """Bits of the values of ``blocks``, in order."""
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = gguf.dequantize(blocks(ty), ty)
    return values.ravel().view(np.uint32)


def digest(bits: npt.NDArray[np.uint32]) -> int:
    """Sum of ``bits[i] * (2 i + 1)`` modulo 2^64; every NaN counts as 0x7fc00000, its sign differs between machines."""
    bits = np.where((bits & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x7FC00000), bits)
    odd = 2 * np.arange(bits.size, dtype=np.uint64) + np.uint64(1)
    return int((bits.astype(np.uint64) * odd).sum())


def golden_text() -> str:
    return GOLDEN_HEAD + "".join(f"{ty.name} {N_VALUES} {digest(reference(ty)):016x}\n" for ty in TYPES)


@pytest.fixture(scope="module")
def file_of_all_types(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dequantize") / "blocks.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for ty in TYPES:
        writer.add_tensor(ty.name, blocks(ty), raw_dtype=ty)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_golden_digests_of_the_rust_tests_are_those_of_gguf() -> None:
    assert GOLDEN.read_text() == golden_text()


@pytest.mark.parametrize("ty", TYPES[3:], ids=lambda ty: ty.name)
def test_the_blocks_reach_nan_infinity_and_values_that_only_a_subnormal_scale_gives(ty: GgmlType) -> None:
    values = reference(ty).view(np.float32)
    assert np.isnan(values).any()
    assert np.isinf(values).any()
    assert ((values != 0) & (np.abs(values) < np.finfo(np.float16).tiny)).any()


@pytest.mark.parametrize("scalar", [False, True], ids=["fast", "scalar"])
@pytest.mark.parametrize("ty", TYPES, ids=lambda ty: ty.name)
def test_every_bit_is_that_of_gguf(file_of_all_types: Path, ty: GgmlType, scalar: bool) -> None:
    values = burn_gguf.GgufFile(str(file_of_all_types)).dequantize(ty.name, scalar=scalar)
    np.testing.assert_array_equal(np.frombuffer(values, np.uint32), reference(ty))
