"""Derive a model from another one and check that both give equal F32 logits in llama.cpp."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from parity_lib.base.errors import ModelFileError
from parity_lib.base.names import Settings
from parity_lib.engines.llamacpp.engine import worker_env
from parity_lib.engines.llamacpp.recipe import host_target
from parity_lib.engines.worker.client import Worker
from parity_lib.model_file.facts import NO_TOKENIZER, made_up_tokens, read_facts
from parity_lib.models.transplant.qwen2 import to_qwen2
from parity_lib.models.transplant.widen import widen
from parity_lib.numerics.metrics import pooled_rms_over_std
from parity_lib.records.model_receipts import Equality
from parity_lib.records.pins import LlamaCppPin, Recipe
from parity_lib.records.traces import F32

LIMIT = 1e-5
"""On rms over the spread of the rows. Both files hold the same numbers, so what differs is how float32 sums group:
1.2e-6 to 1.5e-6 on SmolLM2-135M over ``TEXT``, 1.6e-7 on two random layers (``models.equalities``). Measured by the
same function on SmolLM2-135M: an epsilon left unscaled 1.8e-4, one pair of Q's rows swapped in one of the 30 layers
2e-3 (the first) to 1.8e-2.
"""
LEAST_POSITIONS = 60
TEXT = (
    "A lighthouse keeper writes down what the sea does: at 04:30 the wind turned north-west, force 7, and the lamp "
    'was cleaned twice. "Why twice?" asked the boy. Because salt sticks to glass, and because a ship that cannot see '
    "the light cannot know that it is there. def watch(hours): return [h for h in hours if h % 4 == 0] was all he "
    "typed that night; the rest of the page stayed white until the morning, when three gulls sat on the rail."
)
"""Prose, digits, quotation and code: more than ``LEAST_POSITIONS`` tokens of any vocabulary, and of a made-up one."""


def derive(recipe: Recipe, source: Path, target: Path, name: str, llama_cpp: LlamaCppPin) -> Equality:
    """Write ``target`` from the F32 file ``source`` as the recipe says; return how equal their logits are.

    Where the recipe adds biases, which change the model on purpose, the proof is made with zero biases, and the same
    function then writes the file again with the real ones. Nothing is left behind if the proof fails.

    Args:
        recipe: of kind ``widen`` or ``qwen2``.
        source: an F32 file.
        target: a path beside the final one.
        name: id and quant of the source, for the record.
        llama_cpp: the pinned reference.

    Raises:
        ModelFileError: the source does not fit the recipe, or the logits differ by more than ``LIMIT``.
    """
    try:
        if recipe.kind == "widen":
            widen(source, target, recipe.n_embd)
        else:
            to_qwen2(source, target, bias=0.0, seed=recipe.seed)
        equality = prove(source, target, recipe.kind, name, llama_cpp)
        if recipe.kind == "qwen2" and recipe.bias:
            to_qwen2(source, target, bias=recipe.bias, seed=recipe.seed)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return equality


def prove(source: Path, target: Path, step: str, name: str, llama_cpp: LlamaCppPin) -> Equality:
    """Return how far the logits of two F32 files are apart over ``TEXT``.

    Raises:
        ModelFileError: further than ``LIMIT``, or over fewer than ``LEAST_POSITIONS`` positions.
    """
    rows, tokens = _logits(source, None, llama_cpp)
    derived, _ = _logits(target, tokens, llama_cpp)
    if rows.shape != derived.shape or len(rows) < LEAST_POSITIONS:
        raise ModelFileError(
            "a derived model has other rows of logits than its source, or too few to compare",
            place=f"{target}: {step} of {name}",
            expected=f"{rows.shape}, at least {LEAST_POSITIONS} positions",
            found=derived.shape,
        )
    wide = rows.astype(np.float64)
    error = derived.astype(np.float64) - wide
    found = pooled_rms_over_std(np.sqrt(np.mean(error * error, axis=1)), wide.std(axis=1))
    equality = Equality(step, name, found, float(np.abs(error).max()), len(rows), LIMIT)
    if not found <= LIMIT:  # not a number fails, too
        raise ModelFileError(
            "a derived model does not compute what its source computes",
            place=f"{target}: {step} of {name}, {len(rows)} positions",
            expected=f"logits within {LIMIT:g} of their spread",
            found=f"{found:.3g}, largest difference {equality.max_abs:.3g}",
            next_step="this is a defect of the transplant or of llama.cpp's reading of that architecture",
        )
    return equality


def _logits(path: Path, tokens: list[int] | None, llama_cpp: LlamaCppPin) -> tuple[F32, list[int]]:
    """Return llama.cpp's rows, ``(positions, n_vocab)``, and the fed ids (those of ``TEXT`` if None is given)."""
    facts = read_facts(path)
    if tokens is None and facts.tokenizer == NO_TOKENIZER:
        tokens = made_up_tokens(TEXT, facts.n_vocab)
    kwargs = {"path": str(path), "settings": Settings.STRICT, "isa": host_target(llama_cpp), "n_threads": 2}
    with (
        tempfile.TemporaryDirectory(".part", "parity-logits-") as folder,
        Worker("llama_cpp", kwargs, env=worker_env(Settings.STRICT)) as worker,
    ):
        fed: list[int] = worker.call("tokenize", TEXT) if tokens is None else tokens
        spool = Path(folder) / "rows.f32"
        worker.call("score", [fed], str(spool))
        return np.fromfile(spool, "<f4").reshape(len(fed), -1).astype(np.float32), fed
