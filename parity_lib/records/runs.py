"""Which engine ran, from which build, with which settings, and what is known of the instructions that ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from parity_lib.base.errors import RecordError
from parity_lib.base.record import Count, NotEmpty, Positive, Record
from parity_lib.records.builds import BurnBuild, Receipt
from parity_lib.records.isa_evidence import Evidence


class Run(Record, frozen=True):
    """What every engine says of a run. ``isa_requested`` and ``isa_observed`` can differ (T7 compares them)."""

    version: str
    commit: str
    model_path: str  # file name only; the content is named by the hash
    model_sha256: str
    isa_requested: str
    isa_observed: str  # "unproven" until a dispatch proof says otherwise
    n_threads: Count
    kv_type: str
    compute: str
    stack: str
    lock_sha256: str
    machine_class: str
    host: str
    fault: str | None  # a seeded fault, or None
    started_at: str  # UTC, ISO 8601
    seconds: float
    peak_rss_bytes: Count

    @property
    def engine(self) -> str:
        """Return the engine's name, the tag that distinguishes the kinds of runs."""
        return str(self.__struct_config__.tag)


class LlamaSettings(Record, frozen=True):
    """What was asked of llama.cpp, and what its context reports that it has."""

    name: NotEmpty  # "strict", "default", ...
    model_params: Mapping[str, bool | int | float]  # the fields that were set; all others are llama.cpp's own defaults
    context_params: Mapping[str, bool | int | float]
    environment: Mapping[str, str]  # llama.cpp's switches in its process
    n_ctx: Positive  # this and what follows: as read back
    n_batch: Positive
    n_ubatch: Positive
    n_seq_max: Positive
    n_threads: Positive
    n_threads_batch: Positive
    flash_attn: str
    type_k: str
    type_v: str


class LlamaDispatchFacts(Record, frozen=True):
    """What llama.cpp says of its kernels; compiled in is not the same as run."""

    system_info: str
    features: Mapping[str, Count]
    libraries: tuple[str, ...]
    weight_buffers_mib: Mapping[str, float]


class LlamaRun(Run, frozen=True, tag_field="engine", tag="llama.cpp"):
    """A run of the reference."""

    build: Receipt
    settings: LlamaSettings
    isa_evidence: LlamaDispatchFacts


class RopeScaling(Record, frozen=True):
    """How RoPE stretches its angles to a longer context."""

    kind: NotEmpty
    factor: float
    attn_factor: float
    n_ctx_orig: Count


class BurnSettings(Record, frozen=True):
    """The model's facts as the candidate read them, and what it was asked to do."""

    arch: NotEmpty
    n_layer: Positive
    n_embd: Positive
    n_head: Positive
    n_head_kv: Positive
    key_length: Positive
    value_length: Positive
    n_ff: Positive
    n_vocab: Positive
    n_ctx_train: Positive
    rms_eps: float
    rope_base: float
    rope_dim: Count
    rope_scaling: RopeScaling
    tied_output: bool
    has_rope_freqs: bool
    biases: tuple[str, ...]  # names of tensors
    policy: NotEmpty
    n_threads: Positive
    fault: str | None
    plain: tuple[str, ...]  # ops that plain twins replace
    fused: tuple[str, ...]  # sites that the stack computes inside of another op


class BurnDispatchFacts(Record, frozen=True):
    """What the candidate's own detection would choose, and what was sampled."""

    observed: str
    reason: str
    cpu: tuple[str, ...]
    kernel_features: tuple[str, ...]
    expected_kernel: str
    samples: Evidence


class BurnRun(Run, frozen=True, tag_field="engine", tag="burn"):
    """A run of the candidate."""

    build: BurnBuild
    settings: BurnSettings
    isa_evidence: BurnDispatchFacts


class OracleSettings(Record, frozen=True):
    """How the float64 oracle computes."""

    compute: NotEmpty
    angles: NotEmpty
    rounded: bool  # activations, as the reference's kernels round them


class OracleRun(Run, frozen=True, tag_field="engine", tag="oracle"):
    """A run of the float64 oracle, which is built from nothing but this library and numpy."""

    settings: OracleSettings


RunInfo: TypeAlias = LlamaRun | BurnRun | OracleRun


def llama(run: RunInfo) -> LlamaRun:
    """Return a run that has to be the reference's. Raises ``RecordError`` if another engine ran."""
    if not isinstance(run, LlamaRun):
        raise RecordError("another engine ran", place="run", expected="llama.cpp", found=run.engine)
    return run


def burn(run: RunInfo) -> BurnRun:
    """Return a run that has to be the candidate's. Raises ``RecordError`` if another engine ran."""
    if not isinstance(run, BurnRun):
        raise RecordError("another engine ran", place="run", expected="burn", found=run.engine)
    return run
