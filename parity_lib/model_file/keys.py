"""The architecture's own metadata keys: which are read, which must be neutral, which have no effect on a logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta

from parity_lib.base.errors import ModelFileError
from parity_lib.base.record import Record
from parity_lib.model_file.cursor import quoted
from parity_lib.model_file.header import ModelFile

# A key of the architecture that changes what is computed, with the value that leaves it unchanged. Reading on
# with another value would judge a different model than the file describes. An integer is one of any width.
_NEUTRAL: Mapping[str, bool | int | float] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "nextn_predict_layers": 0,
    "attention.sliding_window": 0,
    "attention.scale": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
_READ = frozenset(
    (
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
    )
)
# Keys of other tasks, and keys that say where a model comes from: no logit depends on them.
_WITHOUT_EFFECT = frozenset(
    (
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "pooling_type",
        "classifier.output_labels",
        "classifier.pooling_type",
        "embedding_length_out",
    )
)
_COUNT = "a positive integer"
CONVERT = "convert the model again"


class RopeScaling(Record, frozen=True):
    """How RoPE stretches its angles to a longer context; the defaults leave them as they are."""

    kind: Annotated[str, Meta(pattern="^(none|linear|yarn)$")] = "none"
    factor: float = 1.0  # the context is this many times longer
    attn_factor: float = 1.0  # cosine and sine are multiplied by this
    n_ctx_orig: int = 0  # the context that YaRN stretches


UNSCALED = RopeScaling()


def missing(file: ModelFile, key: str, expected: str) -> ModelFileError:
    """Return the error of a key that is needed and absent."""
    return ModelFileError(
        f"missing metadata key {quoted(key)}",
        place=file.path,
        expected=expected,
        found="nothing",
        next_step=f"{CONVERT}, this value is never guessed",
    )


def bad_value(file: ModelFile, key: str, expected: str, found: str) -> ModelFileError:
    """Return the error of a key whose value cannot be used."""
    return ModelFileError(
        f"bad metadata value of {quoted(key)}",
        place=file.path,
        expected=expected,
        found=found,
        next_step="write the key again with gguf-py's gguf-set-metadata",
    )


class Keys:
    """The architecture's own keys of a file."""

    def __init__(self, file: ModelFile, arch: str) -> None:
        self._file, self._arch, self._known = file, arch, frozenset(file.metadata_keys())

    def _full(self, key: str) -> str:
        return f"{self._arch}.{key}"

    def _has(self, key: str) -> bool:
        return self._full(key) in self._known

    def _shown(self, key: str) -> str:
        return self._file.shown(self._full(key))

    def bad(self, key: str, expected: str, found: str) -> ModelFileError:
        """Return the error of a key of the architecture whose value cannot be used."""
        return bad_value(self._file, self._full(key), expected, found)

    def _missing(self, key: str, expected: str) -> ModelFileError:
        return missing(self._file, self._full(key), expected)

    def optional_count(self, key: str) -> int | None:
        """Return a positive integer, or None where the key is absent."""
        if not self._has(key):
            return None
        number = self._file.integer(self._full(key))
        if number is None or not _is_count(number):
            raise self.bad(key, "one positive integer", self._shown(key))
        return number

    def count(self, key: str) -> int:
        """Return a positive integer; its absence is refused."""
        number = self.optional_count(key)
        if number is None:
            raise self._missing(key, _COUNT)
        return number

    def same_in_layers(self, key: str, n_layer: int, derived: int | None = None) -> int:
        """Return a count that a file may state once, or once for each layer: then all have to be the same."""
        if not self._file.is_array(self._full(key)):
            found = self.optional_count(key)
            number = derived if found is None else found
            if number is None:
                raise self._missing(key, _COUNT)
            return number
        numbers = self._file.integers(self._full(key)) or []
        if len(numbers) != n_layer or len(set(numbers)) != 1 or not _is_count(numbers[0]):
            expected = f"one positive integer, or an array of {n_layer} equal ones, one a layer"
            raise self.bad(key, expected, self._shown(key))
        return int(numbers[0])

    def positive(self, key: str) -> float:
        """Return a positive, finite f32; its absence is refused."""
        if not self._has(key):
            raise self._missing(key, "a positive f32")
        number = self._file.float32(self._full(key))
        if number is None or not 0 < number < float("inf"):
            raise self.bad(key, "a positive f32", self._shown(key))
        return number

    def whole(self, key: str, a: int, b: int) -> int:
        """Return a / b, refused if it is not whole."""
        if a % b:
            raise self.bad(key, f"a divisor of {a}", str(b))
        return a // b

    def vocabulary(self) -> int:
        """Return the number of tokens, as llama.cpp counts; only without a tokenizer it reads ``vocab_size``."""
        tokens = self._file.count("tokenizer.ggml.tokens")
        if tokens == 0:
            raise bad_value(self._file, "tokenizer.ggml.tokens", "at least one token", "an array of 0")
        stated = self.optional_count("vocab_size") if tokens is None else tokens
        if stated is None:
            raise self._missing("vocab_size", "a list of tokens (tokenizer.ggml.tokens) or a vocabulary size")
        return stated

    def rope_base(self) -> float:
        """Return RoPE's base; it is never guessed."""
        if not self._has("rope.freq_base"):
            why = "a positive f32 (without it llama.cpp takes 10000, which is wrong for most models)"
            raise self._missing("rope.freq_base", why)
        return self.positive("rope.freq_base")

    def rope_scaling(self, n_ctx_train: int) -> RopeScaling:
        """Return RoPE's scaling as llama.cpp reads it: no type is ``linear``, no factor and 0 divide by one."""
        key = "rope.scaling.type"
        kind = self._file.text(self._full(key)) if self._has(key) else "linear"
        if kind not in ("none", "linear", "yarn"):
            raise self._unsupported(key, "none, linear or yarn")
        key = "rope.scaling.factor" if self._has("rope.scaling.factor") else "rope.scale_linear"
        factor = self._file.float32(self._full(key)) if self._has(key) else 1.0
        if factor is None or not 0 <= factor < float("inf"):
            raise self.bad(key, "an f32, 0 or positive", self._shown(key))
        factor = 1.0 if factor == 0 or kind == "none" else factor
        attn_factor = self.positive("rope.scaling.attn_factor") if self._has("rope.scaling.attn_factor") else 1.0
        key = "rope.scaling.original_context_length"
        unstated = not self._has(key) or self._file.integer(self._full(key)) == 0
        n_ctx_orig = n_ctx_train if unstated else self.count(key)
        return RopeScaling("none" if kind == "linear" and factor == 1 else kind, factor, attn_factor, n_ctx_orig)

    def _unsupported(self, key: str, expected: str) -> ModelFileError:
        return ModelFileError(
            f"unsupported metadata key {quoted(self._full(key))}",
            place=self._file.path,
            expected=expected,
            found=self._shown(key),
            next_step="use a model without it",
        )

    def refuse_what_is_not_computed(self) -> None:
        """Refuse every key of the architecture that would change the result and is not implemented."""
        for full in self._file.metadata_keys():
            prefix, dot, key = full.partition(".")
            if prefix != self._arch or not dot or key in _READ or key in _WITHOUT_EFFECT:
                continue
            if key not in _NEUTRAL:
                raise self._unsupported(key, "a key of the forward pass, or one without effect")
            wanted = _NEUTRAL[key]
            if isinstance(wanted, bool):
                found: object = self._file.boolean(full)
                said = "true"
            elif isinstance(wanted, int):
                found, said = self._file.integer(full), str(wanted)
            else:
                found, said = self._file.float32(full), f"{wanted:g} (f32)"
            if found != wanted:
                raise self._unsupported(key, f"{said}, or no such key")


def _is_count(number: int) -> bool:
    """Return whether a number may be a count. Above 2^32 nothing is a head count or a width."""
    return 1 <= number < 1 << 32
