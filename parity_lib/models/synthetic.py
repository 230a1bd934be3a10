"""Write small (or full-size) GGUF models out of integers: no download, the same bytes on every machine."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from parity_lib.base.errors import ModelFileError
from parity_lib.base.files import FREE_CACHE, replacing
from parity_lib.model_file.facts import TYPES

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

CALM = 0.25
"""Factor on the output projections. Without it a model amplifies every rounding until tests measure chaos."""

FILE_TYPES: Mapping[str, int] = {
    name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(kind)
    for name, kind in gguf.LlamaFileType.__members__.items()
    if name.removeprefix("MOSTLY_").removeprefix("ALL_")
    in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_M", "Q5_K_M", "Q6_K")
} | {"MIXED": int(gguf.LlamaFileType.GUESSED)}

_FACTOR_RMS = 1.0408  # root mean square of a number uniform in 0.5 to 1.5
_CHUNK_BYTES = 1 << 20  # what is in memory at a time, whatever the size of the model


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a synthetic model, all whole numbers. The defaults are the tiny ones of the tests.

    ``key_length`` is also the value length and, unless ``rope_dim`` says otherwise, the rotary dimension.
    ``rope_freqs`` 1 adds the divisors of RoPE's angles as Llama 3.1 and later have them, ``tied`` 1 leaves out
    ``output.weight``. ``biases`` 1 gives a llama file a bias for each product of a block (qwen2 has those of queries,
    keys and values anyway); ``linear`` or ``yarn`` is the factor by which RoPE is stretched, 0 not at all.
    ``alignment`` is where tensors begin, a multiple of so many bytes; the file states it where it is not the format's
    own. What llama.cpp refuses can be built, for the oracle alone: a rotary dimension other than the key length, and in
    qwen2 a key length other than n_embd / n_head.
    """

    n_layer: int = 4
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 512
    n_vocab: int = 2048
    key_length: int = 64
    rope_dim: int = 0  # 0: the key length
    rope_base: int = 500_000
    rope_freqs: int = 0
    n_ctx_train: int = 4096
    tied: int = 0
    biases: int = 0
    linear: int = 0
    yarn: int = 0
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT


def build(arch: str, quant: str, path: Path, shape: Shape | None = None, *, seed: int = 1) -> Path:
    """Write a model of random weights to ``path`` and return it; memory stays below a few MB at any size.

    Blocks are written directly: random codes under scales that give each matrix the spread of a trained one
    (standard deviation 1/sqrt(row length), output projections ``CALM`` times that), so every code and every
    packing of scales occurs. Norm weights lie in 0.75 to 1.25 and biases (qwen2) in -0.5 to 0.5, so that a forgotten
    one is seen. There is no vocabulary (``tokenizer.ggml.model = "none"``): prompts are token ids.

    Args:
        arch: ``llama`` or ``qwen2``.
        quant: one of ``FILE_TYPES``; the ``_K_M`` ones are llama.cpp's mixes of K-quants. In ``MIXED`` the matrices
            take all of ``facts.TYPES`` in turn; with as many layers as types each kind of matrix has each type.
        path: where the file goes; it appears complete or not at all.
        shape: sizes; matrices of K-quants need rows that are multiples of 256, of the others multiples of 32.
        seed: another seed, another model.

    Raises:
        ModelFileError: unknown architecture or quant, a row length that the type cannot hold, or no space.
    """
    shape = shape or Shape()
    if arch not in ("llama", "qwen2") or quant not in FILE_TYPES:
        raise ModelFileError(
            "no such synthetic model",
            place=f"{arch} {quant}",
            expected=f"llama or qwen2; one of {', '.join(FILE_TYPES)}",
        )
    if arch == "qwen2" and shape.rope_freqs:
        raise ModelFileError("qwen2 has no RoPE divisors", place="rope_freqs", expected=0, found=shape.rope_freqs)
    tensors = list(_tensors(arch, quant, shape))
    path = Path(path)
    with replacing(path, kind=ModelFileError, next_step=FREE_CACHE) as part:
        _write_header(part, arch, quant, shape, tensors)
        with part.open("ab") as file:
            for tensor in tensors:
                file.write(b"\0" * (-file.tell() % shape.alignment))
                _write_tensor(file, tensor, seed)
    return path


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    type: str
    shape: tuple[int, ...]  # numpy order
    middle: float = 0.0  # of plain numbers
    spread: float = 0.0  # standard deviation of a matrix, half width of a vector


