"""A record of who made a trace, for tests to which most of it does not matter."""

from __future__ import annotations

from typing import Any

from parity_lib.records.self_spread import VariantRun
from parity_lib.records.traces import RunInfo


def run_info(engine: str = "llama.cpp", **other: Any) -> RunInfo:
    """Return a record of llama.cpp in which some fields are given."""
    fields: dict[str, Any] = {
        "engine": engine,
        "version": "0",
        "commit": "0",
        "build": {},
        "model_path": "m.gguf",
        "model_sha256": "0" * 64,
        "settings": {},
        "isa_requested": "avx2",
        "isa_observed": "unproven",
        "isa_evidence": {},
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
    return RunInfo(**fields | other)


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
