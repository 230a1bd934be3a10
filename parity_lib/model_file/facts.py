"""Facts of a model file: architecture, sizes, tensors. Every refusal is a ``ModelFileError``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf

from parity_lib.base.errors import ModelFileError
from parity_lib.model_file.cursor import quoted
from parity_lib.model_file.header import ModelFile, Tensor
from parity_lib.model_file.keys import CONVERT, UNSCALED, Keys, RopeScaling, bad_value, missing
from parity_lib.model_file.tensor_list import TYPES

NO_TOKENIZER = "none"
BYTES_PER_TOKEN = 4  # of a made-up prompt: about what a trained tokenizer takes of English

__all__ = [
    "TYPES",
    "UNSCALED",
    "ModelFacts",
    "ModelFile",
    "RopeScaling",
    "Tensor",
    "expected_shapes",
    "facts_of",
    "read_facts",
    "read_tensors",
]

ARCHITECTURES = ("llama", "qwen2")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the metadata of a GGUF file states about its model. Lengths are numbers of elements."""

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
    rope_scaling: RopeScaling
    tied_output: bool
    has_rope_freqs: bool
    biases: tuple[str, ...]  # names of all bias tensors, sorted
    types: Mapping[str, int]  # tensor type -> number of tensors, by name
    tokenizer: str  # tokenizer.ggml.model; "none" where the file has no vocabulary
    tokenizer_sha256: str
    add_bos: bool | None  # as the file says; None where it does not
    n_bytes: int

    @property
    def has_qkv_bias(self) -> bool:
        """Return whether queries, keys and values have a bias in every block."""
        wanted = {f"blk.{i}.attn_{part}.bias" for i in range(self.n_layer) for part in "qkv"}
        return wanted <= set(self.biases)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a GGUF file by name, in the file's order. Raises ``ModelFileError``."""
    return ModelFile(path).tensors


def read_facts(path: Path) -> ModelFacts:
    """Read a GGUF file's metadata and tensor list, and return the facts of the model, checked against its tensors.

    Derived where absent, and nothing else: key length = n_embd / n_head, value length = key length,
    n_head_kv = n_head, rotary dimension = key length, vocabulary size = number of tokens, tied output = no
    ``output.weight``.

    Raises ``ModelFileError`` if a fact is missing, a tensor is missing, unknown, of another shape or of an
    unsupported type, or if the file asks for a computation that is not supported. The candidate refuses the same files
    in the same words (``burn_gguf/src/facts.rs``).

    >>> from parity_lib.models.synthetic import build
    >>> facts = read_facts(build("llama", "Q8_0", folder / "synthetic.gguf"))
    >>> facts.arch, facts.n_layer, facts.n_vocab
    ('llama', 4, 2048)
    """
    return facts_of(ModelFile(path))


def facts_of(file: ModelFile) -> ModelFacts:
    """Return the facts of a file that is already open; as ``read_facts``."""
    _refuse_part(file)
    arch = _architecture(file)
    keys = Keys(file, arch)
    keys.refuse_what_is_not_computed()
    n_embd, n_layer = keys.count("embedding_length"), keys.count("block_count")
    n_head = keys.same_in_layers("attention.head_count", n_layer)
    key_length = keys.optional_count("attention.key_length")
    key_length = keys.whole("attention.head_count", n_embd, n_head) if key_length is None else key_length
    n_head_kv = keys.same_in_layers("attention.head_count_kv", n_layer, n_head)
    keys.whole("attention.head_count_kv", n_head, n_head_kv)
    rope_dim = keys.optional_count("rope.dimension_count") or key_length
    if rope_dim > key_length or rope_dim % 2:
        raise keys.bad("rope.dimension_count", f"an even number, at most the key length {key_length}", str(rope_dim))
    n_ff = keys.same_in_layers("feed_forward_length", n_layer)
    n_ctx_train = keys.count("context_length")
    names = file.tensors
    facts = ModelFacts(
        arch=arch,
        quant=_quant(file),
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        key_length=key_length,
        value_length=keys.optional_count("attention.value_length") or key_length,
        n_ff=n_ff,
        n_vocab=keys.vocabulary(),
        n_ctx_train=n_ctx_train,
        rms_eps=keys.positive("attention.layer_norm_rms_epsilon"),
        rope_base=keys.rope_base(),
        rope_dim=rope_dim,
        rope_scaling=keys.rope_scaling(n_ctx_train),
        tied_output="output.weight" not in names,
        has_rope_freqs="rope_freqs.weight" in names,
        biases=tuple(sorted(name for name in names if name.endswith(".bias"))),
        types=dict(sorted(Counter(t.type for t in names.values()).items())),
        tokenizer=_tokenizer(file),
        tokenizer_sha256=file.digest("tokenizer."),
        add_bos=file.boolean("tokenizer.ggml.add_bos_token"),
        n_bytes=file.path.stat().st_size,
    )
    _check_tensors(file, facts)
    return facts


def _architecture(file: ModelFile) -> str:
    key, expected = "general.architecture", " or ".join(ARCHITECTURES)
    if key not in file.metadata_keys():
        raise missing(file, key, expected)
    name = file.text(key)
    if name is None:
        raise bad_value(file, key, "a string", file.type_name(key))
    if name not in ARCHITECTURES:
        raise ModelFileError(
            f'unsupported architecture, key "{key}"',
            place=file.path,
            expected=expected,
            found=quoted(name),
            next_step="use a model of one of these",
        )
    return name


