"""What a model file says: facts of the model, its tensors, its hash. Every refusal is a ``ModelFileError``."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf

from parity_lib.errors import ModelFileError
from parity_lib.gguf_file import ModelFile, Tensor

__all__ = [
    "ModelFacts",
    "ModelFile",
    "Tensor",
    "cache_dir",
    "expected_shapes",
    "facts_of",
    "read_facts",
    "read_tensors",
    "sha256_file",
]

ARCHITECTURES = ("llama", "qwen2")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")

# A key of the architecture that changes what is computed, with the value that leaves it unchanged. Reading on
# with another value would judge a different model than the file describes.
_NEUTRAL: Mapping[str, object] = {
    "expert_count": 0,
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scale_linear": 1.0,
    "attention.causal": True,
    "attention.sliding_window": 0,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is, as its own file says. Lengths are counts of numbers."""

    arch: str
    quant: str  # from general.file_type; the most frequent matrix type where the file does not say
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    n_ff: int
    n_vocab: int
    n_ctx_train: int
    rms_eps: float
    rope_base: float
    rope_dim: int
    tied_output: bool
    has_rope_freqs: bool
    has_qkv_bias: bool
    types: Mapping[str, int]  # tensor type -> number of tensors, by name
    tokenizer: str  # tokenizer.ggml.model; "none" where the file has no vocabulary
    tokenizer_sha256: str
    add_bos: bool | None  # as the file says; None where it does not
    n_bytes: int


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file by name, in the file's order. Raises ``ModelFileError``."""
    return ModelFile(path).tensors


def read_facts(path: Path) -> ModelFacts:
    """Return what the file says about the model, checked against its own tensors.

    Derived where absent, and nothing else: key length = n_embd / n_head, value length = key length,
    n_head_kv = n_head, rotary dimension = key length, vocabulary size = number of tokens, tied output = no
    ``output.weight``.

    Raises ``ModelFileError`` if a fact is missing, a tensor is missing, unknown, of another shape or of an
    unsupported type, or if the file asks for a computation that is not supported.
    """
    return facts_of(ModelFile(path))


