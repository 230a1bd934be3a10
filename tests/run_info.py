"""Run records with plausible defaults, for tests that need one and check only a few of its fields."""

from __future__ import annotations

from typing import Any

from parity_lib.records.builds import BurnBuild, Receipt
from parity_lib.records.isa_evidence import BURN, Evidence
from parity_lib.records.runs import (
    BurnDispatchFacts,
    BurnRun,
    BurnSettings,
    LlamaDispatchFacts,
    LlamaRun,
    LlamaSettings,
    RopeScaling,
    RunInfo,
)
from parity_lib.records.self_spread import VariantRun

LLAMA_BUILD = Receipt(
    binding="llama-cpp-python",
    version="0.3.36",
    commit="0c1e57098bba43ac29e6e3b677cdceebdd22334f",
    sdist_sha256="1" * 64,
    wheel_sha256="2" * 64,
    target="avx512",
    cmake_args=("-DGGML_AVX512=ON",),
    cpu_flags=("avx512f",),
    compiler="GCC 12.2",
    tools={"cmake": "4"},
    architecture="x86_64",
    libraries={"libllama.so": "3" * 64},
)
LLAMA_SETTINGS = LlamaSettings(
    name="strict",
    model_params={"use_extra_bufts": False},
    context_params={"flash_attn_type": 0},
    environment={"GGML_CPU_TILED_MM": "0"},
    n_ctx=512,
    n_batch=512,
    n_ubatch=512,
    n_seq_max=1,
    n_threads=1,
    n_threads_batch=1,
    flash_attn="disabled",
    type_k="f32",
    type_v="f32",
)
LLAMA_EVIDENCE = LlamaDispatchFacts("CPU : AVX512 = 1", {"AVX512": 1}, ("libllama.so",), {"CPU_Mapped": 1.5})
BURN_BUILD = BurnBuild(
    version="0.1.0",
    stack="crates-io",
    source_sha256="4" * 64,
    lock_sha256="ab" * 32,
    crates={"burn-ndarray": "0.21.0"},
    rustc="1.95.0",
    target="x86_64-unknown-linux-gnu",
    target_features="fxsr,sse,sse2",
    profile="release",
    opt_level="3",
    features="python",
    debug_assertions=False,
    allocator="mimalloc",
    library="without faults",
    receipt=None,
)
BURN_SETTINGS = BurnSettings(
    arch="llama",
    n_layer=2,
    n_embd=64,
    n_head=4,
    n_head_kv=2,
    key_length=16,
    value_length=16,
    n_ff=128,
    n_vocab=512,
    n_ctx_train=2048,
    rms_eps=1e-5,
    rope_base=10000.0,
    rope_dim=16,
    rope_scaling=RopeScaling("none", 1.0, 1.0, 2048),
    tied_output=True,
    has_rope_freqs=False,
    biases=(),
    policy="f32",
    n_threads=1,
    fault=None,
    plain=(),
    fused=(),
)
BURN_EVIDENCE = BurnDispatchFacts(
    observed="unproven",
    reason="no program counter was sampled",
    cpu=("avx512f",),
    kernel_features=("std", "avx512"),
    expected_kernel="sgemm avx512f 16x16",
    samples=Evidence(BURN, "teacher-forced pass", "avx512", None, "not sampled"),
)


def run_info(engine: str = "llama.cpp", **other: Any) -> RunInfo:
    """Return a run of llama.cpp, or of burn, in which some fields are given."""
    fields: dict[str, Any] = {
        "version": "0",
        "commit": "0",
        "model_path": "m.gguf",
        "model_sha256": "0" * 64,
        "isa_requested": "avx2",
        "isa_observed": "unproven",
        "n_threads": 1,
        "kv_type": "F32",
        "compute": "f32",
        "stack": "crates-io",
        "lock_sha256": "",
        "machine_class": "x86_64",
        "host": "here",
        "fault": None,
        "started_at": "2026-11-23T00:00:00+00:00",
        "seconds": 1.0,
        "peak_rss_bytes": 1,
    }
    if engine == "burn":
        fields |= {"build": BURN_BUILD, "settings": BURN_SETTINGS, "isa_evidence": BURN_EVIDENCE}
        return BurnRun(**fields | other)
    fields |= {"build": LLAMA_BUILD, "settings": LLAMA_SETTINGS, "isa_evidence": LLAMA_EVIDENCE}
    return LlamaRun(**fields | other)


def variant_run(settings: str = "default", **other: Any) -> VariantRun:
    """Return how a variant of llama.cpp ran, in which some fields are given."""
    fields: dict[str, Any] = {
        "settings": settings,
        "flash_attn": "enabled",
        "type_k": "f16",
        "type_v": "f16",
        "tiled": True,
        "batch": 512,
        "longest_prompt": None,
        "weight_buffers_mib": {"CPU_REPACK": 1.5},
        "isa": "avx512",
        "target": "avx512",
        "n_threads": 2,
        "seconds": 1.0,
    }
    return VariantRun(**fields | other)