def _tensors(arch: str, quant: str, s: Shape) -> Iterator[_Tensor]:
    """Yield every tensor in file order, with its type by llama.cpp's rules for the mix."""
    q, kv = s.n_head * s.key_length, s.n_head_kv * s.key_length
    kind = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}.get(quant, quant)
    better = "Q6_K" if quant.endswith("_K_M") else kind
    turn = itertools.cycle(TYPES)

    def matrix(name: str, rows: int, columns: int, of: str = kind, scale: float = 1.0) -> _Tensor:
        of = next(turn) if quant == "MIXED" else of
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[of]][0]
        if columns % block:
            raise ModelFileError(
                f"a row cannot be cut into blocks of {of}",
                place=name,
                expected=f"a multiple of {block}",
                found=columns,
                next_step="choose another shape or another quant",
            )
        return _Tensor(name, of, (rows, columns), spread=scale / float(np.sqrt(columns)))

    if s.tied:
        yield matrix("token_embd.weight", s.n_vocab, s.n_embd, better)
    else:
        yield matrix("token_embd.weight", s.n_vocab, s.n_embd, scale=float(np.sqrt(s.n_embd)))
    for i in range(s.n_layer):
        # llama.cpp gives the first and last eighth of the layers, and each third one between, more bits.
        more = i < s.n_layer // 8 or i >= 7 * s.n_layer // 8 or (i - s.n_layer // 8) % 3 == 2
        yield _Tensor(f"blk.{i}.attn_norm.weight", "F32", (s.n_embd,), 1.0, 0.25)
        for part, rows, of in (("q", q, kind), ("k", kv, kind), ("v", kv, better if more else kind)):
            yield matrix(f"blk.{i}.attn_{part}.weight", rows, s.n_embd, of)
            if arch == "qwen2" or s.biases:
                yield _Tensor(f"blk.{i}.attn_{part}.bias", "F32", (rows,), 0.0, 0.5)
        yield matrix(f"blk.{i}.attn_output.weight", s.n_embd, q, scale=CALM)
        yield from _biases(arch, s, i, ("attn_output", s.n_embd))
        yield _Tensor(f"blk.{i}.ffn_norm.weight", "F32", (s.n_embd,), 1.0, 0.25)
        yield matrix(f"blk.{i}.ffn_gate.weight", s.n_ff, s.n_embd)
        yield matrix(f"blk.{i}.ffn_up.weight", s.n_ff, s.n_embd)
        yield matrix(f"blk.{i}.ffn_down.weight", s.n_embd, s.n_ff, better if more else kind, CALM)
        yield from _biases(arch, s, i, ("ffn_gate", s.n_ff), ("ffn_up", s.n_ff), ("ffn_down", s.n_embd))
    yield _Tensor("output_norm.weight", "F32", (s.n_embd,), 1.0, 0.25)
    if not s.tied:
        yield matrix("output.weight", s.n_vocab, s.n_embd, better)
    if s.rope_freqs:
        yield _Tensor("rope_freqs.weight", "F32", ((s.rope_dim or s.key_length) // 2,), 4.5, 3.5)


def _biases(arch: str, s: Shape, layer: int, *parts: tuple[str, int]) -> Iterator[_Tensor]:
    """Yield biases that only llama files may have."""
    if arch == "llama" and s.biases:
        for part, length in parts:
            yield _Tensor(f"blk.{layer}.{part}.bias", "F32", (length,), 0.0, 0.5)


def _write_header(path: Path, arch: str, quant: str, s: Shape, tensors: list[_Tensor]) -> None:
    writer = gguf.GGUFWriter(path, arch)
    if s.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        writer.add_custom_alignment(s.alignment)
    writer.add_name(f"synthetic-{arch}")
    writer.add_block_count(s.n_layer)
    writer.add_context_length(s.n_ctx_train)
    writer.add_embedding_length(s.n_embd)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_key_length(s.key_length)
    writer.add_value_length(s.key_length)
    writer.add_layer_norm_rms_eps(1e-6 if arch == "qwen2" else 1e-5)
    writer.add_rope_freq_base(float(s.rope_base))
    writer.add_rope_dimension_count(s.rope_dim or s.key_length)
    if s.linear or s.yarn:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN if s.yarn else gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(s.yarn or s.linear))
        writer.add_rope_scaling_orig_ctx_len(s.n_ctx_train // (s.yarn or s.linear))
    writer.add_vocab_size(s.n_vocab)
    writer.add_tokenizer_model("none")
    writer.add_file_type(FILE_TYPES[quant])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        if tensor.type in ("F32", "F16"):
            stored, dtype = tensor.shape, np.dtype(np.float32 if tensor.type == "F32" else np.float16)
        else:
            stored, dtype = gguf.quant_shape_to_byte_shape(tensor.shape, kind), np.dtype(np.uint8)
        writer.add_tensor_info(tensor.name, stored, dtype, _n_bytes(tensor), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _n_bytes(tensor: _Tensor) -> int:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    return int(np.prod(tensor.shape, dtype=np.int64)) // int(block) * int(size)


def _write_tensor(file: BinaryIO, tensor: _Tensor, seed: int) -> None:
    """Append one tensor, a chunk of blocks at a time."""
    size = int(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]][1])
    n_blocks = _n_bytes(tensor) // size
    step = _CHUNK_BYTES // size
    for start in range(0, n_blocks, step):
        words = _words(_key(seed, tensor.name), start, min(step, n_blocks - start), -(-size // 8) + 1)
        file.write(_BLOCKS[tensor.type](words, tensor).tobytes())


def _words(key: int, first_block: int, n_blocks: int, width: int) -> U64:
    """Return ``(n_blocks, width)`` random words: splitmix64 of the key and each word's number.

    Counted, not drawn, so that a chunk does not depend on the ones before it.
    """
    count = np.arange(first_block * width, (first_block + n_blocks) * width, dtype=np.uint64)
    z = (count + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).reshape(n_blocks, width)


def vector(name: str, length: int, *, half_width: float, seed: int) -> npt.NDArray[np.float32]:
    """Return numbers uniform in -half_width to half_width, ``(length,)``: what ``build`` gives a bias of that name.

    Number i depends on name, seed and i alone, so a longer vector starts with the shorter one.
    """
    words = _words(_key(seed, name), 0, length, 2)
    return _plain(words, _Tensor(name, "F32", (length,), 0.0, half_width))


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


def _bytes(words: U64) -> U8:
    """Return the words' bytes, lowest first, on any machine: ``(n, 8 * width)``."""
    return words.astype("<u8").view(np.uint8)


def _scale(words: U64, unit: float, *, signed: bool = False) -> npt.NDArray[np.float16]:
    """Return one half-precision scale for each block, ``unit`` times 0.5 to 1.5, ``(n,)``.

    Sums, products and roundings of IEEE numbers only: no library function whose last bit could differ.
    """
    draw = words[:, -1]
    factor = (draw >> np.uint64(40) & np.uint64(0xFFFF)).astype(np.float64) / 65536.0 + 0.5
    if signed:
        factor = np.where(draw >> np.uint64(63), -factor, factor)
    return (factor * (unit / _FACTOR_RMS)).astype(np.float16)


def _half_bytes(values: npt.NDArray[np.float16]) -> U8:
    return values.astype("<f2").reshape(-1, 1).view(np.uint8)


def _plain(words: U64, tensor: _Tensor) -> npt.NDArray[np.float32]:
    """Return one float32 for each row of words: uniform about the middle, matrices with the spread asked for."""
    uniform = (words[:, 0] >> np.uint64(40)).astype(np.float64) / (1 << 23) - 1.0
    width = tensor.spread * (float(np.sqrt(3.0)) if len(tensor.shape) > 1 else 1.0)
    return (tensor.middle + uniform * width).astype("<f4")


def _bf16(words: U64, tensor: _Tensor) -> npt.NDArray[np.uint16]:
    """Return the upper half of each float32, rounded to nearest even."""
    bits = _plain(words, tensor).view("<u4").astype(np.uint64)
    return ((bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype("<u2")


def _q8_0(words: U64, tensor: _Tensor) -> U8:
    """Lay out d (half), 32 codes (int8, -127 to 127: no quantiser writes -128)."""
    codes = _bytes(words)[:, :32].copy()
    codes[codes == 128] = 127
    return np.hstack((_half_bytes(_scale(words, tensor.spread / 73.3)), codes))


def _q_simple(deviation: float, offset: float, n_code_bytes: int) -> Callable[[U64, _Tensor], U8]:
    """Return the layout of Q4_0, Q5_0 (``offset`` 0) or Q4_1, Q5_1: d, then m, then the fifth bits and the codes.

    ``deviation`` is the codes' standard deviation, ``offset`` the mean code that the minimum m cancels.
    Without a minimum d has either sign, as real files have it, which also keeps the mean near 0.
    """

    def blocks(words: U64, tensor: _Tensor) -> U8:
        d = _scale(words, tensor.spread / deviation, signed=not offset)
        head = [_half_bytes(d)]
        if offset:
            head.append(_half_bytes((d.astype(np.float32) * np.float32(-offset)).astype(np.float16)))
        return np.hstack((*head, _bytes(words)[:, :n_code_bytes]))

    return blocks


def _q_k(deviation: float, offset: float, n_code_bytes: int) -> Callable[[U64, _Tensor], U8]:
    """Return the layout of Q4_K or Q5_K: d, dmin, 12 bytes of eight 6-bit scales and minima, the codes."""

    def blocks(words: U64, tensor: _Tensor) -> U8:
        d = _scale(words, tensor.spread / deviation)
        dmin = (d.astype(np.float32) * np.float32(offset)).astype(np.float16)
        random = _bytes(words)
        packed = random[:, :12].copy()
        # Bytes 0-3 hold scales 0-3 (and two bits of 4-7), bytes 4-7 the minima, bytes 8-11 a scale's and a
        # minimum's low half: each minimum is its scale with the last bits changed, so that a row's mean stays small.
        packed[:, 4:8] = packed[:, 0:4] ^ (random[:, 4:8] & 3)
        packed[:, 8:12] = (packed[:, 8:12] & 15) * 17 ^ (random[:, 4:8] & 0x30)
        return np.hstack((_half_bytes(d), _half_bytes(dmin), packed, random[:, 12 : 12 + n_code_bytes]))

    return blocks


def _q6_k(words: U64, tensor: _Tensor) -> U8:
    """Lay out 128 low and 64 high code bytes, 16 scales (int8, either sign), d."""
    return np.hstack((_bytes(words)[:, :208], _half_bytes(_scale(words, tensor.spread / 1366.0))))


_BLOCKS: Mapping[str, Callable[[U64, _Tensor], npt.NDArray[np.generic]]] = {
    "F32": _plain,
    "F16": lambda words, tensor: _plain(words, tensor).astype("<f2"),
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q_simple(4.64, 0.0, 16),
    "Q5_0": _q_simple(9.25, 0.0, 20),
    "Q4_1": _q_simple(4.61, 7.5, 16),
    "Q5_1": _q_simple(9.23, 15.5, 20),
    "Q4_K": _q_k(170.0, 7.5, 128),
    "Q5_K": _q_k(339.0, 15.5, 160),
    "Q6_K": _q6_k,
}