def _refuse_part(file: ModelFile) -> None:
    """Refuse a file that is a part of a model; parts behind the first have no other keys."""
    count = file.integer("split.count")
    if count is None or count <= 1:
        return
    number = min((file.integer("split.no") or 0) + 1, (1 << 64) - 1)
    first, whole = _part_names(str(file.path), number, count)
    raise ModelFileError(
        'the file is a part of a model, key "split.count"',
        place=file.path,
        expected="a model in one file",
        found=f"part {number} of {count}",
        next_step=f"merge the parts, then use the whole: llama-gguf-split --merge {first} {whole}",
    )


def _part_names(path: str, number: int, count: int) -> tuple[str, str]:
    """Return the first part's path, and one for the merged model, by the name of part ``number`` of ``count``."""
    tail = f"-{number:05}-of-{count:05}.gguf"
    if path.endswith(tail):
        stem = path.removesuffix(tail)
        return f"{stem}-00001-of-{count:05}.gguf", f"{stem}.gguf"
    return f"FIRST-00001-of-{count:05}.gguf", "WHOLE.gguf"


def _tokenizer(file: ModelFile) -> str:
    key = "tokenizer.ggml.model"
    if key not in file.metadata_keys():
        return "none"
    name = file.text(key)
    return file.shown(key) if name is None else name or "none"


def _quant(file: ModelFile) -> str:
    kind = file.integer("general.file_type")
    if kind in [int(known) for known in gguf.LlamaFileType]:
        return str(gguf.LlamaFileType(kind).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    matrices = Counter(t.type for t in file.tensors.values() if len(t.shape) > 1)
    return min(matrices, key=lambda name: (-matrices[name], name)) if matrices else "none"


def expected_shapes(facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Return name and shape (numpy order) of every tensor that such a model may have; biases are optional."""
    return dict(_shapes(facts))


def _shapes(facts: ModelFacts) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield what ``expected_shapes`` returns, in the order in which the candidate binds tensors."""
    q, k, v = facts.n_head * facts.key_length, facts.n_head_kv * facts.key_length, facts.n_head_kv * facts.value_length
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (facts.n_embd,),
        "attn_q.weight": (q, facts.n_embd),
        "attn_k.weight": (k, facts.n_embd),
        "attn_v.weight": (v, facts.n_embd),
        "attn_q.bias": (q,),
        "attn_k.bias": (k,),
        "attn_v.bias": (v,),
        "attn_output.weight": (facts.n_embd, facts.n_head * facts.value_length),
        "attn_output.bias": (facts.n_embd,),
        "ffn_norm.weight": (facts.n_embd,),
        "ffn_gate.weight": (facts.n_ff, facts.n_embd),
        "ffn_up.weight": (facts.n_ff, facts.n_embd),
        "ffn_down.weight": (facts.n_embd, facts.n_ff),
        "ffn_gate.bias": (facts.n_ff,),
        "ffn_up.bias": (facts.n_ff,),
        "ffn_down.bias": (facts.n_embd,),
    }
    is_llama = facts.arch == "llama"  # llama.cpp refuses these in a qwen2 file
    own = {name: shape for name, shape in layer.items() if is_llama or name not in _LLAMA_ONLY}
    yield "token_embd.weight", (facts.n_vocab, facts.n_embd)
    for i in range(facts.n_layer):
        for name, shape in own.items():
            yield f"blk.{i}.{name}", shape
    yield "output_norm.weight", (facts.n_embd,)
    yield "output.weight", (facts.n_vocab, facts.n_embd)
    if is_llama:
        yield "rope_freqs.weight", (facts.rope_dim // 2,)


_LLAMA_ONLY = ("attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias")


def _check_tensors(file: ModelFile, facts: ModelFacts) -> None:
    known: set[str] = set()
    for name, shape in _shapes(facts):  # not all names at once: the number of blocks may be absurd
        tensor, dims = file.tensors.get(name), list(reversed(shape))
        if tensor is None and (name in ("output.weight", "rope_freqs.weight") or name.endswith(".bias")):
            continue
        if tensor is None:
            again = "fetch or convert the model again"
            raise ModelFileError(
                f"missing tensor {quoted(name)}",
                place=file.path,
                expected=f"shape {dims}",
                found="nothing",
                next_step=again,
            )
        if tensor.shape != shape:
            raise ModelFileError(
                f"tensor {quoted(name)} has the wrong shape",
                place=file.path,
                expected=f"{dims} (ggml order)",
                found=list(reversed(tensor.shape)),
                next_step=CONVERT,
            )
        known.add(name)
    for name in file.tensors:
        if name not in known:
            raise ModelFileError(
                f"tensor {quoted(name)} is not used by architecture {facts.arch}",
                place=file.path,
                expected="only tensors of the forward pass",
                found="this one",
                next_step="use a model without it, its effect is not implemented",
            )


def made_up_tokens(text: str, n_vocab: int) -> list[int]:
    """Return token ids for a model without vocabulary, one for each 4 bytes of UTF-8, at least two.

    Id i is the first 8 bytes, big-endian, of SHA-256(text + "/" + i in decimal), modulo ``n_vocab``: the same on
    every machine, different for every prompt.

    >>> made_up_tokens("ab", n_vocab=100)
    [28, 42]
    """
    data = text.encode()
    n_tokens = max(2, -(-len(data) // BYTES_PER_TOKEN))
    digests = (hashlib.sha256(data + b"/" + str(i).encode()).digest() for i in range(n_tokens))
    return [int.from_bytes(digest[:8], "big") % n_vocab for digest in digests]