def facts_of(file: ModelFile) -> ModelFacts:
    """Return the facts of a file that is already open; as ``read_facts``."""
    arch = file.value("general.architecture")
    if arch not in ARCHITECTURES:
        raise ModelFileError(
            "the architecture is not supported",
            place=f"{file.path}: general.architecture",
            expected=" or ".join(ARCHITECTURES),
            found=arch,
            next_step="use a model of one of these",
        )
    _refuse_unsupported(file, arch)
    number = _number_reader(file, arch)
    n_embd, n_head = int(number("embedding_length")), int(number("attention.head_count"))
    if n_head == 0 or (file.value(f"{arch}.attention.key_length") is None and n_embd % n_head):
        raise ModelFileError(
            "heads do not divide the embedding",
            place=f"{file.path}: {arch}.attention.head_count",
            expected=f"a divisor of {n_embd}",
            found=n_head,
            next_step="fetch or convert the model again",
        )
    key_length = int(number("attention.key_length", n_embd // n_head))
    names = file.tensors
    facts = ModelFacts(
        arch=arch,
        quant=_quant(file),
        n_layer=int(number("block_count")),
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=int(number("attention.head_count_kv", n_head)),
        key_length=key_length,
        value_length=int(number("attention.value_length", key_length)),
        n_ff=int(number("feed_forward_length")),
        n_vocab=int(number("vocab_size", file.count("tokenizer.ggml.tokens"))),
        n_ctx_train=int(number("context_length")),
        rms_eps=float(number("attention.layer_norm_rms_epsilon")),
        rope_base=float(number("rope.freq_base")),
        rope_dim=int(number("rope.dimension_count", key_length)),
        tied_output="output.weight" not in names,
        has_rope_freqs="rope_freqs.weight" in names,
        has_qkv_bias="blk.0.attn_q.bias" in names,
        types=dict(sorted(Counter(t.type for t in names.values()).items())),
        tokenizer=str(file.value("tokenizer.ggml.model") or "none"),
        tokenizer_sha256=file.digest("tokenizer."),
        add_bos=file.value("tokenizer.ggml.add_bos_token"),
        n_bytes=file.path.stat().st_size,
    )
    _check_tensors(file, facts)
    return facts


def _number_reader(file: ModelFile, arch: str) -> Callable[..., float]:
    """Return a function that reads one positive number of the architecture, or takes the allowed derivation."""

    def number(key: str, derived: float | None = None) -> float:
        value = file.value(f"{arch}.{key}")
        if value is None:
            value = derived
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ModelFileError(
                "a fact of the model is missing or is not supported",
                place=f"{file.path}: {arch}.{key}",
                expected="one positive number",
                found="nothing" if value is None else value,
                next_step="the file must say it; no default is assumed",
            )
        return value

    return number


def _refuse_unsupported(file: ModelFile, arch: str) -> None:
    asked = {f"{arch}.{key}": neutral for key, neutral in _NEUTRAL.items()} | {"split.count": 1}
    for key, neutral in asked.items():
        value = file.value(key)
        if value is not None and value != neutral and (value != 0 or isinstance(value, bool)):
            raise ModelFileError(
                "the file asks for a computation that is not supported",
                place=f"{file.path}: {key}",
                expected=f"{neutral!r} or nothing",
                found=repr(value),
                next_step="use a model without it",
            )


def _quant(file: ModelFile) -> str:
    kind = file.value("general.file_type")
    if kind in [int(known) for known in gguf.LlamaFileType]:
        return str(gguf.LlamaFileType(kind).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    matrices = Counter(t.type for t in file.tensors.values() if len(t.shape) > 1)
    return min(matrices, key=lambda name: (-matrices[name], name)) if matrices else "none"


def expected_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Return name and shape (numpy order) of every tensor that such a model may have; biases are optional."""
    q, k, v = facts.n_head * facts.key_length, facts.n_head_kv * facts.key_length, facts.n_head_kv * facts.value_length
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (facts.n_vocab, facts.n_embd),
        "output_norm.weight": (facts.n_embd,),
        "output.weight": (facts.n_vocab, facts.n_embd),
    }
    if facts.arch == "llama":  # llama.cpp refuses the tensor in a qwen2 file
        shapes["rope_freqs.weight"] = (facts.rope_dim // 2,)
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (facts.n_embd,),
        "attn_q.weight": (q, facts.n_embd),
        "attn_k.weight": (k, facts.n_embd),
        "attn_v.weight": (v, facts.n_embd),
        "attn_q.bias": (q,),
        "attn_k.bias": (k,),
        "attn_v.bias": (v,),
        "attn_output.weight": (facts.n_embd, facts.n_head * facts.value_length),
        "ffn_norm.weight": (facts.n_embd,),
        "ffn_gate.weight": (facts.n_ff, facts.n_embd),
        "ffn_up.weight": (facts.n_ff, facts.n_embd),
        "ffn_down.weight": (facts.n_embd, facts.n_ff),
    }
    return shapes | {f"blk.{i}.{name}": shape for i in range(facts.n_layer) for name, shape in layer.items()}


def _check_tensors(file: ModelFile, facts: ModelFacts) -> None:
    if facts.n_layer > len(file.tensors):  # before the names of so many blocks are made: the number may be absurd
        raise ModelFileError(
            "the file has fewer tensors than its metadata has blocks",
            place=f"{file.path}: {facts.arch}.block_count",
            expected=f"at most {len(file.tensors)}",
            found=facts.n_layer,
            next_step="compare the file's SHA-256 with the source's, and copy it again",
        )
    expected = expected_shapes(facts)
    optional = {"output.weight", "rope_freqs.weight"}
    for name, shape in expected.items():
        tensor = file.tensors.get(name)
        if tensor is None and (name in optional or (name.endswith(".bias") and not facts.has_qkv_bias)):
            continue
        if tensor is None or tensor.shape != shape:
            raise ModelFileError(
                "a tensor is missing or has another shape than the metadata says",
                place=f"{file.path}: {name}",
                expected=shape,
                found="no such tensor" if tensor is None else tensor.shape,
                next_step="fetch or convert the model again",
            )
    for name, tensor in file.tensors.items():
        if name not in expected or tensor.type not in TYPES:
            raise ModelFileError(
                "a tensor is unknown, and would be left out, or has an unsupported type",
                place=f"{file.path}: {name}",
                expected=f"a tensor of the {facts.arch} architecture, of type {', '.join(TYPES)}",
                found=f"{tensor.type} {tensor.shape}",
                next_step="use a model without it, or quantise it to one of these types",
            )
    if facts.n_head % facts.n_head_kv or facts.rope_dim % 2 or facts.rope_dim > facts.key_length:
        raise ModelFileError(
            "head counts or rotary dimension contradict each other",
            place=file.path,
            expected="n_head a multiple of n_head_kv, rotary dimension even and at most the key length",
            found=f"n_head {facts.n_head}, n_head_kv {facts.n_head_kv}, rope_dim {facts.rope_dim}",
            next_step="fetch or convert the model again",
        )


def cache_dir() -> Path:
    """Return the project's cache folder: ``$PARITY_CACHE``, or ``~/.cache/gguf-parity``. It may not exist yet."""
    named = os.environ.get("PARITY_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "gguf-parity"


def sha256_file(path: Path, *, fresh: bool = False) -> str:
    """Return the SHA-256 of a file's content, lower-case hex.

    The result is remembered under ``cache_dir()/sha256`` and used again only while device, inode, size, time of
    modification **and time of change** of the file are the same: a program can set back the first time, not the
    second. A file changed less than two seconds before it was hashed is not remembered, because a second change
    could carry the same times. ``fresh=True`` reads the file in any case.

    Raises ``ModelFileError`` if the file cannot be read.
    """
    path = Path(path).resolve()
    try:
        before = path.stat()
        stamp = [before.st_dev, before.st_ino, before.st_size, before.st_mtime_ns, before.st_ctime_ns]
        entry = cache_dir() / "sha256" / (hashlib.sha256(os.fsencode(path)).hexdigest()[:32] + ".json")
        if not fresh and (known := _remembered(entry, stamp)) is not None:
            return known
        started_ns = time.time_ns()
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelFileError(
            "the file cannot be read",
            place=path,
            expected="a file that can be read",
            found=error.strerror or error,
            next_step="correct the path or its permissions",
        ) from error
    if started_ns - max(before.st_mtime_ns, before.st_ctime_ns) > 2_000_000_000:
        _remember(entry, {"path": str(path), "stamp": stamp, "sha256": digest})
    return digest


def _remembered(entry: Path, stamp: list[int]) -> str | None:
    try:
        record = json.loads(entry.read_text())
        return str(record["sha256"]) if record["stamp"] == stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a lost or broken memory costs one more reading, nothing else


def _remember(entry: Path, record: Mapping[str, object]) -> None:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=entry.parent, delete=False) as file:
            json.dump(record, file)
        Path(file.name).replace(entry)
    except OSError:
        return  # a read-only cache folder must not stop a judgement
